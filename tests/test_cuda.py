"""What only a GPU can show; skipped where there is none."""

import os
import signal

import pytest
import torch

import distillation
from bicubic import imresize
from data.images import BUNDLED_TEST, bundled_photographs
from data.patches import TrainingPatches
from distillation import generator_step, label
from engine.graphs import Recorder, eager
from engine.learner import Learner, distance, make_optimizer, train_step
from engine.run import Run
from models import VDSR, Generator
from tests.helpers import read, student_flags, weights_equal
from tests.test_graphs import check_kinds_of_arguments, same_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GPU = torch.device("cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once; deterministic products need it


@pytest.fixture
def deterministic():
    """While it lasts, only algorithms that give the same bits every time."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def both_phases(precision, optimizer, steps, call):
    """Losses of `steps` student and generator steps, each at another rate and weight, and the networks they leave."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    teacher, network = (VDSR(3, n_feats).cuda() for n_feats in (16, 8))
    teacher.requires_grad_(False)
    student = Learner(network, make_optimizer(network, optimizer, 0.01, weight_decay=1e-4), precision, clip=0.4)
    generator = Generator(8, 16).cuda()
    learner, D = Learner(generator, make_optimizer(generator, "adam", 1e-3)), distance("MSE")
    losses, stream = [], torch.Generator("cuda").manual_seed(1)
    for step in range(steps):
        student.set_rate(1 / (1 + step))
        x = torch.rand(4, 1, 32, 32, generator=stream, device="cuda")
        losses.append(call(train_step, student, x, call(label, teacher, precision, x), D).item())
        z = torch.randn(4, 8, generator=stream, device="cuda")
        losses += call(generator_step, learner, student, teacher, z, 2, D, 1.0 + step, 0.1 * step).tolist()
    student.check()
    learner.check()
    return torch.tensor(losses), [network, generator]


@pytest.mark.parametrize("size", [48, 600])
def test_imresize_and_patches_on_the_gpu_equal_the_cpus(size):
    x = torch.rand(1, size, size)
    for scale in (2, 1 / 3, 0.7):
        torch.testing.assert_close(imresize(x.cuda(), scale).cpu(), imresize(x, scale), rtol=1e-5, atol=1e-5)
        assert imresize(x.cuda().half(), scale).dtype == torch.float16
    byte = (255 * x).byte()
    assert torch.equal(imresize(byte.cuda(), 1 / 3).cpu(), imresize(byte, 1 / 3))
    paths = bundled_photographs(BUNDLED_TEST)[1:2]
    cpu, gpu = (TrainingPatches(paths, (2, 3, 4), 24, 1, device).batch(3, 5) for device in ("cpu", "cuda"))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, gpu))


@pytest.mark.parametrize("precision, error", [("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2), ("fp16", 1e-2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_steps_in_any_precision_follow_the_plain_ones(precision, error, optimizer):
    plain, _ = both_phases("fp32", optimizer, 10, eager)
    fast, networks = both_phases(precision, optimizer, 10, Recorder(GPU))
    torch.testing.assert_close(fast, plain, rtol=error, atol=1e-5)
    assert all(p.dtype == torch.float32 for network in networks for p in network.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_recording_changes_no_bit(deterministic, optimizer):
    losses, networks = both_phases("fp32", optimizer, 8, eager)
    again, others = both_phases("fp32", optimizer, 8, Recorder(GPU))
    assert torch.equal(losses, again) and same_weights(networks, others)


def test_a_deterministic_run_resumes_bit_for_bit(run, done, monkeypatch, images, tiny_teacher, deterministic):
    flags = (*student_flags(images, tiny_teacher), "--device=cuda", "--deterministic", "--inc_num=2", "--inc_step=1")
    done(distillation, *flags, "--save_dir=whole", "--output=whole.pth")
    advance = Run.advance

    def stopping(self, *place):
        if (self.epoch, *place) == (2, 0, 1):
            self.signal = signal.SIGTERM
        advance(self, *place)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", stopping)
        assert run(distillation, *flags, "--save_dir=part", "--output=part.pth").returncode == 143
    done(distillation, *flags, "--save_dir=part", "--output=part.pth", "--resume=auto")
    assert weights_equal("whole.pth", "part.pth")


@pytest.mark.parametrize("way", ["--source=generator", "--source=noise", "--source=folder", "--source=dead_leaves",
                                 "--optimizer=adam", "--recipe=fast"])
def test_distillation_runs_and_resumes(done, images, tiny_teacher, tmp_path, way):
    flags = (*student_flags(images, tiny_teacher), "--device=cuda", way, "--save_dir=a")
    done(distillation, *flags, "--nEpochs=1")
    done(distillation, *flags, "--resume=auto")
    assert [m["epoch"] for m in read(tmp_path / "a")[1]] == [1, 2]
    assert weights_equal(tmp_path / "student.pth", tmp_path / "a/model_last.pth")


def test_imresize_of_large_images_replays_in_a_cuda_graph():
    third, record = lambda x: imresize(x, 1 / 3), Recorder(GPU)
    for _ in range(5):
        x = torch.rand(1, 1, 600, 600)
        torch.testing.assert_close(record(third, x.cuda()).cpu(), third(x), rtol=1e-5, atol=1e-5)


def test_what_kinds_of_arguments_do():
    check_kinds_of_arguments(Recorder(GPU), GPU)
