"""tools.export: a student as an ONNX file or a torch.export program, used as someone without this project would."""

import json
import sys
from functools import partial

import pytest
import torch
from torch import nn

from data.benchmark import Benchmarks, choose_sets
from models import EDSR, VDSR
from tests.helpers import assert_refused, contents
from tools import export
from utils import save_model

# A network that takes any size, but decides by it; torch.export cannot know which way.
DECIDING = """
from torch import nn
class Network(nn.Module):
    scale, channels = 2, 3
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
    def forward(self, x):
        y = nn.functional.pixel_shuffle(self.conv(x), 2)
        return y * 2 if x.shape[2] == 24 else y
teacher = student = Network
"""


def student(folder, network):
    """The network, whose checkpoint is left as student.pth."""
    save_model(network.eval().requires_grad_(False), folder / "student.pth")
    return network


@pytest.fixture
def exported(run, images, monkeypatch):
    """exported(suffix, flags...) runs the tool on student.pth, as if the package `missing` were not there."""

    def export_to(suffix, *flags, missing=None):
        for name in ("onnx", "onnxscript") if suffix == ".onnx" else ():
            pytest.importorskip(name)
        if missing:
            monkeypatch.setitem(sys.modules, missing, None)
        return run(export, "student.pth", f"out{suffix}", "--device=cpu", "--data_dir", images, *flags)

    return export_to


@pytest.mark.parametrize("kind, name, ratio", [("vdsr", "input", ""), ("edsr", "lr", "3*")])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@torch.no_grad()
def test_a_file_by_itself(exported, images, tmp_path, suffix, kind, name, ratio):
    network = student(tmp_path, VDSR(2, 4) if kind == "vdsr" else EDSR(1, 4, scale=3, res_scale=0.5))
    process = exported(suffix)
    assert process.returncode == 0 and "rror" not in process.stderr, process.stderr
    assert "checked: within" in process.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"out{suffix}", "student.pth"]
    lone = (tmp_path / f"out{suffix}").rename(tmp_path / f"renamed{suffix}")
    assert b"/site-packages/" not in lone.read_bytes() and f"{kind}.py".encode() not in lone.read_bytes()
    if suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(lone, providers=["CPUExecutionProvider"])
        x, y = session.get_inputs()[0], session.get_outputs()[0]
        assert (x.name, x.shape) == (name, ["batch", network.channels, "height", "width"])
        assert (y.name, y.shape) == ("sr", ["batch", network.channels, f"{ratio}height", f"{ratio}width"])
        function = lambda x: torch.from_numpy(session.run(["sr"], {name: x.numpy()})[0])
        texts = session.get_modelmeta().custom_metadata_map
        metadata = {key: text if key in ("project", "input", "output", "torch") else json.loads(text)
                    for key, text in texts.items()}
    else:
        extra = {"metadata.json": ""}
        function = torch.export.load(lone, extra_files=extra).module()
        metadata = json.loads(extra["metadata.json"])
    for batch, *size in (1, 37, 53), (2, 20, 31), (1, 5, 7), (3, 70, 90):
        x = torch.rand(batch, network.channels, *size)
        torch.testing.assert_close(function(x), network(x), atol=1e-5, rtol=0)
    validation = Benchmarks(choose_sets(images, "Set5"), network.scales, "cpu")
    assert metadata["score"] == {"set": "Set5", "protocol": validation.protocol({"student": network}),
                                 "psnr": pytest.approx(validation.psnr(network), abs=1e-6)}
    assert metadata["scales"] == list(network.scales) and metadata["architecture"] == network.config
    assert metadata["input"].startswith("luma (BT" if kind == "vdsr" else "RGB (0 to 255) / 255 of the LR image")
    assert metadata["input"].endswith("upscaled by bicubic to the output's size") == (kind == "vdsr")


def test_a_network_of_ones_own(exported, tmp_path):
    """Scored on scikit-image's photographs where there are no others."""
    (tmp_path / "own.py").write_text(DECIDING.replace("y * 2 if x.shape[2] == 24 else y", "y"))
    network = nn.Conv2d(3, 12, 3, padding=1)
    torch.save({f"conv.{k}": v for k, v in network.state_dict().items()}, tmp_path / "student.pth")
    process = exported(".pt2", "--model=own.py", "--data_dir=nowhere")
    assert process.returncode == 0 and "skimage x2" in process.stdout, process.stderr
    x, function = torch.rand(1, 3, 9, 11), torch.export.load(tmp_path / "out.pt2").module()
    torch.testing.assert_close(function(x), nn.functional.pixel_shuffle(network(x), 2))
    (tmp_path / "deciding.py").write_text(DECIDING)
    (tmp_path / "out.pt2").unlink()
    assert_refused(exported(".pt2", "--model=deciding.py"), ".pt2", "any batch, height")
    assert not (tmp_path / "out.pt2").exists()


def test_arguments_that_do_not_fit_are_refused(run, exported, tmp_path):
    student(tmp_path, VDSR(2, 4))
    (tmp_path / "link.pt2").symlink_to("student.pth")
    (tmp_path / "out.pt2").mkdir()
    before = contents(tmp_path)
    for arguments, word in (
        (["student.pth", "out.pth"], "out.pth: the name must end in .onnx or .pt2"), (["no.pth", "a.pt2"], "no.pth"),
        (["student.pth", ""], ".onnx or .pt2"), (["student.pth"], "--compare"),
        (["student.pth", "a.pt2", "--compare=student.pth"], "--compare"),
        (["./student.pth", "link.pt2"], "link.pt2: is the student's own file")):
        assert_refused(run(export, *arguments), word)
    assert_refused(exported(".pt2"), "out.pt2", "cannot be written")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change, word", [
    (lambda x, y: y + 2e-5 * (x.shape[3] > 40), "difference: 2.0"), (lambda x, y: y * float("nan"), "nan"),
    (lambda x, y: 1 / 0, "division by zero")])
def test_a_file_that_gives_something_else_is_not_written(exported, tmp_path, monkeypatch, change, word):
    network = student(tmp_path, EDSR(1, 4, scale=3))
    (tmp_path / "out.pt2").write_text("the one before")
    read = lambda content: lambda x: change(x, network(x))
    monkeypatch.setattr(export, "FORMATS", {".pt2": (lambda *_: b"file", read, 1e-5)})
    assert_refused(exported(".pt2"), ".pt2", word)
    assert (tmp_path / "out.pt2").read_text() == "the one before" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing(exported, tmp_path, missing):
    """Without onnxruntime the file is written, and said to be unchecked."""
    student(tmp_path, VDSR(2, 4))
    process = exported(".onnx", missing=missing)
    assert (tmp_path / "out.onnx").exists() == (missing == "onnxruntime")
    if missing == "onnxruntime":
        assert process.returncode == 0 and "not checked: onnxruntime is not installed" in process.stdout
    else:
        assert_refused(process, f"the package {missing};", "pip install onnx onnxscript")


@pytest.mark.parametrize("missing", ["onnx", None])
def test_what_a_student_saves_as_a_table(run, tmp_path, monkeypatch, missing):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(export, "TIMED", (24, 16))
    monkeypatch.setattr(export, "milliseconds", partial(export.milliseconds, least=0))
    monkeypatch.setitem(sys.modules, missing or "no package", None)
    save_model(VDSR(2, 8), tmp_path / "teacher.pth")
    student(tmp_path, VDSR(2, 4))
    printed = run(export, "student.pth", "--compare=teacher.pth", "--threads=1")
    assert ("pip install onnx" in printed.stderr) == (missing == "onnx")
    # x3, an LR pixel: head 3 -> 4, a block and the body's last of 4 -> 4 each, upsampler 4 -> 36; tail 4 -> 3 at nine
    assert export.multiply_adds(EDSR(1, 4, scale=3)) == pytest.approx(9 * (12 + 3 * 16 + 144 + 9 * 12) / 9 * 1e6)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.stdout.splitlines() if line[:1] == "|"]
    columns = dict(zip(rows[0], zip(*rows[2:])))
    assert columns[""] == ("teacher", "student", "less by")
    assert columns["parameters"] == ("1,296", "360", "3.6x")
    assert columns["multiply-adds per output megapixel, 10^9"] == ("1.3", "0.36", "3.6x")
    assert columns["checkpoint, MB"][1] == f"{(tmp_path / 'student.pth').stat().st_size / 1e6:.3g}"
    assert float(columns["torch, 1 thread, ms"][0]) > 0 and torch.get_num_threads() == 1
    assert all((column in columns) == (missing is None) for column in (".onnx, MB", "onnxruntime, 1 thread, ms"))
