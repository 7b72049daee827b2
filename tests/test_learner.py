"""What steps are made of: distances, learning rates, optimizers, descent, half precision."""

import copy
import math

import pytest
import torch
import torch.nn as nn

from distillation import generator_step
from engine.learner import Learner, Muon, autocast, decay, distance, make_optimizer, orthogonalize, train_step
from engine.options import best_precision
from models import EDSR, VDSR, Generator
from utils import NotFinite

NAMES = ["sgd", "adam", "muon"]
MSE = distance("MSE")


def learner_of(weight, name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, **settings):
    """A learner of one tensor, and the tensor."""
    network = nn.ParameterList([nn.Parameter(torch.tensor(weight))])
    return Learner(network, make_optimizer(network, name, lr, momentum, weight_decay), **settings), network[0]


def new_learner(name, precision="fp32", network=None, lr=None):
    torch.manual_seed(0)
    network = network or VDSR(2, 4)
    return Learner(network, make_optimizer(network, name, lr, weight_decay=0), precision, clip=0.4)


def take_steps(learner, count, first=0):
    for step in range(first, first + count):
        learner.set_rate(1 / (1 + step))
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        train_step(learner, x, 1 - x, MSE)


def test_distances_are_sums():
    a, b = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.0, 4.0, -3.0])
    assert MSE(a, b) == 5 and distance("L1")(a, b) == 3


@pytest.mark.parametrize("schedule, epochs, factors", [("step", (0, 9.9, 10, 25), (1, 1, 0.1, 0.01)),
    ("cosine", (0, 20, 40, 80), (1, 0.5 + 0.5**1.5, 0.5, 0)), ("trapezoid", (0, 40, 60, 80, 81), (1, 1, 0.5, 0, 0))])
def test_learning_rates_fall(schedule, epochs, factors):
    assert [decay(schedule, epoch, 80) for epoch in epochs] == pytest.approx(factors, abs=1e-12)


def test_sgd_by_hand():
    learner, weight = learner_of([1.0, 2.0], momentum=0.5, weight_decay=0.1, clip=1.0)
    gradient = torch.tensor([3.0, 4.0])
    learner.step((gradient * weight).sum())
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.1 * (0.6 + 0.1), 2 - 0.1 * (0.8 + 0.2)]))
    learner.set_rate(0.1)
    learner.step((gradient * weight).sum())
    buffer = 0.5 * 0.7 + 0.6 + 0.1 * 0.93
    torch.testing.assert_close(weight[0].detach(), torch.tensor(0.93 - 0.01 * buffer))


def test_what_is_no_kernel_learns_by_adam_at_a_third_of_muons_rate():
    (adam, expected), (muon, weight) = learner_of([1.0, 2.0], "adam", 0.25), learner_of([1.0, 2.0], "muon", 0.75)
    for gradient in torch.tensor([[3.0, -4.0], [1.0, 4.0]]):
        adam.step((gradient * expected).sum())
        muon.step((gradient * weight).sum())
        torch.testing.assert_close(weight, expected)


def test_muon_by_hand():
    kernels = [nn.Parameter(torch.randn(4, 3, 3, 3)) for _ in range(2)]
    optimizer, gradients = Muon(kernels, [], 0.1, 0.9, weight_decay=0.5), torch.randn(2, 2, 4, 27)
    buffer = torch.zeros(2, 4, 27)
    for step in range(2):
        expected = torch.stack([kernel.detach().flatten(1) for kernel in kernels])
        buffer = 0.9 * buffer + 0.1 * gradients[step]
        expected = 0.95 * expected - 0.1 * orthogonalize(0.1 * gradients[step] + 0.9 * buffer)
        for kernel, gradient in zip(kernels, gradients[step]):
            kernel.grad = gradient.reshape(kernel.shape)
        optimizer.step()
        torch.testing.assert_close(torch.stack([kernel.detach().flatten(1) for kernel in kernels]), expected)


@pytest.mark.parametrize("rows, columns", [(8, 36), (36, 8), (16, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(rows, columns):
    """The same directions; what is below a 300th of the norm may lag."""
    matrices = torch.randn(3, rows, columns) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    found, given = orthogonalize(matrices), torch.linalg.svd(matrices, full_matrices=False)
    values = (given.U.mT @ found @ given.Vh.mT).diagonal(dim1=1, dim2=2)
    counts = given.S > given.S.norm(dim=1, keepdim=True) / 300
    assert counts.sum() >= 23 and 0.5 < values[counts].min() and values.max() < 1.5
    assert orthogonalize(torch.zeros(1, rows, columns)).eq(0).all()


def test_muon_takes_the_kernels_between_the_first_and_the_last():
    """And what it loads goes where the weights are."""
    network = EDSR(2, 4)
    optimizer = make_optimizer(network, "muon", 3e-3)
    kinds = {weight: group["muon"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in network.named_parameters():
        assert kinds[weight] == (weight.dim() == 4 and name not in ("head.0.weight", "tail.1.weight"))
    assert {(group["muon"], group["lr"]) for group in optimizer.param_groups} == {(True, 3e-3), (False, 1e-3)}
    elsewhere = make_optimizer(EDSR(2, 4).to("meta"), "muon")
    elsewhere.load_state_dict(optimizer.state_dict())
    assert all(value.is_meta for state in elsewhere.state.values() for value in state.values())


class Patchwork(nn.Module):
    """A frozen mean shift, a layer that nothing uses, batch normalisation."""

    def __init__(self):
        super().__init__()
        self.shift, self.unused = nn.Conv2d(1, 1, 1).requires_grad_(False), nn.Conv2d(4, 4, 3)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                    nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, x):
        return x + self.layers(self.shift(x))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_and_unused_parameters_are_left_alone(name):
    """And each keeps its flag, also through the generator's step, which leaves the statistics of batches, too."""
    student = new_learner(name, network=Patchwork())
    network, before = student.network, copy.deepcopy(student.network.state_dict())
    flags = [weight.requires_grad for weight in network.parameters()]
    take_steps(student, 2)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if not key.startswith(("shift", "unused"))}
    after = copy.deepcopy(network.state_dict())
    generator = new_learner("adam", network=Generator(5, 8))
    generator_step(generator, student, VDSR(2, 4).requires_grad_(False), torch.randn(2, 5), 2, MSE, 1.0, 1.0)
    torch.testing.assert_close(network.state_dict(), after, rtol=0, atol=0)
    assert [weight.requires_grad for weight in network.parameters()] == flags


def test_a_step_follows_the_clipped_gradient():
    """The loss is per value; statistics are those of the batch."""
    student, (x, target) = new_learner("sgd", network=Patchwork(), lr=0.5), torch.rand(2, 2, 1, 8, 8)
    network, whole = student.network.eval(), copy.deepcopy(student.network).train()
    expected = MSE(whole(x), target)
    expected.backward()
    gradients = {name: weight.grad for name, weight in whole.named_parameters() if weight.grad is not None}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    features = network.layers[0](network.shift(x)).mean((0, 2, 3))
    assert train_step(student, x, target, MSE).item() == pytest.approx(expected.item() / x.numel(), rel=1e-5)
    assert len(gradients) == 7 and norm > 0.4
    for name, gradient in gradients.items():
        moved = whole.get_parameter(name) - 0.5 * 0.4 / norm * gradient
        torch.testing.assert_close(network.get_parameter(name), moved, rtol=1e-4, atol=1e-6)
    assert network.training and network.layers[1].num_batches_tracked == 1 and features.abs().max() > 0.05
    assert network.layers[1].running_mean.norm() > 0.05 * features.norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss_type, value", [("L1", math.inf), ("MSE", math.nan)])  # L1's gradient is finite
def test_a_step_whose_loss_is_not_finite_changes_nothing(name, loss_type, value):
    learner = new_learner(name)
    take_steps(learner, 2)
    weights, state = copy.deepcopy((learner.network.state_dict(), learner.optimizer.state_dict()["state"]))
    with pytest.raises(NotFinite, match=f"the loss is {value}"):
        train_step(learner, torch.rand(2, 1, 8, 8), torch.full((2, 1, 8, 8), value), distance(loss_type))
    torch.testing.assert_close(learner.network.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(learner.optimizer.state_dict()["state"], state, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_is_told(monkeypatch):
    learner, weight = learner_of([1.0, 2.0])
    with pytest.raises(NotFinite, match="the loss is 0, its gradient's norm nan"):
        learner.step((weight * 0).sqrt().sum())
    learner, weight = learner_of([1.0, 2.0], loss="the sum")
    with monkeypatch.context() as patch:  # as on a GPU, where nothing looks after every step
        patch.setattr(Learner, "check", lambda self: None)
        learner.step(7 + (weight - weight.detach()).sqrt().sum())
        learner.step(weight.sum())
        learner.step(math.nan * weight.sum())  # the first is told
    for ask in (learner.check, learner.state_dict):  # what is not finite is not saved either
        with pytest.raises(NotFinite, match="the sum is 7, its gradient's norm inf"):
            ask()


def test_fp16_scales_the_loss_down_until_the_gradient_fits():
    """A gradient of 2^20 overflows fp16 (65504) at a scale of 2^-4 or more, and fits at the 2^-8 it begins with."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    learner = Learner(network, make_optimizer(network, "sgd", 2.0**-20, momentum=0), "fp16")

    def descend(factor):
        with autocast(torch.device("cpu"), "fp16"):
            output = network(torch.ones(1, 1))
        assert output.dtype == torch.float16
        learner.step((factor * output.float()).sum())

    descend(2.0**20)
    assert network.weight.item() == 0 and learner.scaler.get_scale() == 2.0**-8  # 1 - 2^-20 * 2^20
    for skipped in (9, 10, 11):  # and the scale halved until it fits
        descend(2.0**26)
        assert network.weight.item() == 0 and learner.scaler.get_scale() == 2.0**-skipped
    descend(2.0**26)
    assert network.weight.item() == -64 and network.weight.dtype == torch.float32
    for _ in range(99):
        descend(0.0)
    assert learner.scaler.get_scale() == 2.0**-10  # a hundred steps that fitted
    with pytest.raises(NotFinite, match="the loss is -inf"):
        descend(math.inf)
    assert network.weight.item() == -64


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_in_half_precision_follow_those_in_single(name, precision):
    losses = []
    for kind in ("fp32", precision):
        learner = new_learner(name, kind, lr=3e-3)
        take_steps(learner, 30)
        x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(99))
        with autocast(x.device, kind):
            output = learner.network(x)
        losses.append(MSE(output, 1 - x).item())
        assert output.dtype == torch.float32 and torch.equal(output, learner.network(x)) == (kind == "fp32")
        assert all(weight.dtype == torch.float32 for weight in learner.weights)
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize("device, has_bf16, best", [
    ("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", False, "fp16"), ("mps", True, "fp32")])
def test_best_precision(device, has_bf16, best, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
    assert best_precision(torch.device(device)) == best


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_learners_state_goes_on_where_it_was(name, precision):
    """Six steps, or three and, by a new learner with the state, three."""
    whole, part, resumed = (new_learner(name, precision) for _ in range(3))
    take_steps(whole, 6)
    take_steps(part, 3)
    resumed.load_state_dict(copy.deepcopy(part.state_dict()))
    take_steps(resumed, 3, first=3)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("first, then", [("fp32", "fp16"), ("fp16", "bf16")])
def test_a_run_may_go_on_in_another_precision(first, then):
    """With the scale of a loss that is usual in it; what is not finite still shows."""
    before, after = new_learner("sgd", first), new_learner("sgd", then)
    fresh = after.scaler.state_dict()
    take_steps(before, 1)
    after.load_state_dict(before.state_dict())
    assert after.scaler.state_dict() == fresh
    with pytest.raises(NotFinite):
        [after.step((math.nan * after.weights[0]).sum()) for _ in range(20)]
