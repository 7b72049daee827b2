"""Every command of the READMEs: its own parser takes it, and those of the two scripts run, the long ones cut short."""

import importlib
import re
import shlex

import pytest

import train_teacher
from models import VDSR
from tests.helpers import ROOT
from utils import save_model

TEXTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md")))}
SHORT = ["--nEpochs=1", "--iter=1", "--batchSize=2", "--device=cpu", "--threads=1", "--step=1", "--val_dataset=Set5"]


def commands():
    """[words] of what is a line of code of its own or stands between backticks, and begins as a command does."""
    found = {}
    for text in TEXTS.values():
        for code in re.findall(r"^    (.*)$|`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M):
            for command in "".join(code).split("#")[0].split("&&"):
                words = shlex.split(command) if re.match(r"\s*(python|torchrun) ", command) else []
                if words and "pytest" not in words:
                    found[" ".join(words)] = words
    return [*found.values()]


def module_and_flags(words):
    """What a command runs, and its flags: (module, flags)."""
    start = next(i for i, word in enumerate(words) if i and not word.startswith("-"))
    return importlib.import_module(words[start].removesuffix(".py")), words[start + 1:]


PYTHON = commands()
RUN = [words for words in PYTHON if {"train_teacher.py", "distillation.py"} & {*words}
       and not {"--demo", "--model=espcn.py"} & {*words}]  # which test_scripts.py and test_custom.py run


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_a_command_runs(done, few_places, images, tmp_path, words):
    """What it expects to find is there."""
    for name in ("train291", "benchmark/Set5", "benchmark/Set14"):
        (tmp_path / "datasets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "datasets" / name).symlink_to(images / name.replace("14", "5"))
    script, flags = module_and_flags(words)
    args = script.parse_arguments(flags)
    for path in filter(None, (args.pretrained, getattr(args, "student", None))):
        save_model(VDSR(2, 4), tmp_path / path)
    sizes = ["--stu_step=1", "--input_size=32", "--latent=4"]
    if script is train_teacher:
        sizes = ["--patch_size=24", *(["--n_resblocks=1", "--n_feats=4"] if not args.pretrained else [])]
    done(script, *flags, *([] if args.test_only else [*SHORT, *sizes]))


def test_what_is_named_is_there(capsys):
    """Every command is understood, every flag is one; links and modules."""
    known = {"--nproc_per_node"}  # of torchrun
    for module, flags in map(module_and_flags, PYTHON):
        module.parse_arguments(flags)
        with pytest.raises(SystemExit):
            module.parse_arguments(["--help"])
        known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for path, text in TEXTS.items():
        assert set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text)) <= known, path
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / target).exists(), (path, target)
    for path in ROOT.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert path.name + "/" * path.is_dir() in TEXTS[ROOT / "README.md"]
    assert len(PYTHON) > 20 and len(RUN) > 10 and {"python", "torchrun"} == {words[0] for words in PYTHON}
    assert any("--demo" in words for words in PYTHON)
