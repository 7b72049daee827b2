"""--export: a student as an ONNX file or a torch.export program, used as someone without this project would."""

import json
import sys

import pytest
import torch
from torch import nn

import distillation
from bicubic import imresize
from data.benchmark import prepare, score
from data.images import read_image
from models import EDSR, VDSR, build_model
from tools import export
from tests.helpers import assert_refused
from utils import save_model

OTHER_SIZES = ((1, 37, 53), (2, 20, 31), (1, 5, 7), (3, 70, 90))
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


def network_of(kind):
    """A tiny network with values of its own in all tensors, biases too."""
    torch.manual_seed(0)
    config = {"vdsr": {"arch": "vdsr", "n_resblocks": 2, "n_feats": 4},
              "edsr": {"arch": "edsr", "n_resblocks": 1, "n_feats": 4, "scale": 3, "res_scale": 0.5}}[kind]
    return build_model(config).eval().requires_grad_(False)


@pytest.fixture
def student(tmp_path):
    """student(kind) leaves student.pth and returns the network."""

    def save(kind):
        network = network_of(kind)
        save_model(network, tmp_path / "student.pth")
        return network

    return save


def onnx_session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def exported(run, suffix, *flags):
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    return run(distillation, "--test_only", "--student=student.pth", f"--export=out{suffix}", "--device=cpu", *flags)


@torch.no_grad()
def assert_same(function, network, tolerance):
    for batch, *size in OTHER_SIZES:
        x = torch.rand(batch, network.channels, *size)
        torch.testing.assert_close(torch.as_tensor(function(x)), network(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind, name", [("vdsr", "input"), ("edsr", "lr")])
def test_an_onnx_file_by_itself(run, images, tmp_path, student, kind, name):
    """One file with all in it: any batch, height and width, and the same output as torch."""
    network = student(kind)
    process = exported(run, ".onnx", "--data_dir", images)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "student.pth"]
    lone = tmp_path / "elsewhere" / "renamed.onnx"
    lone.parent.mkdir()
    (tmp_path / "out.onnx").rename(lone)
    session = onnx_session(lone)
    assert [i.name for i in session.get_inputs()] == [name] and [o.name for o in session.get_outputs()] == ["sr"]
    assert session.get_inputs()[0].shape == ["batch", network.channels, "height", "width"]
    assert_same(lambda x: session.run(["sr"], {name: x.numpy()})[0], network, 1e-4)
    assert "checked: within" in process.stdout
    assert b"/site-packages/" not in lone.read_bytes() and b"vdsr.py" not in lone.read_bytes()


@pytest.mark.parametrize("kind", ["vdsr", "edsr"])
def test_a_pt2_file_by_itself(run, images, tmp_path, student, kind):
    network = student(kind)
    process = exported(run, ".pt2", "--data_dir", images)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pt2", "student.pth"]
    assert_same(torch.export.load(tmp_path / "out.pt2").module(), network, 1e-5)
    assert b"/site-packages/" not in (tmp_path / "out.pt2").read_bytes()


def metadata_of(path):
    if path.suffix == ".onnx":
        return onnx_session(path).get_modelmeta().custom_metadata_map
    extra = {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["metadata.json"])


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_metadata_of_a_luma_network(run, images, tmp_path, student, suffix):
    """With the score of both images, computed here step by step."""
    network = student("vdsr")
    assert exported(run, suffix, "--data_dir", images, "--scale=3").returncode == 0
    found = metadata_of(tmp_path / f"out{suffix}")
    if suffix == ".onnx":
        found = {k: v if k in ("project", "input", "output", "torch") else json.loads(v) for k, v in found.items()}
    psnr = []
    for i in range(2):
        pair = prepare(read_image(images / f"benchmark/Set5/HR/{i}.png"), 3)
        with torch.no_grad():
            output = network((imresize(pair.lr, 3) / 255).float()[None])
        psnr.append(score(255 * output[0, 0].double().numpy(), pair.hr, 3)["psnr"])
    assert found.pop("score") == {"set": "Set5", "protocol": "luma, nothing rounded (Table 1's protocol)",
                                  "psnr": {"3": pytest.approx(sum(psnr) / 2, abs=1e-6)}}
    assert found == {
        "project": "Data-free knowledge distillation for image super-resolution",
        "architecture": {"arch": "vdsr", "n_resblocks": 2, "n_feats": 4}, "parameters": 9 * (4 + 2 * 16 + 4),
        "scales": [2, 3, 4], "channels": 1, "value_range": [0, 1],
        "input": "luma (BT.601, 16 to 235) / 255 of the LR image, upscaled by bicubic to the output's size",
        "output": "luma (BT.601, 16 to 235) / 255 of the SR image, not clipped", "torch": torch.__version__}


def test_metadata_of_an_rgb_network_scored_without_any_images(run, tmp_path, student):
    student("edsr")
    assert exported(run, ".pt2", "--data_dir=nowhere").returncode == 0
    found = metadata_of(tmp_path / "out.pt2")
    assert found["input"] == "RGB (0 to 255) / 255 of the LR image"
    assert (found["scales"], found["channels"], found["architecture"]["res_scale"]) == ([3], 3, 0.5)
    assert found["score"]["set"] == "skimage" and "EDSR" in found["score"]["protocol"]
    assert set(found["score"]["psnr"]) == {"3"}


def test_a_network_of_ones_own(run, images, tmp_path):
    (tmp_path / "own.py").write_text(DECIDING.replace("y * 2 if x.shape[2] == 24 else y", "y"))
    network = nn.Conv2d(3, 12, 3, padding=1)
    torch.save({f"conv.{k}": v for k, v in network.state_dict().items()}, tmp_path / "student.pth")
    process = exported(run, ".pt2", "--model=own.py", "--data_dir", images)
    assert process.returncode == 0, process.stderr
    x, function = torch.rand(1, 3, 9, 11), torch.export.load(tmp_path / "out.pt2").module()
    torch.testing.assert_close(function(x), nn.functional.pixel_shuffle(network(x), 2))
    (tmp_path / "own.py").write_text(DECIDING)
    (tmp_path / "out.pt2").unlink()
    assert_refused(exported(run, ".pt2", "--model=own.py", "--data_dir", images), "--export", "any batch, height")
    assert not (tmp_path / "out.pt2").exists()


def test_flags_that_do_not_fit_are_refused(run, images, tmp_path, student):
    student("vdsr")
    test = ("--test_only", "--student=student.pth", "--device=cpu", "--data_dir", images)
    for name in ("out.pth", "out", ""):
        assert_refused(run(distillation, *test, f"--export={name}"), f"--export {name}", ".onnx or .pt2")
    assert_refused(run(distillation, *test[1:], "--export=out.pt2"), "--export out.pt2", "--test_only")
    assert_refused(run(distillation, test[0], "--export=out.pt2"), "--export out.pt2", "--student")
    assert_refused(run(distillation, "--test_only", "--student=no.pth", "--export=out.pt2"), "no.pth")
    (tmp_path / "student.pth").rename(tmp_path / "out.pt2")
    before = (tmp_path / "out.pt2").read_bytes()
    assert_refused(run(distillation, "--test_only", "--student=./out.pt2", "--export=out.pt2"), "student's own file")
    assert [p.name for p in tmp_path.iterdir()] == ["out.pt2"] and (tmp_path / "out.pt2").read_bytes() == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_line(run, student, tmp_path, monkeypatch, package):
    student("vdsr")
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else object())
    process = run(distillation, "--test_only", "--student=student.pth", "--export=out.onnx", "--device=cpu")
    assert_refused(process, f"the package {package};", "pip install onnx onnxscript")
    assert not (tmp_path / "out.onnx").exists()


def test_without_onnxruntime_the_file_is_written_and_said_to_be_unchecked(run, images, student, tmp_path, monkeypatch):
    student("vdsr")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    process = exported(run, ".onnx", "--data_dir", images)
    assert process.returncode == 0 and "not checked: onnxruntime is not installed" in process.stdout
    assert "checked: within" not in process.stdout and (tmp_path / "out.onnx").stat().st_size > 4 * 360


@pytest.mark.parametrize("change, words", [
    (lambda y: y + 2e-5, "differs from torch by 2.0e-05"),
    (lambda y: y[..., 1:], "by inf"),
    (lambda y: y * float("nan"), "by inf"),
    (lambda y: 1 / 0, "does not run (division by zero)"),
])
def test_a_file_that_gives_something_else_is_not_written(run, images, student, tmp_path, monkeypatch, change, words):
    network = student("edsr")
    (tmp_path / "out.pt2").write_text("the one before")
    monkeypatch.setattr(export, "FORMATS", {".pt2": (lambda *_: b"file", lambda _: lambda x: change(network(x)))})
    assert_refused(exported(run, ".pt2", "--data_dir", images), "--export", words)
    assert (tmp_path / "out.pt2").read_text() == "the one before" and len(list(tmp_path.iterdir())) == 2


def test_the_largest_difference():
    network = network_of("edsr")
    wrong_when_large = lambda x: network(x) + (1e-3 if x.shape[3] > 40 else 0)
    assert export.largest_difference(wrong_when_large, network) == pytest.approx(1e-3, rel=1e-2)
    assert export.largest_difference(network, network) == 0


def test_nothing_half_written_where_writing_fails(run, images, student, tmp_path, monkeypatch):
    student("edsr")
    (tmp_path / "out.pt2").mkdir()
    assert_refused(exported(run, ".pt2", "--data_dir", images), "out.pt2", "cannot be written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pt2", "student.pth"]


def test_multiply_adds_counted_by_hand():
    assert export.multiply_adds(VDSR(2, 4)) == 9 * (4 + 2 * 16 + 4) * 1e6
    # x3, an LR pixel: head 3 -> 4, a block and the body's last of 4 -> 4 each, upsampler 4 -> 36; tail 4 -> 3 at nine
    assert export.multiply_adds(EDSR(1, 4, scale=3)) == pytest.approx(9 * (12 + 3 * 16 + 144 + 9 * 12) / 9 * 1e6)


def test_latency_is_the_median_after_warming_up(monkeypatch):
    waits, clock = iter([100.0, 50.0, 3.0, 1.0, 2.0, 9.0, 4.0]), [0.0]

    def function(x):
        clock[0] += next(waits)

    monkeypatch.setattr(export.time, "perf_counter", lambda: clock[0])
    assert export.latency(function, None, calls=5) == 3000


def test_what_a_student_saves_as_a_table(student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "TIMED", (24, 16))
    monkeypatch.setitem(sys.modules, "onnx", None)
    save_model(VDSR(2, 8), tmp_path / "teacher.pth")
    student("vdsr")
    export.main(export.parse_arguments([f"--pretrained={tmp_path}/teacher.pth", f"--student={tmp_path}/student.pth"]))
    printed = capsys.readouterr()
    assert "pip install onnx" in printed.err
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.out.splitlines()[2:]]
    columns = dict(zip(rows[0], zip(*rows[2:])))
    assert columns[""] == ("teacher", "student", "less by")
    assert columns["parameters"] == ("1,296", "360", "3.6x")
    assert columns["multiply-adds per output megapixel, 10^9"] == ("1.3", "0.36", "3.6x")
    assert columns["checkpoint, MB"][1] == f"{(tmp_path / 'student.pth').stat().st_size / 1e6:.3g}"
    assert float(columns["torch, 1 thread, ms"][0]) > 0 and ".onnx, MB" not in columns


def test_what_onnx_costs(student, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(export, "TIMED", (24, 16))
    threads = torch.get_num_threads()
    row = export.cost(student("vdsr"), tmp_path / "student.pth")
    assert 4 * 360 < 1e6 * row[".onnx, MB"] < 100_000
    assert row["onnxruntime, 1 thread, ms"] > 0 and torch.get_num_threads() == threads
