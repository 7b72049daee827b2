"""Every command of the README runs, the long ones at reduced length, where `python -m pytest` is not itself."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import data.download
import distillation
import figure.ablation
import figure.plots
import figure.table
import train_teacher
from models import EDSR, VDSR
from utils import save_model

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({line.strip("` ") for line in re.findall(
    r"^    (?:python .*|torchrun .*|figure/.*)$|`python (?:distillation|train_teacher|-m figure).*?`", README, re.M)})
SHORT = ["--nEpochs=1", "--iter=1", "--batchSize=2", "--device=cpu", "--threads=1", "--step=1"]
TRAIN = ["--patch_size=24"]
DISTIL = ["--stu_step=1", "--input_size=32", "--latent=4"]


@pytest.fixture
def folder(tmp_path, images):
    """What the commands expect to find: images, tiny networks, the ESPCN."""
    (tmp_path / "datasets/benchmark").mkdir(parents=True)
    for name, source in (("train291", "train291"), ("benchmark/Set5", "benchmark/Set5"),
                         ("benchmark/Set14", "benchmark/Set5"), ("benchmark/B100", "benchmark/Set5")):
        (tmp_path / "datasets" / name).symlink_to(images / source)
    torch.manual_seed(0)
    save_model(VDSR(18, 4), tmp_path / "teacher.pth")
    save_model(VDSR(18, 2), tmp_path / "student.pth")
    (tmp_path / "models").mkdir()
    save_model(VDSR(18, 2), tmp_path / "models/vdsr_half.pth")
    return tmp_path


def arguments(command):
    return shlex.split(command.split("#")[0])


def test_there_are_the_commands_that_are_looked_for():
    assert len(COMMANDS) > 20
    assert any("--demo" in line for line in README.splitlines())


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train_teacher.py" in c and "python" in c])
def test_train_teacher(run, folder, command):
    flags = arguments(command)[2:]
    edsr = "arch=edsr" in command or "--scale=3" in command
    if edsr:
        save_model(EDSR(1, 4, scale=2), folder / "teacher.pth")
    size = [] if "--pretrained" in command else ["--n_resblocks=1", "--n_feats=4"]
    length = [] if "--test_only" in command else SHORT + TRAIN
    process = run(train_teacher, *flags, *length, *size)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if "distillation.py" in c])
def test_distillation(run, folder, images, command):
    flags = arguments(command)
    flags = flags[flags.index("distillation.py") + 1:]
    if "--model=" in command:
        from tests.test_own import write
        write(folder)
    if "--input_size=96" in command:
        save_model(EDSR(2, 4, scale=2), folder / "teacher.pth")
    if "--images" in command:
        pytest.skip("tests/test_images.py runs it")
    if "--export" in command:
        pytest.skip("tests/test_export.py runs it")
    if "vdsr_public" in command:
        save_model(VDSR(18, 4), folder / "vdsr_public.pth")
    length = [] if "--test_only" in command else SHORT + DISTIL
    process = run(distillation, *flags, *length)
    assert process.returncode == 0, process.stderr


def test_the_other_modules_take_their_flags(tmp_path, monkeypatch):
    """Downloads and figures: their flags are understood; their own tests run them."""
    parsers = {"data.download": data.download.parse_arguments, "figure.table": figure.table.parse_arguments,
               "figure.ablation": figure.ablation.parse_arguments, "figure.plots": figure.plots.parse_arguments}
    found = 0
    for command in COMMANDS:
        words = arguments(command)
        if words[:2] == ["python", "-m"] and words[2] in parsers:
            parsers[words[2]](words[3:])
            found += 1
    assert found >= 3


def test_the_flags_are_all_there():
    text = README[README.index("## Flags"):README.index("## Differences")]
    for script in (train_teacher, distillation):
        for flag in vars(script.parse_arguments([])):
            spelled = {"start_epoch": "start-epoch", "weight_decay": "weight-decay"}.get(flag, flag)
            assert f"--{spelled}" in text, flag


def test_the_layout_names_what_is_there():
    layout = re.search(r"## Layout\n\n(.*?)\n\n", README, re.S)[1]
    names = set(re.findall(r"(?<![\w-])([a-z_]+(?:\.py|/))", layout))
    root = Path(__file__).parent.parent
    assert all((root / name).exists() for name in names)
    here = {path.name + "/" * path.is_dir() for path in root.iterdir() if path.suffix == ".py" or (
        path.is_dir() and (path / "__init__.py").exists())}
    assert here <= names | {"conftest.py"}
