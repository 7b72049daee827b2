"""Steps recorded and replayed end as the same steps unrecorded: on the CPU by tapes, on a GPU see test_cuda.py."""

from types import SimpleNamespace

import pytest
import torch

from distillation import Settings, distil, labelled, make_generators, make_source
from engine.graphs import Recorder, eager, recorder
from models import VDSR
from tests.tape import tapes_for_graphs
from utils import InputError

CPU = torch.device("cpu")


def same_weights(networks, others):
    return all(torch.equal(a, b) for network, other in zip(networks, others)
               for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("source, flags", [
    ("generator", dict(inc_num=2, inc_step=1)), ("generator", dict(optimizer="adam", precision="fp16", lr=1e-3)),
    ("dead_leaves+generator", dict(optimizer="muon", schedule="cosine", rounded=True, precision="bf16"))])
def test_a_distillation_of_recorded_steps_ends_the_same(source, flags):
    settings = Settings(**dict(scales=(2, 3), nEpochs=2, iter=10, stu_step=2, batchSize=2, lr=0.01, latent=5) | flags)
    args = SimpleNamespace(**vars(settings) | dict(source=source, input_size=32, bank=0, device=CPU))

    def whole(call):
        torch.manual_seed(0)
        teacher, student = VDSR(4, 8).requires_grad_(False), VDSR(4 // settings.inc_num, 4)
        generators = make_generators(settings, 32, teacher, CPU)
        images = labelled(args, settings, teacher, make_source(args, settings, teacher, generators, call), call)
        distil(teacher, student, images, settings, generators, 4, call=call)
        return [student, *(generator.network for generator in generators.values())]

    with tapes_for_graphs() as tapes:
        networks, others = whole(eager), whole(Recorder(CPU))
    assert len(tapes) >= 6 and same_weights(networks, others)


def check_kinds_of_arguments(record, device):
    """Tensors, floats and generators are inputs of one graph; another shape, number or name is another graph."""

    def function(x, factor, power, stream, sign):
        return factor * x**power + (torch.rand(1, generator=stream, device=device) if sign == "+" else -x)

    (stream, expected), kept = (torch.Generator(device) for _ in range(2)), []
    for i in range(8):
        for size, power, sign in ((3, 2, "+"), (4, 2, "+"), (3, 3, "+"), (3, 2, "-")):
            x = torch.rand(size, device=device)
            for generator in (stream, expected):
                generator.manual_seed(i)
            kept.append((record(function, x, i / 2, power, stream, sign), function(x, i / 2, power, expected, sign)))
    assert len(record.graphs) == 4
    assert all(torch.equal(*pair) for pair in kept)  # the first, too: a replay does not overwrite what it gave before


def test_what_kinds_of_arguments_do():
    with tapes_for_graphs():
        check_kinds_of_arguments(Recorder(CPU), CPU)


def test_what_a_graph_cannot_hold_shows():
    """A step that reads a value is refused; a number of a closure's stays what it was when it was recorded."""
    ones, numbers = torch.ones(2), iter(range(10))
    with tapes_for_graphs():
        record = Recorder(CPU)
        with pytest.raises(InputError, match=r"reads cannot be recorded as a CUDA graph \(the step waits.*--plain"):
            def reads(x):
                return x * x.sum().item()
            [record(reads, ones) for _ in range(4)]
        counts = lambda x: x * next(numbers)
        assert [record(counts, ones)[0].item() for _ in range(6)] == [0, 1, 2, 3, 3, 3]
    assert recorder(CPU) is eager and recorder(torch.device("cuda"), plain=True) is eager
