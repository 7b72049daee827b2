"""--model: a network that this project does not have, from a file of one's own: the README's ESPCN and odder ones."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

import distillation
import models
from models.custom import check_learns, custom_network
from tests.helpers import ROOT, assert_refused, read, student_flags
from utils import InputError, fingerprint, save_model

ESPCN = re.search(r"```python\n(# espcn.py.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
FLAGS = ("--model=espcn.py", "--pretrained=espcn.pth")
ODD = """from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from utils import SCALE  # beside it, under a name of this project's, as models is
import models.blocks

@dataclass
class Width:
    n: int = 8

class Net(nn.Module):
    scale, channels = SCALE, 3

    def __init__(self, width: Width):
        super().__init__()
        self.module = nn.Sequential(models.blocks.conv(3, width.n), nn.BatchNorm2d(width.n),
                                    models.blocks.conv(width.n, 12), nn.PixelShuffle(2))
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("mask", torch.tensor([0, -torch.inf]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        return self.module(x)

def teacher():
    return Net(Width())

def student():
    import later
    return Net(Width(later.HALF))
"""


def write(folder, old, new):
    """The README's espcn.py with `new` in the place of `old`."""
    (folder / "espcn.py").write_text(ESPCN.replace(old, new))
    return folder / "espcn.py"


@pytest.mark.parametrize("channels", [1, 3])
def test_espcn_is_distilled_resumed_and_scored(run, done, images, tiny_teacher, tmp_path, channels):
    path = write(tmp_path, "channels = 3", f"channels = {channels}")
    path.write_text(path.read_text().replace("nn.Tanh()", "nn.Dropout(0.1)", 1))  # random numbers of its own
    weights = custom_network(path, "teacher").state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "espcn.pth")
    flags = (*student_flags(images, "espcn.pth"), *FLAGS, "--optimizer=adam", "--iter=10", "--lr=3e-3")
    done(distillation, *flags, "--save_dir=a")
    results, metrics = read(tmp_path / "a")
    assert metrics[1]["student"] < 0.8 * metrics[0]["student"]
    assert ("EDSR's protocol" if channels == 3 else "Table 1's protocol") in results["protocol"]
    part = (*flags, "--save_dir=b", "--output=b.pth")
    done(distillation, *part, "--nEpochs=1")
    done(distillation, *part, "--resume=auto")
    a, b = (fingerprint(custom_network("espcn.py", "student", name)) for name in ("student.pth", "b.pth"))
    assert a == b
    done(distillation, "--test_only", *FLAGS, "--student=student.pth", "--data_dir", images, "--data_test=Set5",
         "--save_dir=c", "--device=cpu")
    assert results["results"] == json.loads((tmp_path / "c/results.json").read_text())["results"]
    assert_refused(run(distillation, "--pretrained=b.pth", "--data_dir", images), "b.pth", "--model")
    text = (tmp_path / "espcn.py").read_text()
    for name, body in (("frozen", "return ESPCN(32).requires_grad_(False)"),
                       ("other", "class Other(ESPCN):\n        channels = 4 - ESPCN.channels\n    return Other(32)")):
        (tmp_path / f"{name}.py").write_text(text.replace("return ESPCN(32)", body))
    for more, *words in (
        (["--model=nowhere.py"], "nowhere.py", "no such file"), (["--inc_num=2", "--inc_step=1"], "--inc_num 2"),
        (["--scale=2"], "--scale 2", "espcn.pth"), (["--pretrained", tiny_teacher], "layers.0.weight"),
        (["--student_init=teacher"], "--student_init teacher: a network of --model", "use --student_init=random"),
        (["--n_feats=4"], "--n_resblocks, --n_feats: are not for networks of --model"),
        (["--model=other.py"], "student(): has another architecture, scale or channels than the teacher espcn.pth"),
        (["--model=frozen.py"], "frozen.py: the student's output depends on no parameter that learns")):
        assert_refused(run(distillation, *flags, "--save_dir=d", *more), *words)


@pytest.mark.parametrize("old, new, words", [
    ("channels = 3", "channels = 4", "must return a module with `scale` .* and `channels`"),
    ("scale = 3", "scale, config = 3, None", "has a `config` of its own"),
    ("scale = 3", "scale, receptive_field = 3, -1", "`receptive_field`"),
    ("scale = 3", "scale, receptive_field = 3, nn.ReLU()", "its `receptive_field`, if any, must be a number of pixels"),
    ("return ESPCN(32)", "return 1 / 0", "ended with ZeroDivisionError: division by zero (espcn.py, line HERE)"),
    ("return ESPCN(32)", "raise SystemExit('a\\nb')", "ended with SystemExit: a b (espcn.py, line HERE)"),
    ("def student", "def student of", "ended with SyntaxError: .* (espcn.py, line HERE)"),
    ("self.layers(x)", "self.layers(x, 1)", "given (2, 3, 12, 16), ended with TypeError: .* (espcn.py, line HERE)"),
    ("def student", "def pupil", "student() ended with AttributeError"),
    ("PixelShuffle(3)", "PixelShuffle(1)", "makes (2, 27, 12, 16) of (2, 3, 12, 16), expected (2, 3, 36, 48)"),
    ("self.layers(x)", "(x,) if self.training else self.layers(x)", "makes tuple of (2, 3, 12, 16) in training"),
    ("self.layers(x)", "self.layers(x).detach().numpy()", "makes ndarray of (2, 3, 12, 16), expected (2, 3, 36, 48)"),
    ("self.layers(x)", "self.layers(x) + self.layers[0](x).tanh_().mul_(0).sum()", "learning, ended with RuntimeEr")])
def test_a_file_that_cannot_serve_is_refused(tmp_path, old, new, words):
    words = words.replace("HERE", str(ESPCN[:ESPCN.index(old)].count("\n") + 1))
    pattern = "^--model .*espcn.py: [^\n]*" + re.escape(words).replace(r"\.\*", ".*") + "[^\n]*$"
    for _ in range(2):  # it is not kept either
        with pytest.raises(InputError, match=pattern):
            check_learns(custom_network(path := write(tmp_path, old, new), "student"), path)


def test_an_odd_file_runs_once_and_what_it_trained_loads(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name, text in (("odd.py", ODD), ("utils.py", "SCALE = 2"), ("later.py", "HALF = 4"), ("models/__init__.py", ""),
                       ("models/blocks.py", "from torch import nn\ndef conv(a, b): return nn.Conv2d(a, b, 1)")):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    path = Path(tmp_path.name, "odd.py")
    teacher, student = custom_network(tmp_path / "odd.py", "teacher"), custom_network(path, "student")
    assert type(teacher) is type(student) and importlib.import_module("models") is models
    assert (teacher.module[0].out_channels, student.module[0].out_channels) == (8, 4)
    check_learns(custom_network(path, "student"), path)
    assert student.module[1].num_batches_tracked == student.module[1].running_mean.count_nonzero() == 0
    student.train()(torch.rand(2, 3, 8, 8))
    save_model(student, tmp_path / "student.pth")
    loaded = custom_network(path, "student", tmp_path / "student.pth")
    assert fingerprint(loaded) == fingerprint(student)
    assert loaded.module[1].num_batches_tracked == 1 and not loaded.training
    assert not loaded.frozen.requires_grad and loaded.module[0].weight.requires_grad
