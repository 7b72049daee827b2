"""The method, step by step: losses, phases, stages, sources, schedules."""

import math

import pytest
import torch

import distillation
from bicubic import imresize
from data.sources import Bank, network_input, noise_source
from distillation import (Settings, choose_scale, distil, generator_losses, generator_step, labelled, make_generators,
                          make_source, parse_arguments, settle, stage)
from engine.graphs import eager
from engine.learner import Learner, distance, make_optimizer, train_step
from engine.log import Log
from engine.run import Run
from models import EDSR, VDSR, Generator
from models.load import load_model
from tests.helpers import PAPERS
from utils import fingerprint

CPU = torch.device("cpu")


def networks(make=VDSR):
    """(teacher, frozen; student), tiny and different from one another."""
    return make(2, 6).requires_grad_(False), make(2, 3)


def arguments(*flags):
    args = parse_arguments(["--batchSize=2", "--latent=5", "--input_size=32", "--lr_G=0.01", "--device=cpu", *flags])
    settle(args)
    args.device, args.precision = CPU, "fp32"
    return args


def times(factor):
    """A network that multiplies by a constant."""
    network = lambda x: factor * x
    network.upscaled_input = True
    return network


def test_generator_losses_by_hand():
    """Constant images: x_lr = 0.5 on 2 images of 8x8, T(x) = 0.6, S(x) = 0.4."""
    z, flat = torch.full((2, 3), 0.5), lambda z: z[:, :1, None, None].expand(-1, 1, 8, 8)
    for loss_type, power in (("MSE", 2), ("L1", 1)):
        L_R, L_adv = generator_losses(flat, times(0.8), times(1.2), z, 2, distance(loss_type))
        assert L_R.item() == pytest.approx(2 * 64 * 0.1**power, rel=1e-4)
        assert L_adv.item() == pytest.approx(-math.log(1 + 2 * 256 * 0.2**power), rel=1e-4)
    L_R, _ = generator_losses(flat, times(1), times(3), z, 2, distance("MSE"))
    assert L_R.item() == pytest.approx(2 * 64 * 0.5**2, rel=1e-4)  # down(1.5) counts as 1


@pytest.mark.parametrize("make", [VDSR, EDSR])
@pytest.mark.parametrize("loss", [0, 1], ids=["L_R", "L_adv"])
def test_the_generators_gradient_is_right(make, loss):
    """Against finite differences, in float64."""
    teacher, student = (network.double() for network in networks(make))
    generator = Generator(5, 8, teacher.channels).double()
    z, weight = torch.randn(2, 5, dtype=torch.float64), generator.tail[0].bias
    value = lambda _: generator_losses(generator, student, teacher, z, 2, lambda a, b: (a - b).square().sum())[loss]
    assert torch.autograd.gradcheck(value, weight, atol=1e-8)
    assert torch.autograd.grad(value(weight), weight)[0].abs().min() > 1e-6


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


@pytest.mark.parametrize("reconw, gw", [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_generator_step_descends_the_weighted_sum(reconw, gw):
    teacher, student = networks()
    generator, z, D = Generator(5, 8), torch.randn(2, 5), distance("MSE")
    student_before = fingerprint(student)
    G, S = Learner(generator, make_optimizer(generator, "adam", 1e-4)), Learner(student, make_optimizer(student, "sgd"))
    losses = lambda: [loss.item() for loss in generator_losses(generator, student, teacher, z, 2, D)]
    before = losses()
    L_R, L_adv = generator_step(G, S, teacher, z, 2, D, reconw, gw)
    assert [L_R * 2 * 8 * 8, L_adv] == pytest.approx(before, rel=1e-5)
    assert sum(w * (now - old) for w, now, old in zip((reconw, gw), losses(), before)) < 0
    assert fingerprint(student) == student_before
    assert all(p.grad is None and p.requires_grad for p in student.parameters())


@pytest.fixture
def logged(monkeypatch):
    """The steps a distillation makes: ("S", rate, tensors, losses) or ("G", rate, scale, losses)."""
    steps = []

    def watch(kind, step):
        def watched(learner, *rest):
            size = len(learner.weights) if kind == "S" else rest[3]
            rate, losses = learner.optimizer.param_groups[0]["lr"].item(), step(learner, *rest)
            steps.append((kind, rate, size, losses))
            return losses
        monkeypatch.setattr(distillation, step.__name__, watched)

    watch("S", train_step)
    watch("G", generator_step)
    return steps


def images(step):
    """Batches for distil."""
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(step))
    return x, 1 - x


def test_a_student_learns_its_teacher():
    """distil() called as from a notebook, by plain values: it needs no flags."""
    teacher, student = networks()
    draw = noise_source("uniform", 16, 1, True, seed=1)
    x = draw(2, -1, 4)
    error = lambda: (student(x) - teacher(x)).abs().mean().item()
    images = lambda step: (x := draw(2, step, 4), teacher(x))
    before, scored = error(), []
    settings = Settings(nEpochs=2, iter=20, stu_step=4, loss_type="L1", optimizer="adam", lr=0.01, schedule="cosine")
    run = Run(validate=lambda student, epoch: scored.append(error()) or {})
    assert distil(teacher, student, images, settings, run=run) is student
    assert scored[1] < scored[0] < 0.8 * before


def test_the_best_weights_are_kept(tmp_path):
    (teacher, student), psnr, seen = networks(), iter((30.0, 31.0, 29.0)), []
    run = Run(Log(tmp_path), epochs=3, validate=lambda s, _: seen.append(fingerprint(s)) or {"2": next(psnr)})
    with run:
        distil(teacher, student, images, Settings(nEpochs=3, iter=1, stu_step=1, batchSize=2), run=run)
    assert [fingerprint(load_model(tmp_path / f"model_{name}.pth")) for name in ("best", "last")] == seen[1:]


def test_rounds_alternate_student_and_generator_steps(logged, monkeypatch, tmp_path):
    """Of the scale drawn, whose generator alone moves; the run has the rounds' mean losses. distil leaves no files."""
    monkeypatch.chdir(tmp_path)
    settings = Settings((2, 3), nEpochs=1, iter=2, stu_step=3, batchSize=2, latent=5, loss_type="L1", optimizer="adam")
    (teacher, student), (x, target) = networks(), images(0)
    first = (student(x) - target).abs().mean().item()
    generators = make_generators(settings, 32, teacher, CPU)
    before = {scale: fingerprint(G.network) for scale, G in generators.items()}
    ends = []
    run = Run(validate=lambda s, epoch: ends.append((list(run.means(2).values()), epoch, s.training)) or {2: 30.0})
    distil(teacher, student, images, settings, generators, run=run)
    assert not list(tmp_path.iterdir())
    assert "".join(kind for kind, *_ in logged) == "SSSGSSSG" and run.steps == 6
    assert logged[0][-1].item() == pytest.approx(first, rel=1e-5)
    assert isinstance(run.parts["student"].optimizer, torch.optim.Adam)
    used = {scale for kind, _, scale, _ in logged if kind == "G"}
    assert used == {choose_scale(1, (2, 3), "generator", number) for number in range(2)}
    assert used == {s for s, G in generators.items() if fingerprint(G.network) != before[s]}
    means = [torch.stack([losses for which, *_, losses in logged if which == kind]).mean(0) for kind in "SG"]
    (found, epoch, training), = ends
    assert found == pytest.approx([means[0].item(), *means[1].tolist()])
    assert run.psnr == {2: 30.0} and epoch == 1 and not training  # it is scored in evaluation mode


def test_each_stage_grows_the_student_and_starts_afresh(logged):
    """Three stages of 2, 4 and 6 blocks, by hand: rates and tensors (n blocks have n + 2) of every step."""
    settings = Settings((2,), nEpochs=6, iter=2, stu_step=1, batchSize=2, latent=5, inc_num=3, inc_step=2,
                        schedule="cosine", lr=0.8, lr_G=0.4)
    teacher, student = VDSR(6, 4).requires_grad_(False), VDSR(2, 2)
    distil(teacher, student, images, settings, make_generators(settings, 32, teacher, CPU), 6)
    cosine = lambda x: 0.5 * (1 + math.cos(math.pi * x))
    expected = []
    for epoch in (e + i / 2 for e in range(6) for i in range(2)):
        expected += [("S", 0.8 * cosine(epoch % 2 / 2), 4 + int(epoch) // 2 * 2), ("G", 0.4 * cosine(epoch / 6), 2)]
    for found, wanted in zip(logged, expected, strict=True):
        assert found[0] == wanted[0] and found[1:3] == pytest.approx(wanted[1:])
    assert student.config == {"arch": "vdsr", "n_resblocks": 6, "n_feats": 2}
    with pytest.raises(ValueError, match="depth"):
        distil(teacher, student, images, settings)
    for numbers, stages in (((1, 0, 80), [(1, 81, 18)]), ((3, 10, 80), [(1, 11, 6), (11, 21, 12), (21, 81, 18)]),
                            ((18, 1, 18), [(i, i + 1, i) for i in range(1, 19)])):
        settings = Settings(**dict(zip(("inc_num", "inc_step", "nEpochs"), numbers)))
        assert [*dict.fromkeys(stage(epoch, 18, settings) for epoch in range(settings.nEpochs + 1))] == stages


def test_generated_images_depend_on_the_step():
    """And on the seed (test_scripts.py). With --source=dead_leaves+generator they and dead leaves take turns."""
    settings, teacher, draws = Settings(scales=(2, 4), batchSize=2, latent=5), networks()[0], []
    for name in ("generator", "generator", "dead_leaves+generator", "dead_leaves"):
        args, generators = arguments(f"--source={name}"), make_generators(settings, 32, teacher, CPU)
        draws.append(make_source(args, settings, teacher, generators, eager))
    draw, same, both, leaves = draws
    assert torch.equal(draw(2, 3, 2), same(2, 3, 2)) and not torch.equal(draw(2, 3, 2), draw(2, 4, 2))
    assert draw(4, 0, 2).shape == (2, 1, 32, 32) and not draw(4, 0, 2).requires_grad
    assert torch.equal(both(2, 4, 2), leaves(2, 4, 2)) and torch.equal(both(2, 5, 2), draw(2, 5, 2))


@pytest.mark.parametrize("bank", [0, 32])
def test_images_come_with_the_teachers_output(bank):
    """A function of the step alone, from a bank or drawn anew."""
    args, teacher = arguments("--source=noise", f"--bank={bank}"), networks()[0]
    settings = Settings(scales=(2, 3, 4), batchSize=2)
    one, other = (labelled(args, settings, teacher, make_source(args, settings, teacher, None, eager), eager)
                  for _ in range(2))
    one(3)
    for step in (7, 8):
        x, target = one(step)
        assert len(x) == 2 and torch.equal(target, teacher(x)) and torch.equal(x, other(step)[0])
    assert not torch.equal(one(7)[0], one(8)[0])


def test_recipes_are_defaults_that_flags_override():
    """Those of none and of paper are the paper's command."""
    fast = parse_arguments(["--recipe=fast", "--iter=7"])
    assert (fast.source, fast.optimizer, fast.schedule, fast.student_init, fast.loss_type, fast.iter) == (
        "dead_leaves", "muon", "trapezoid", "teacher", "L1", 7)
    demo = parse_arguments(["--recipe=fast", "--demo"])
    assert (demo.source, demo.nEpochs, demo.val_dataset) == ("dead_leaves", 3, "skimage")
    banks = {flags: arguments(*flags).bank for flags in ((), ("--demo",), ("--demo", "--source=generator"))}
    assert [*banks.values()] == [0, demo.iter * demo.stu_step * 2 // 4, 0]
    assert arguments("--recipe=fast", "--batchSize=128", "--iter=120").bank == Bank.MOST
    assert arguments("--demo").resume == "auto" and parse_arguments(["--demo", "--recipe=paper"]).source == "generator"
    args = parse_arguments([])
    assert vars(args) == vars(parse_arguments(PAPERS)) == vars(parse_arguments(["--recipe=paper"]))
    expected = dict(batchSize=128, step=10, clip=0.4, momentum=0.9, gw=1.0, ge_type="IN", scale=0, source="generator")
    assert expected.items() <= vars(args).items()
    assert parse_arguments(["--wd=0.5", "--tmp_save_dir=a", "--tmp_data_dir=b"]).weight_decay == 0.5
