"""--model: distilling a network that this project does not have, the ESPCN of the README."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import distillation
from tests.helpers import assert_refused, read, student_flags

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ESPCN = re.search(r"```python\n(# espcn.py.*?)```", README, re.S)[1]
FLAGS = ("--model=espcn.py", "--pretrained=espcn.pth")


def write(folder, old="", new=""):
    """The README's espcn.py, with `new` in the place of `old`, and a teacher's weights, as DataParallel has them."""
    assert old in ESPCN
    path = folder / "espcn.py"
    path.write_text(ESPCN.replace(old, new) if old else ESPCN)
    spec = importlib.util.spec_from_file_location("espcn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    weights = module.teacher().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, folder / "espcn.pth")


@pytest.mark.parametrize("channels", [1, 3])
def test_espcn_is_distilled_resumed_and_scored(run, images, tmp_path, channels):
    """The loss falls, a resumed run ends bit for bit as the whole one, and its file is scored again."""
    write(tmp_path, "channels = 3", f"channels = {channels}")
    flags = (*student_flags(images, "espcn.pth"), *FLAGS, "--optimizer=adam", "--iter=10", "--lr=3e-3")
    first = run(distillation, *flags, "--save_dir=a")
    assert first.returncode == 0, first.stderr
    results, metrics = read(tmp_path / "a")
    assert metrics[1]["student"] < 0.8 * metrics[0]["student"]
    assert ("EDSR's protocol" if channels == 3 else "Table 1's protocol") in results["protocol"]

    part = (*flags, "--save_dir=b", "--output=b.pth")
    assert run(distillation, *part, "--nEpochs=1").returncode == 0
    assert run(distillation, *part, "--resume=auto").returncode == 0
    a, b = (torch.load(name, weights_only=True)["state_dict"] for name in ("student.pth", "b.pth"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    again = run(distillation, "--test_only", *FLAGS, "--student=student.pth", "--data_dir", images, "--data_test=Set5",
                "--save_dir=c", "--device=cpu")
    assert again.returncode == 0, again.stderr
    scores = tmp_path / "c/results.json"
    assert f'"psnr": {results["results"]["Set5"]["3"]["student"]["psnr"]}' in scores.read_text()
    assert_refused(run(distillation, "--pretrained=student.pth", "--data_dir", images), "student.pth", "--model")


@pytest.mark.parametrize("old, new, words", [
    ("scale = 3", "scale = 5", ("espcn.py", "`scale`")),
    ("channels = 3", "channels = 4", ("espcn.py", "`channels`")),
    ("return ESPCN(32)", "return 1 / 0", ("student() ended with ZeroDivisionError",)),
    ("def student", "def pupil", ("student() ended with AttributeError",)),
    ("PixelShuffle(3)", "PixelShuffle(1)", ("the teacher makes (1, 27, 12, 16) of (1, 3, 12, 16)", "(1, 3, 36, 48)")),
])
def test_a_file_that_cannot_serve_is_refused(run, images, tmp_path, old, new, words):
    write(tmp_path, old, new)
    assert_refused(run(distillation, *student_flags(images, "espcn.pth"), *FLAGS), *words)


def test_flags_and_files_that_do_not_go_with_it(run, images, tiny_teacher, tmp_path):
    write(tmp_path)
    flags = student_flags(images, "espcn.pth")
    assert_refused(run(distillation, *flags, "--model=nowhere.py"), "nowhere.py", "no such file")
    assert_refused(run(distillation, *flags, "--model=espcn.py", "--inc_num=2", "--inc_step=1"), "--inc_num 2")
    assert_refused(run(distillation, *flags, "--model=espcn.py", "--precision=fp16"), "--precision fp16")
    assert_refused(run(distillation, *flags, "--model=espcn.py", "--scale=2"), "--scale 2", "espcn.pth")
    assert_refused(run(distillation, *flags, "--model=espcn.py", "--pretrained", tiny_teacher), "layers.0.weight")
