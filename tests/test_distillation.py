"""The method, step by step: losses, phases, stages, sources, schedules."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from bicubic import imresize
from data.sources import Generators, folder_source, lr_size, network_input, noise_source
from distillation import (check, choose_scale, distil, distil_epoch, generator_losses, generator_step, make_learner,
                          make_source, parse_arguments, stages, student_step)
from models import VDSR, Generator, build_model, half_width
from engine.run import Run
from engine.learner import Learner, adam, distance
from utils import InputError, random_stream


def networks(arch="vdsr", seed=0):
    """(teacher, frozen; student), tiny and different from one another."""
    torch.manual_seed(seed)
    config = {"arch": arch, "n_resblocks": 2, "n_feats": 6}
    teacher = build_model(config).requires_grad_(False)
    return teacher, build_model(half_width(config))


def arguments(*flags):
    args = parse_arguments(["--batchSize=2", "--latent=5", "--input_size=32", "--lr_G=0.01", *flags])
    args.device, args.lr, args.weight_decay = torch.device("cpu"), args.lr or 0.1, args.weight_decay or 0.0
    args.loss_type, args.save_dir, args.precision = args.loss_type or "MSE", args.save_dir or "unused", "fp32"
    return args


class Fixed(nn.Module):
    """A network that multiplies by a constant; as a generator it repeats z's first entry."""

    upscaled_input, channels = True, 1

    def __init__(self, factor, size=None):
        super().__init__()
        self.factor, self.size = nn.Parameter(torch.tensor(float(factor))), size

    def forward(self, x):
        if self.size:
            x = x[:, :1, None, None].expand(-1, 1, self.size, self.size)
        return self.factor * x


def test_generator_losses_by_hand():
    """Constant images: x_lr = 0.5 on 2 images of 8x8, T(x) = 0.6, S(x) = 0.4."""
    z = torch.full((2, 3), 0.5)
    L_R, L_adv = generator_losses(Fixed(1, size=8), Fixed(0.8), Fixed(1.2), z, 2, distance("MSE"))
    assert L_R.item() == pytest.approx(2 * 64 * 0.1**2, rel=1e-4)
    assert L_adv.item() == pytest.approx(-math.log(1 + 2 * 256 * 0.2**2), rel=1e-4)
    L_R, L_adv = generator_losses(Fixed(1, size=8), Fixed(0.8), Fixed(1.2), z, 2, distance("L1"))
    assert L_R.item() == pytest.approx(2 * 64 * 0.1, rel=1e-4)
    assert L_adv.item() == pytest.approx(-math.log(1 + 2 * 256 * 0.2), rel=1e-4)


def test_teachers_output_is_clipped_before_it_is_compared():
    z = torch.full((1, 3), 0.5)
    L_R, _ = generator_losses(Fixed(1, size=8), Fixed(1), Fixed(3), z, 2, distance("MSE"))
    assert L_R.item() == pytest.approx(64 * 0.5**2, rel=1e-4)  # down(1.5) counts as 1


@pytest.mark.parametrize("arch", ["vdsr", "edsr"])
def test_the_adversarial_gradient_is_alive(arch):
    """L_adv alone, and L_R through the teacher alone, move the generator (they do not where resizing rounds)."""
    teacher, student = networks(arch)
    generator = Generator(5, 16, teacher.channels)
    z = torch.randn(2, 5)
    weights = list(generator.parameters())
    _, L_adv = generator_losses(generator, student, teacher, z, 2, distance("MSE"))
    assert torch.autograd.grad(L_adv, weights)[0].abs().max() > 1e-6

    x_lr = generator(z)
    output = imresize(teacher(network_input(x_lr, 2, teacher.upscaled_input)), 0.5).clamp(0, 1)
    through_teacher = distance("MSE")(output, x_lr.detach())
    assert torch.autograd.grad(through_teacher, weights)[0].abs().max() > 1e-6


def test_the_adversarial_gradient_is_right():
    """Against finite differences, in float64, along one direction of the generator's weights."""
    teacher, student = (network.double() for network in networks())
    generator = Generator(5, 8).double()
    z, weight = torch.randn(2, 5, dtype=torch.float64), generator.tail[0].bias
    value = lambda: generator_losses(generator, student, teacher, z, 2, distance("MSE"))[1]
    gradient = torch.autograd.grad(value(), weight)[0].item()
    with torch.no_grad():
        weight += 1e-6
        above = value().item()
        weight -= 2e-6
        below = value().item()
    assert gradient == pytest.approx((above - below) / 2e-6, rel=1e-3)


def test_rounding_as_the_reference_does_cuts_the_gradient():
    """L_adv then has none, and L_R that of x_lr alone (design of the reference's resizing)."""
    teacher, student = networks()
    generator, z, D = Generator(5, 16), torch.randn(2, 5), distance("MSE")
    weights = list(generator.parameters())
    L_R, L_adv = generator_losses(generator, student, teacher, z, 2, D, rounded=True)
    assert all(not g.any() for g in torch.autograd.grad(L_adv, weights, retain_graph=True))
    x_lr = generator(z)
    x = (255 * network_input(x_lr, 2, True)).round() / 255
    given = (255 * imresize(teacher(x), 0.5).clamp(0, 1)).round() / 255
    expected = torch.autograd.grad(D(given.detach(), x_lr), weights)
    for found, wanted in zip(torch.autograd.grad(L_R, weights), expected):
        torch.testing.assert_close(found, wanted)


def test_student_step_follows_the_clipped_gradient():
    teacher, student = networks()
    x = torch.rand(2, 1, 12, 12)
    D = distance("MSE")
    before = [p.detach().clone() for p in student.parameters()]
    expected = D(student(x), teacher(x))
    gradients = torch.autograd.grad(expected, list(student.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 0.4
    learner = make_learner(arguments("--wd=0", "--momentum=0", "--clip=0.4"), student)
    learner.set_rate(0.5)
    loss = student_step(learner, teacher, x, D)
    assert loss.item() == pytest.approx(expected.item() / x.numel(), rel=1e-5)
    for p, old, gradient in zip(student.parameters(), before, gradients):
        torch.testing.assert_close(p, old - 0.5 * 0.4 / norm * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reconw, gw", [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_generator_step_descends_the_weighted_sum(reconw, gw):
    teacher, student = networks()
    generator, z, D = Generator(5, 8), torch.randn(2, 5), distance("MSE")
    student_before = {name: value.clone() for name, value in student.state_dict().items()}
    losses = lambda: [loss.item() for loss in generator_losses(generator, student, teacher, z, 2, D)]
    before = losses()
    learner = Learner(generator, adam(generator.parameters()))
    learner.set_rate(1e-4)
    L_R, L_adv = generator_step(learner, make_learner(arguments(), student), teacher, z, 2, D, reconw, gw)
    assert [L_R * 2 * 8 * 8, L_adv] == pytest.approx(before, rel=1e-5)
    assert sum(w * (now - old) for w, now, old in zip((reconw, gw), losses(), before)) < 0
    assert all(torch.equal(v, student_before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in student.parameters())


def test_only_the_generator_that_was_used_steps():
    teacher, student = networks()
    generators = Generators(arguments(), (2, 3, 4), teacher)
    before = {s: g.tail[0].weight.clone() for s, g in generators.networks.items()}
    student = make_learner(arguments(), student)
    generators.learn_by(lambda g, z, scale: generator_step(g, student, teacher, z, scale, distance("MSE"), 1, 1))
    generators.step(3, 0, rate=0.01)
    moved = {s: not torch.equal(g.tail[0].weight, before[s]) for s, g in generators.networks.items()}
    assert moved == {"2": False, "3": True, "4": False}


@pytest.mark.parametrize("scale, size", [(2, 24), (3, 16), (4, 12)])
def test_sizes_at_the_papers_input_size(scale, size):
    assert lr_size(48, scale) == size
    x = network_input(torch.rand(1, 1, size, size), scale, True)
    assert x.shape == (1, 1, 48, 48) and 0 <= x.min() and x.max() <= 1


def test_epoch_alternates_student_and_generator_steps(monkeypatch, tmp_path):
    teacher, student = networks()
    args = arguments("--iter=2", "--stu_step=3", "--nEpochs=1", f"--save_dir={tmp_path}")
    run = Run(args, ["student", "L_R", "L_adv"])
    generators = Generators(args, (2,), teacher)
    calls = []
    take_step = lambda x: calls.append("S") or torch.tensor(2.0)
    generators.step = lambda *a: calls.append("G") or torch.tensor([3.0, -4.0])
    distil_epoch(args, run, (1, 2), make_learner(args, student), take_step, generators.draw, generators, (2,))
    assert "".join(calls) == "SSSGSSSG"
    assert run.means(2) == pytest.approx({"student": 2.0, "L_R": 3.0, "L_adv": -4.0})


def test_each_stage_starts_afresh_and_keeps_what_is_trained(monkeypatch, tmp_path):
    """Three stages of 2, 4 and 6 blocks: depth, learning rate and optimiser in every epoch, by hand."""
    torch.manual_seed(0)
    teacher = VDSR(6, 4).requires_grad_(False)
    args = arguments("--iter=2", "--stu_step=1", "--nEpochs=6", "--inc_num=3", "--inc_step=2", "--schedule=cosine",
                     "--lr=0.8", "--lr_G=0.4", f"--save_dir={tmp_path}")
    draw, generators = make_source(args, (2,), teacher)
    run, seen, heads = Run(args, ["student", "L_R", "L_adv"]), [], []

    def watched_epoch(args, run, stage, student, *rest):
        body = student.master.body
        if run.epoch in (3, 5):  # a stage begins: the first blocks are those that were left
            assert torch.equal(torch.stack([c.weight for c in body])[: len(heads[-1])], heads[-1])
            assert not any(state["momentum_buffer"].any() for state in student.optimizer.state.values())
        distil_epoch(args, run, stage, student, *rest)
        rates = [learner.optimizer.param_groups[0]["lr"].item() for learner in (student, generators.learners[2])]
        seen.append((len(body), *rates, len(student.optimizer.state)))
        heads.append(torch.stack([c.weight.detach().clone() for c in body]))

    monkeypatch.setattr("distillation.distil_epoch", watched_epoch)
    validation = SimpleNamespace(psnr=lambda model: {"2": 30.0})
    student = distil(args, run, None, teacher, (2,), draw, generators, validation)
    cosine = lambda x: 0.5 * (1 + math.cos(math.pi * x))
    expected = []
    for epoch in range(6):  # the rates of an epoch's last round; a student of n blocks has n + 2 tensors
        blocks = 2 * (epoch // 2 + 1)
        expected.append((blocks, 0.8 * cosine((epoch % 2 + 0.5) / 2), 0.4 * cosine((epoch + 0.5) / 6), blocks + 2))
    for found, wanted in zip(seen, expected, strict=True):
        assert found == pytest.approx(wanted)
    assert student.config == {"arch": "vdsr", "n_resblocks": 6, "n_feats": 2}
    assert run.steps == 12 and run.epoch == 7


def test_all_scales_are_drawn_evenly_and_reproducibly():
    drawn = [choose_scale(1, (2, 3, 4), "student", step) for step in range(3000)]
    assert all(abs(drawn.count(s) - 1000) < 120 for s in (2, 3, 4))
    assert drawn == [choose_scale(1, (2, 3, 4), "student", step) for step in range(3000)]


def test_stages():
    args = SimpleNamespace(inc_num=1, inc_step=0, nEpochs=80)
    assert stages(18, args) == [(1, 81, 18)]
    args = SimpleNamespace(inc_num=3, inc_step=10, nEpochs=80)
    assert stages(18, args) == [(1, 11, 6), (11, 21, 12), (21, 81, 18)]
    args = SimpleNamespace(inc_num=18, inc_step=1, nEpochs=18)
    assert [blocks for _, _, blocks in stages(18, args)] == [*range(1, 19)]


def test_noise_source():
    """Of the input's size, or with --noise_at=lr of the LR image's."""
    teacher, _ = networks()
    draw, draw_small = (noise_source(arguments("--input_size=48", *at), teacher) for at in ((), ("--noise_at=lr",)))
    x, small = (torch.rand(2, 1, n, n, generator=random_stream(1, "noise", 7)) for n in (48, 16))
    assert torch.equal(x, draw(3, 7)) and not torch.equal(x, draw(3, 8))
    torch.testing.assert_close(draw_small(3, 7), imresize(small, 3).clamp(0, 1))


@pytest.mark.parametrize("arch, at, shape", [("vdsr", "hr", (2, 1, 48, 48)), ("edsr", "lr", (2, 3, 24, 24)),
                                             ("edsr", "hr", (2, 3, 24, 24))])
def test_other_kinds_of_noise(arch, at, shape):
    teacher, _ = networks(arch)
    x = noise_source(arguments("--input_size=48", "--noise=normal", f"--noise_at={at}"), teacher)(2, 7)
    assert x.shape == shape and 0 <= x.min() and x.max() <= 1
    assert x.mean() == pytest.approx(0.5, abs=0.02)
    if arch == "vdsr" or at == "lr":  # 0.25, less the clipped tails
        assert x.std() == pytest.approx(0.241, abs=0.02)


def test_dead_leaves_and_generated_images_take_turns():
    teacher, _ = networks()
    args = arguments("--source=dead_leaves+generator")
    draw, generators = make_source(args, (2,), teacher)
    leaves = make_source(arguments("--source=dead_leaves"), (2,), teacher)[0]
    assert torch.equal(draw(2, 4), leaves(2, 4)) and torch.equal(draw(2, 5), generators.draw(2, 5))


def test_recipes_are_defaults_that_flags_override():
    fast = parse_arguments(["--recipe=fast", "--iter=7"])
    assert (fast.source, fast.optimizer, fast.schedule, fast.iter, fast.stu_step) == (
        "dead_leaves", "adam", "cosine", 7, 50)
    assert vars(parse_arguments(["--recipe=paper"])) == vars(parse_arguments([]))
    demo = parse_arguments(["--recipe=fast", "--demo"])
    assert (demo.source, demo.nEpochs, demo.batchSize) == ("dead_leaves", 5, 4)


@pytest.mark.parametrize("arch, shape", [("vdsr", (2, 1, 32, 32)), ("edsr", (2, 3, 16, 16))])
def test_folder_source_draws_real_lr_images(images, arch, shape):
    teacher, _ = networks(arch)
    draw = folder_source(arguments("--data_dir", str(images)), teacher.scales, teacher)
    x = draw(2, 0)
    assert x.shape == shape and x.std() > 0.05
    assert torch.equal(x, draw(2, 0)) and not torch.equal(x, draw(2, 1))


def test_generators_draw_by_seed_and_step():
    teacher, _ = networks()
    one, same, other = (Generators(arguments(f"--seed={seed}"), (2, 4), teacher) for seed in (1, 1, 2))
    assert torch.equal(one.draw(2, 3), same.draw(2, 3))
    assert not torch.equal(one.draw(2, 3), other.draw(2, 3))
    assert not torch.equal(one.draw(2, 3), one.draw(2, 4))
    assert one.draw(4, 0).shape == (2, 1, 32, 32) and not one.draw(4, 0).requires_grad


def test_the_defaults_are_the_papers_command():
    papers = ("--stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 --latent=256 "
              "--lr_G=1e-5 --model_type=half --nEpochs=80 --pretrained=teacher.pth")
    args = parse_arguments([])
    assert vars(args) == vars(parse_arguments(papers.split()))
    expected = dict(batchSize=128, step=10, clip=0.4, momentum=0.9, gw=1.0, ge_type="IN", scale=0, source="generator")
    assert expected.items() <= vars(args).items()
    assert parse_arguments(["--wd=0.5", "--tmp_save_dir=a", "--tmp_data_dir=b"]).weight_decay == 0.5


@pytest.mark.parametrize("flags, words", [
    (["--input_size=31"], "--input_size 31: too small at x4; the least is 32"),
    (["--inc_num=9"], "--inc_num 9: the student has only 6 body blocks"),
    (["--inc_num=3"], "--inc_step 0: 3 stages need"),
    (["--inc_num=3", "--inc_step=40"], "--inc_step 40: 3 stages need"),
    (["--student=x.pth"], "--student: goes with --test_only"),
])
def test_flags_that_do_not_fit_are_named(flags, words):
    with pytest.raises(InputError, match=words):
        check(arguments(*flags), VDSR(6, 2), (2, 3, 4))
