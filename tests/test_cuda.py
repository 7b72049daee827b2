"""What only a GPU can show; skipped where there is none."""

import copy
import os
import signal

import pytest
import torch
import torch.nn.functional as F

import distillation
from bicubic import imresize
from data.images import BUNDLED_TEST, bundled_photographs
from data.patches import TrainingPatches
from models.layers import conv_relu
from engine.run import Run
from tests.helpers import read, student_flags, weights_equal
from tests.test_recorded import both_phases, same_weights
from engine.learner import Recorded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once; deterministic products need it


@pytest.fixture
def deterministic():
    """While it lasts, only algorithms that give the same bits every time."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def test_imresize_replays_in_a_cuda_graph():
    x = torch.rand(4, 1, 48, 48, device="cuda")
    imresize(x, 1 / 3)  # the first call makes the weights
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = imresize(x, 1 / 3)
    x.copy_(torch.rand_like(x))
    graph.replay()
    torch.testing.assert_close(y.cpu(), imresize(x.cpu(), 1 / 3))


@pytest.mark.parametrize("size", [48, 600])
def test_imresize_on_the_gpu_equals_the_cpu(size):
    x = torch.rand(1, size, size)
    for scale in (2, 1 / 3, 0.7):
        torch.testing.assert_close(imresize(x.cuda(), scale).cpu(), imresize(x, scale), rtol=1e-5, atol=1e-5)
        assert imresize(x.cuda().half(), scale).dtype == torch.float16
    byte = (255 * x).byte()
    assert torch.equal(imresize(byte.cuda(), 1 / 3).cpu(), imresize(byte, 1 / 3))


def test_the_fused_kernel_reads_nothing_but_its_inputs():
    """It is given its own output's memory, whatever lies there, as a fourth operand that it is to ignore."""
    x = torch.randn(16, 32, 48, 48, device="cuda").half().to(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(32, 32, 3, padding=1, bias=False).cuda().half().to(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = F.relu(conv(x))
        for _ in range(3):
            waste = torch.full_like(plain, float("nan"))
            del waste  # the next tensor of this size lies there
            output = conv_relu(x, conv)
            torch.testing.assert_close(output, plain, rtol=1e-2, atol=1e-2)
            del output


def test_patches_are_those_of_the_cpu():
    paths = bundled_photographs(BUNDLED_TEST)[1:2]
    cpu, gpu = (TrainingPatches(paths, (2, 3, 4), 24, 1, device) for device in ("cpu", "cuda"))
    for a, b in zip(cpu.batch(3, 5), gpu.batch(3, 5)):
        assert torch.equal(a, b.cpu())


def test_fused_convolution_and_relu_are_the_two_operations():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 12, 12, device="cuda").half().to(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(16, 24, 3, padding=1).cuda().half().to(memory_format=torch.channels_last)
    single = copy.deepcopy(conv).float()
    results = []
    for function, given in ((lambda x: conv_relu(x, conv), x), (lambda x: F.relu(single(x)), x.float())):
        given = given.clone().requires_grad_()
        output = function(given)
        weights = (conv if given.dtype == torch.half else single).parameters()
        results.append([t.float() for t in (output, *torch.autograd.grad((output**2).sum(), (given, *weights)))])
    for fused, plain in zip(*results):
        assert (fused - plain).norm() < 3e-3 * plain.norm()


@pytest.mark.parametrize("precision, error", [("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2), ("fp16", 1e-2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_steps_in_any_precision_follow_the_plain_ones(precision, error, optimizer):
    """Step by step the losses of the same inputs, past the recording; the rates change with every step."""
    plain, _ = both_phases("cuda", "fp32", optimizer, 10, False, side=32)
    fast, networks = both_phases("cuda", precision, optimizer, 10, True, side=32)
    torch.testing.assert_close(fast, plain, rtol=error, atol=1e-5)
    assert all(p.dtype == torch.float32 for network in networks for p in network.parameters())


def test_recording_changes_no_bit(deterministic):
    (losses, networks), (again, others) = (both_phases("cuda", "fp32", "sgd", 8, record) for record in (False, True))
    assert torch.equal(losses, again) and same_weights(networks, others)


def test_a_graph_for_every_shape_of_input():
    double = Recorded(lambda x: 2 * x)
    for _ in range(5):
        for size in (3, 4):
            x = torch.rand(size, device="cuda")
            assert torch.equal(double(x), 2 * x)
    assert len(double.graphs) == 2


def test_a_deterministic_run_resumes_bit_for_bit(run, monkeypatch, images, tiny_teacher, deterministic):
    flags = (*student_flags(images, tiny_teacher), "--device=cuda", "--deterministic", "--inc_num=2", "--inc_step=1")
    assert run(distillation, *flags, "--save_dir=whole", "--output=whole.pth").returncode == 0
    done = Run.done

    def stopping(self, *place):
        if (self.epoch, *place) == (2, 0, 1):
            self.signal = signal.SIGTERM
        done(self, *place)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "done", stopping)
        assert run(distillation, *flags, "--save_dir=part", "--output=part.pth").returncode == 143
    assert run(distillation, *flags, "--save_dir=part", "--output=part.pth", "--resume=auto").returncode == 0
    assert weights_equal("whole.pth", "part.pth")


@pytest.mark.parametrize("source", ["generator", "noise", "folder"])
def test_distillation_runs_and_resumes(run, images, tiny_teacher, tmp_path, source):
    flags = (*student_flags(images, tiny_teacher), "--device=cuda", f"--source={source}")
    assert run(distillation, *flags, "--nEpochs=1", "--save_dir=a").returncode == 0
    resumed = run(distillation, *flags, "--nEpochs=2", "--save_dir=a", "--resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert [m["epoch"] for m in read(tmp_path / "a")[1]] == [1, 2]
    assert weights_equal(tmp_path / "student.pth", tmp_path / "a/model_last.pth")
