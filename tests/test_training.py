"""What steps are made of: distances, learning rates, descent, half precision. CUDA graphs: test_cuda.py."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from distillation import parse_arguments, student_step
from models import Generator, build_model
from models.layers import _ConvReLU
from engine.learner import Learner, adam, decay, distance, frozen, lowered, make_optimizer
from utils import NotFinite

HALVES = [torch.bfloat16, torch.float16]


def arguments(*flags):
    args = parse_arguments([*flags])
    args.weight_decay = args.weight_decay or 0.0
    return args


def learner_of(weight, *flags, **settings):
    """A learner of one tensor, which as a network adds it to its input."""
    network = nn.ParameterList([nn.Parameter(torch.tensor(weight))])
    return Learner(network, make_optimizer(arguments(*flags), network.parameters()), **settings), network[0]


def test_distances_are_sums():
    a, b = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.0, 4.0, -3.0])
    assert distance("MSE")(a, b) == 5
    assert distance("L1")(a, b) == 3


def test_learning_rates_fall():
    step = SimpleNamespace(schedule="step", step=10)
    assert [decay(step, e, 80) for e in (0, 9.9, 10, 25)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = SimpleNamespace(schedule="cosine")
    assert [decay(cosine, e, 80) for e in (0, 20, 40, 80)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0], abs=1e-12)


def test_sgd_by_hand():
    """Momentum 0.5, weight decay 0.1, clipped at norm 1: two steps along a gradient of (3, 4)."""
    learner, weight = learner_of([1.0, 2.0], "--momentum=0.5", "--wd=0.1", clip=1.0)
    gradient = torch.tensor([3.0, 4.0])
    learner.set_rate(0.1)
    learner.descend((gradient * weight).sum())
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.1 * (0.6 + 0.1), 2 - 0.1 * (0.8 + 0.2)]))
    learner.set_rate(0.01)
    learner.descend((gradient * weight).sum())
    buffer = 0.5 * 0.7 + 0.6 + 0.1 * 0.93
    torch.testing.assert_close(weight[0].detach(), torch.tensor(0.93 - 0.01 * buffer))


def test_adam_by_hand():
    """Its first step is the learning rate, along the gradient's sign."""
    learner, weight = learner_of([1.0, 2.0], "--optimizer=adam")
    learner.set_rate(0.25)
    learner.descend((torch.tensor([3.0, -4.0]) * weight).sum())
    torch.testing.assert_close(weight.detach(), torch.tensor([0.75, 2.25]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(optimizer, value):
    learner, weight = learner_of([1.0, 2.0], f"--optimizer={optimizer}", loss="the sum")
    learner.set_rate(0.1)
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(NotFinite, match="the sum is (nan|inf)"):
        learner.descend((weight * value).sum())
    assert torch.equal(weight, torch.tensor([1.0, 2.0]))
    after = learner.state_dict()
    for name, tensor in before["state"].get(0, {}).items():
        assert torch.equal(tensor, after["state"][0][name])

    learner, weight = learner_of([1.0, 2.0])
    with pytest.raises(NotFinite, match="the loss is 0, its gradient's norm nan"):
        learner.descend((weight * 0).sqrt().sum())


def test_the_first_failure_is_the_one_that_is_told():
    learner, weight = learner_of([1.0, 2.0])
    for factor in (float("inf"), float("nan")):
        learner._judge(torch.tensor(7.0), torch.tensor(factor))
    with pytest.raises(NotFinite, match="the loss is 7, its gradient's norm inf"):
        learner.check()


def test_fp16_scales_the_loss_down_until_the_gradient_fits():
    """A gradient of 2^20 overflows fp16 (65504) at a scale of 2^-4 or more, and fits at the 2^-8 it begins with."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    learner = Learner(network, make_optimizer(arguments("--momentum=0"), network.parameters()), torch.float16)
    learner.set_rate(2.0**-20)
    loss = lambda factor: (factor * learner(torch.ones(1, 1).half()).float()).sum()
    learner.descend(loss(2.0**20))
    assert network.weight.item() == pytest.approx(0, abs=1e-3)  # 1 - 2^-20 * 2^20
    assert 2.0**-8 < learner.scale.item() < 1.01 * 2.0**-8

    scale = learner.scale.item()
    learner.descend(loss(2.0**26))  # skipped, and the scale halved until it fits
    assert network.weight.item() == pytest.approx(0, abs=1e-3) and learner.scale.item() == scale / 2
    for _ in range(3):
        learner.descend(loss(2.0**26))
    assert network.weight.item() == pytest.approx(-64, rel=1e-2)
    assert learner.network.weight.dtype == torch.float16 and learner.network.weight.item() == -64
    with pytest.raises(NotFinite, match="the loss is -inf"):
        learner.descend(loss(float("inf")))


def test_a_learners_state_goes_on_where_it_was():
    """Five steps, or three and, by a new learner with the state, two: the same weights and scale."""
    def steps(learner, count):
        for _ in range(count):
            learner.set_rate(0.01)
            learner.descend((learner(torch.ones(2, 3).half()).float() ** 2).sum())

    def new():
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        return network, Learner(network, make_optimizer(arguments(), network.parameters()), torch.float16)

    whole, learner = new()
    steps(learner, 5)
    scale = learner.scale.item()
    part, learner = new()
    steps(learner, 3)
    weights, state = copy.deepcopy(part.state_dict()), copy.deepcopy(learner.state_dict())
    resumed, learner = new()
    resumed.load_state_dict(weights)
    learner.load_state_dict(state)
    steps(learner, 2)
    assert torch.equal(resumed.weight, whole.weight) and learner.scale.item() == scale


def test_frozen_networks_pass_gradients_through():
    network, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    with frozen(network):
        network(x).sum().backward()
    assert x.grad is not None and network.weight.grad is None and network.weight.requires_grad


def test_conv_relu_is_the_two_operations():
    """Output and all three gradients, in float64."""
    torch.manual_seed(0)
    x, conv = torch.randn(2, 3, 6, 7, dtype=torch.float64), nn.Conv2d(3, 4, 3, padding=1).double()
    results = []
    for function in (lambda x: _ConvReLU.apply(x, conv.weight, conv.bias), lambda x: F.relu(conv(x))):
        given = x.clone().requires_grad_()
        output = function(given)
        assert 0.2 < (output == 0).double().mean() < 0.8
        results.append((output, *torch.autograd.grad((output**3).sum(), (given, conv.weight, conv.bias))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("config", [
    {"arch": "vdsr", "n_resblocks": 4, "n_feats": 8}, {"arch": "edsr", "n_resblocks": 2, "n_feats": 8, "scale": 2}])
def test_lowered_networks_compute_nearly_the_same(config, dtype, error):
    torch.manual_seed(0)
    network = build_model(config)
    half = lowered(network, dtype)
    x = torch.rand(2, network.channels, 12, 12)
    expected, output = network(x), half(x)
    assert output.dtype == torch.float32 and not torch.equal(output, expected)
    assert (output - expected).norm() < error * (expected - expected.mean()).norm()
    assert next(half.parameters()).dtype == dtype and next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", ["IN", "BN"])
def test_lowered_generators_draw_nearly_the_same(norm, dtype):
    torch.manual_seed(0)
    generator, z = Generator(5, 8, ge_type=norm), torch.randn(3, 5)
    image = lowered(generator, dtype)(z)
    assert image.dtype == torch.float32 and (image - generator(z)).abs().max() < 0.05


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_in_half_precision_follow_those_in_single(dtype):
    """The same 30 steps on the same inputs: the student ends where it does in float32, within a percent."""
    torch.manual_seed(0)
    teacher = build_model({"arch": "vdsr", "n_resblocks": 2, "n_feats": 8}).requires_grad_(False)
    first = build_model({"arch": "vdsr", "n_resblocks": 2, "n_feats": 4})
    losses = []
    for kind in (torch.float32, dtype):
        student = copy.deepcopy(first)
        learner = Learner(student, adam(student.parameters()), kind, clip=0.4)
        lowered_teacher = lowered(teacher, kind)
        stream = torch.Generator().manual_seed(1)
        for step in range(30):
            learner.set_rate(3e-3)
            x = torch.rand(4, 1, 16, 16, generator=stream)
            loss = student_step(learner, lowered_teacher, x, distance("MSE"))
        losses.append(loss.item())
        final = student.body[0].weight
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert final.dtype == torch.float32 and math.isfinite(final.sum().item())
