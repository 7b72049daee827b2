"""Steps recorded and replayed end as the same steps unrecorded: on the CPU by tapes, on a GPU see test_cuda.py."""

from unittest import mock

import pytest
import torch

import data.sources
import distillation
import train_teacher
from distillation import generator_step, make_learner, student_step
from models import Generator, build_model
from tools.benchmark import settings
from tests.helpers import read, student_flags, teacher_flags, weights_equal
from tests.tape import record_always, tapes_for_graphs
from engine.learner import DTYPES, Learner, Recorded, adam, distance, lowered


def both_phases(device, precision, optimizer, steps, record, side=16):
    """Losses of `steps` student and generator steps and the networks they leave, recorded as graphs or not.

    The student's learning rate is another at every step; the fourth step is the first that is recorded.
    """
    torch.manual_seed(0)
    args = settings(torch.device(device), precision, False, 4)
    args.optimizer = optimizer
    config = {"arch": "vdsr", "n_resblocks": 3, "n_feats": 16}
    dtype, D = DTYPES[precision], distance("MSE")
    teacher = lowered(build_model(config).to(device).requires_grad_(False), dtype)
    student = make_learner(args, build_model({**config, "n_feats": 8}).to(device))
    network = Generator(8, side // 2).to(device)
    generator = Learner(network, adam(network.parameters()), dtype)
    take_step = lambda x: student_step(student, teacher, x, D)
    learn = lambda z: generator_step(generator, student, teacher, z, 2, D, 1.0, 1.0)
    if record:
        take_step, learn = Recorded(take_step), Recorded(learn)
    losses, stream = [], torch.Generator(device).manual_seed(1)
    for step in range(steps):
        student.set_rate(0.01 / (1 + step))
        generator.set_rate(1e-3)
        losses.append(take_step(torch.rand(4, 1, side, side, generator=stream, device=device)).item())
        losses.append(learn(torch.randn(4, 8, generator=stream, device=device)).tolist()[0])
    student.check()
    generator.check()
    return torch.tensor(losses), [student.master, network]


def same_weights(networks, others):
    return all(torch.equal(a, b) for network, other in zip(networks, others)
               for a, b in zip(network.parameters(), other.parameters()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recording_changes_no_bit(precision, optimizer):
    with tapes_for_graphs() as tapes:
        losses, networks = both_phases("cpu", precision, optimizer, 6, False)
        assert not tapes
        again, others = both_phases("cpu", precision, optimizer, 6, True)
    assert len(tapes) == 2
    assert torch.equal(losses, again) and same_weights(networks, others)


@pytest.mark.parametrize("flags", [
    ("--source=generator", "--inc_num=2", "--inc_step=1"),
    ("--source=dead_leaves+generator", "--optimizer=adam", "--schedule=cosine", "--rounded"),
])
def test_a_distillation_of_recorded_steps_ends_the_same(run, images, tiny_teacher, tmp_path, flags):
    flags = (*student_flags(images, tiny_teacher), "--iter=6", *flags)
    assert run(distillation, *flags, "--save_dir=plain", "--output=plain.pth").returncode == 0
    with (tapes_for_graphs() as tapes, mock.patch.object(distillation, "recorded", record_always),
          mock.patch.object(data.sources, "recorded", record_always)):
        recorded = run(distillation, *flags, "--save_dir=recorded", "--output=recorded.pth")
    assert recorded.returncode == 0, recorded.stderr
    assert len(tapes) >= 5
    assert weights_equal(tmp_path / "plain.pth", tmp_path / "recorded.pth")
    plain, recorded = (read(tmp_path / name)[1] for name in ("plain", "recorded"))
    for line in (*plain, *recorded):
        line.pop("seconds")
    assert plain == recorded


def test_a_teacher_trained_by_recorded_steps_is_the_same(run, images, tmp_path):
    flags = (*teacher_flags(images), "--iter=6")
    assert run(train_teacher, *flags, "--save_dir=plain", "--output=plain.pth").returncode == 0
    with tapes_for_graphs() as tapes, mock.patch.object(train_teacher, "recorded", record_always):
        assert run(train_teacher, *flags, "--save_dir=recorded", "--output=recorded.pth").returncode == 0
    assert len(tapes) == 1
    assert weights_equal(tmp_path / "plain.pth", tmp_path / "recorded.pth")


def test_a_graph_for_every_shape_of_input():
    with tapes_for_graphs() as tapes:
        double = Recorded(lambda x: 2 * x)
        for _ in range(5):
            for size in (3, 4):
                x = torch.rand(size)
                assert torch.equal(double(x), 2 * x)
    assert len(tapes) == len(double.graphs) == 2


def test_what_a_graph_cannot_hold_shows():
    """A step that reads a value is refused; a number of Python's stays what it was when it was recorded."""
    ones, numbers = torch.ones(2), iter(range(10))
    with tapes_for_graphs():
        with pytest.raises(AssertionError, match="waits for the device"):
            step = Recorded(lambda x: x * x.sum().item())
            [step(ones) for _ in range(4)]
        count = Recorded(lambda x: x * next(numbers))
        assert [count(ones)[0].item() for _ in range(6)] == [0, 1, 2, 3, 3, 3]

        total = torch.zeros(2)
        add = Recorded(lambda x: total.add_(x))
        [add(ones) for _ in range(6)]
    assert torch.equal(total, 6 * ones)
