"""Distil a trained super-resolution network into one of half its width, without data.

Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution", CVPR 2021:

    python distillation.py --demo                      # a minute on a CPU, no files needed
    python distillation.py --stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 \\
        --latent=256 --lr_G=1e-5 --model_type=half --nEpochs=80 --pretrained=teacher.pth
    python distillation.py --recipe=fast --pretrained=teacher.pth        # from the teacher's weights: ten minutes
    python distillation.py --test_only --pretrained=teacher.pth --student=student.pth

A generator for each scale draws LR images. The student learns to give what the teacher gives on them; the
generators learn to draw images that the teacher reconstructs and on which the student is still wrong.
"""

import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch

from bicubic import imresize
from data.benchmark import Benchmarks, choose_scales, choose_sets, choose_validation
from data.images import HELD_OUT, find_training_images
from data.sources import Bank, dead_leaves_source, folder_source, lr_size, network_input, noise_source, start_images
from engine import parallel
from engine.graphs import eager, recorder
from engine.learner import Learner, autocast, decay, distance, make_optimizer, train_step
from engine.options import (Parser, add_shared_flags, count, open_run, positive, set_up, settle_shared_flags, weight,
                            whole)
from engine.run import Run
from figure.pictures import save_comparison, save_epoch_samples, save_sample_sheet
from figure.plots import save_curves
from models import ARCHITECTURES, Generator, build_model
from models.custom import check_learns, custom_network
from models.from_teacher import student_from_teacher
from models.pair import check_pair, check_start, load_network, student_config
from utils import InputError, fingerprint, random_stream, run_script, save_model, seed_everything, stream_seed

# ---- flags -----------------------------------------------------------------------------------------


# The defaults are the paper's command; "fast" is this project's own.
FAST = dict(source="dead_leaves", student_init="teacher", optimizer="muon", schedule="trapezoid", loss_type="L1",
            batchSize=16, nEpochs=10, iter=15)
RECIPES = {"paper": {}, "fast": FAST}
# --demo: a small teacher (how it was trained is in the README) and settings for a minute on a CPU.
DEMO = dict(
    pretrained=str(Path(__file__).parent / "models" / "demo_teacher.pth"), output="runs/demo/student.pth",
    data_test="skimage", val_dataset="skimage", nEpochs=3, iter=10, stu_step=20,
)


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    parser.set_defaults(model_type="half", nEpochs=80, iter=120)
    add = parser.add_argument
    add("--demo", action="store_true", help="a small example that needs no files and no GPU")
    add("--recipe", choices=tuple(RECIPES), help="other defaults: fast starts from the teacher's weights and distils "
        "from dead leaves (default: paper; with --demo fast)")
    add("--pretrained", metavar="CHECKPOINT", default="teacher.pth", help="the teacher")
    add("--student", metavar="CHECKPOINT", help="the student to score with --test_only")
    add("--model", metavar="FILE.py", help="a file that defines teacher() and student() of one's own (see the README)")
    add("--arch", choices=tuple(ARCHITECTURES), help="refuse a teacher of another architecture")
    add("--n_resblocks", type=count, help="the student's body blocks (default: the teacher's)")
    add("--n_feats", type=count, help="the student's channels (default: as --model_type says)")
    add("--res_scale", type=positive, help="of an edsr teacher whose file does not say")
    add("--source", choices=("generator", "noise", "folder", "dead_leaves", "dead_leaves+generator"),
        default="generator", help="of student inputs: the paper's generators, noise, the real images of --data_dir, "
        "dead leaves images, or these and generated ones in turn")
    add("--noise", choices=("uniform", "normal"), default="uniform", help="distribution of --source=noise")
    add("--bank", type=whole, metavar="N", help="add N images every epoch to those drawn, with the teacher's outputs, "
        "and use them all again; 0: fresh ones every step (default: 0, but of --recipe=fast a quarter of an epoch's)")
    add("--input_size", type=count, default=48, help="side of the student's inputs, in HR pixels")
    add("--stu_step", type=count, default=50, help="student steps a round")
    add("--latent", type=count, default=256, help="length of the latent vector")
    add("--ge_type", choices=("IN",), default="IN", help="generator's normalisation: instance")
    add("--lr_G", type=positive, default=1e-5, help="generators' learning rate (Adam)")
    add("--reconw", type=weight, default=1.0, help="weight of the reconstruction loss")
    add("--gw", type=weight, default=1.0, help="weight of the adversarial loss")
    add("--rounded", action="store_true",
        help="round resized images in the generator's losses as the reference does, which cuts their gradient")
    add("--inc_num", type=int, choices=(18, 9, 6, 3, 2, 1), default=1, help="progressive stages")
    add("--inc_step", type=whole, default=0, help="epochs a stage")
    given = parser.parse_known_args([flag for flag in (sys.argv[1:] if argv is None else argv)
                                     if flag not in ("-h", "--help")])[0]  # whose text is to show the recipe's defaults
    recipe = given.recipe or ("fast" if given.demo else "paper")
    parser.set_defaults(**{**RECIPES[recipe], **(DEMO if given.demo else {}), "recipe": recipe})
    return parser.parse_args(argv)


# ---- the method ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How to distil: the flags of these names, whose help says what they mean. scales: those of the networks."""

    scales: tuple = (2, 3, 4)
    nEpochs: int = 80
    iter: int = 120
    stu_step: int = 50
    batchSize: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "step"
    step: int = 10
    clip: float = 0.4
    loss_type: str = "MSE"
    latent: int = 256
    lr_G: float = 1e-5
    reconw: float = 1.0
    gw: float = 1.0
    rounded: bool = False
    inc_num: int = 1
    inc_step: int = 0
    precision: str = "fp32"
    seed: int = 1


def generator_losses(generator, student, teacher, z, scale, D, rounded=False):
    """L_R and L_adv of the images that G_s draws from z (paper section 3).

    L_R: the teacher's output, downsampled, must give the input back. L_adv falls where the student is
    wrong. Both reach the generator through the teacher too, since resizing is differentiable. rounded: not
    so, resized images are rounded to 8 bits as in the reference; x_lr in L_R alone then has a gradient.
    """
    after = (lambda image: (255 * image).round() / 255) if rounded else (lambda image: image)
    x_lr = generator(z)
    x = after(network_input(x_lr, scale, teacher.upscaled_input))
    teacher_output = teacher(x)
    reconstruction = D(after(imresize(teacher_output, 1 / scale).clamp(0, 1)), x_lr)
    adversarial = -torch.log1p(parallel.all_reduce(D(student(x), teacher_output)))
    return reconstruction, adversarial


def generator_step(generator, student, teacher, z, scale, D, reconw, gw, rounded=False):
    """Generator phase: one step on reconw * L_R + gw * L_adv, in float32. Returns L_R per pixel and L_adv.

    generator, student: learners, of whose networks the former alone learns.
    """
    student.network.eval()
    L_R, L_adv = generator_losses(generator.network, student.network, teacher, z, scale, D, rounded)
    generator.step(reconw * L_R + gw * L_adv)
    pixels = parallel.world_size() * len(z) * teacher.channels * generator.network.size**2
    return torch.stack((parallel.all_reduce(L_R.detach()) / pixels, L_adv.detach()))


def stage(epoch, depth, settings):
    """Progressive distillation: (first epoch, epoch after the last, body blocks) of the stage that `epoch` is in."""
    s = settings
    number = min(max(epoch - 1, 0) // s.inc_step, s.inc_num - 1) if s.inc_num > 1 else 0
    begin = 1 + number * s.inc_step
    end = s.nEpochs + 1 if number == s.inc_num - 1 else begin + s.inc_step
    return begin, end, depth * (number + 1) // s.inc_num


def distil(teacher, student, images, settings, generators=None, depth=0, run=None, call=eager):
    """Distil the network `teacher` into the network `student`, which is returned.

    images(step): a batch x and the teacher's output T(x), see labelled. generators: {scale: learner of G_s}, where they
    learn. depth: the student's body blocks at the end, where it grows in stages. run: an engine.run.Run, for
    validation, log and checkpoints. call: how steps are run, see engine.graphs.
    """
    s, D = settings, distance(settings.loss_type)
    if s.inc_num > 1 and not depth:
        raise ValueError("distil: a student that grows in stages needs `depth`")

    def learner():
        optimizer = make_optimizer(student, s.optimizer, s.lr, s.momentum, s.weight_decay)
        return Learner(student, optimizer, s.precision, s.clip, "D(S(x), T(x))")

    keep = {f"generator_{scale}": generator for scale, generator in (generators or {}).items()}
    S = learner()
    run = run or Run(epochs=s.nEpochs)
    run.begin(student=S, **keep)
    for epoch in range(run.epoch, s.nEpochs + 1):
        begin, end, blocks = stage(epoch, depth, s)
        if epoch == begin > 1 and run.round == run.step == 0:  # a new stage: what is trained stays, the rest is new
            seed_everything(s.seed, "stage", begin)
            student.grow(blocks)
            S = learner()
            run.begin(student=S, **keep)

        for i in run.rounds(s.iter, "round", every=10):
            number, epochs_done = (epoch - 1) * s.iter + i, epoch - 1 + i / s.iter

            # Student phase: lower D(S(x), T(x)).
            S.set_rate(decay(s.schedule, epochs_done - (begin - 1), end - begin, s.step))
            for k in range(run.step, s.stu_step):
                with run.interruptible():
                    x, target = images(number * s.stu_step + k)
                run.add(student=call(train_step, S, x, target, D) / s.stu_step)
                run.steps += 1
                run.advance(i, k + 1)
            S.check()

            # Generator phase: lower reconw * L_R + gw * L_adv.
            if generators:
                scale = choose_scale(s.seed, s.scales, "generator", number)
                G, z = generators[scale], latent(s, "generator z", number, S.device)[parallel.shard(s.batchSize)]
                G.set_rate(decay(s.schedule, epochs_done, s.nEpochs, s.step))
                L_R, L_adv = call(generator_step, G, S, teacher, z, scale, D, s.reconw, s.gw, s.rounded)
                run.add(L_R=L_R, L_adv=L_adv)
                G.check()
            run.advance(i + 1)
        run.end_epoch(S)
    return student.eval()


def choose_scale(seed, scales, phase, number):
    """The scale that this phase uses in this step."""
    return scales[stream_seed(seed, phase, "scale", number) % len(scales)]


def latent(settings, phase, number, device):
    """z ~ N(0, I), (batchSize, latent)."""
    stream = random_stream(settings.seed, phase, number, device=device)
    return torch.randn(settings.batchSize, settings.latent, generator=stream, device=device)


# ---- images ----------------------------------------------------------------------------------------


def make_generators(settings, size, teacher, device):
    """{scale: learner of G_s}, in float32: a generator's step is one in fifty."""
    seed_everything(settings.seed, "generators")
    networks = {scale: Generator(settings.latent, lr_size(size, scale), teacher.channels).to(device)
                for scale in settings.scales}
    return {scale: Learner(network, make_optimizer(network, "adam", settings.lr_G), loss="the generator's loss")
            for scale, network in networks.items()}


@torch.no_grad()
def generate(generator, z, scale, upscaled):
    """Student inputs that a learner's generator draws from z."""
    return network_input(generator.network(z), scale, upscaled)


def make_source(args, settings, teacher, generators, call):
    """The source (see data.sources) that --source names."""
    about = (args.input_size, teacher.channels, teacher.upscaled_input, args.seed, args.device)
    if args.source == "noise":
        draw = noise_source(args.noise, *about)
    elif args.source == "folder":
        paths = find_training_images(args.data_dir, args.val_dataset == HELD_OUT)
        draw = folder_source(paths, settings.scales, *about, parallel.quiet())
    elif "dead_leaves" in args.source:
        draw = dead_leaves_source(*about, call)
    if not generators:
        return draw

    def generated(scale, step, _):
        z = latent(settings, "z", step, args.device)
        return call(generate, generators[scale], z, scale, teacher.upscaled_input)

    if args.source == "generator":
        return generated
    return lambda scale, step, count: (generated if step % 2 else draw)(scale, step, count)


@torch.no_grad()
def label(teacher, precision, x):
    """T(x), computed in that precision."""
    with autocast(x.device, precision):
        return teacher(x).float()


def labelled(args, settings, teacher, draw, call):
    """images(step) for distil: fresh ones every step, or with --bank those drawn before."""
    if args.bank:
        bank = Bank(draw, partial(call, label, teacher, args.precision), settings.scales, args.bank,
                    args.iter * args.stu_step, args.seed, parallel.quiet())
        return lambda step: tuple(part[parallel.shard(args.batchSize)] for part in bank.batch(step, args.batchSize))

    def fresh(step):
        scale = choose_scale(args.seed, settings.scales, "student", step)
        x = draw(scale, step, args.batchSize)[parallel.shard(args.batchSize)]
        return x, call(label, teacher, args.precision, x)

    return fresh


def check(args, teacher, config, settings):
    """Raise InputError where the flags do not fit each other or the teacher."""
    if min(lr_size(args.input_size, s) for s in settings.scales) < 8:  # the generator's first layers need 2x2
        raise InputError(f"--input_size {args.input_size}: too small at x{max(settings.scales)}; the least is "
                         f"{8 * max(settings.scales)}")
    if args.inc_num > config["n_resblocks"]:
        raise InputError(f"--inc_num {args.inc_num}: the student has only {config['n_resblocks']} body blocks")
    if args.inc_num > 1 and not 0 < args.inc_step * (args.inc_num - 1) < args.nEpochs:
        raise InputError(f"--inc_step {args.inc_step}: {args.inc_num} stages need --inc_step of at least 1 and "
                         f"at most (nEpochs - 1) / (inc_num - 1)")
    if config.get("n_feats", 1) < 1:
        raise InputError(f"{args.pretrained}: has one channel, which cannot be halved; use --model_type=origin")
    if args.bank and "generator" in args.source:
        raise InputError(f"--bank {args.bank}: the images of generators change as they learn; use --bank=0")
    if args.student_init == "teacher":
        check_start(teacher, config, args.inc_num)
    if args.model:
        student = custom_network(args.model, "student")
        check_pair(teacher, student, args.pretrained, f"--model {args.model}: student()")
        check_learns(student, args.model)
    if args.student:
        raise InputError("--student: goes with --test_only; to continue a run give --resume its checkpoint.pth")


# ---- the run ---------------------------------------------------------------------------------------


def settle(args):
    """Fill in the defaults that depend on other flags. Touches nothing else."""
    if args.demo and not args.test_only:
        args.resume = args.resume or "auto"
    settle_shared_flags(args, "demo" if args.demo else "distillation", "student.pth")
    if args.bank is None:
        reuse = args.recipe == "fast" and "generator" not in args.source
        args.bank = min(-(-args.iter * args.stu_step * args.batchSize // 4), Bank.MOST) if reuse else 0


def warn_of_a_bad_teacher(validation, teacher, path, log):
    """Say so where the teacher is worse than bicubic on an image: its file was taken for something else, perhaps."""
    ours, bicubic = validation.one_image(teacher)
    if ours < bicubic:
        log.line(f"warning: {path}: gives {ours:.2f} dB on an image where bicubic gives {bicubic:.2f}; is it the "
                 "network that it was taken for?")


def first_student(args, settings, run, teacher, config):
    """The student that a run begins with, random or from its teacher, as deep as in the stage of the last step."""
    seed_everything(args.seed, "student", 0)
    if args.model:
        return custom_network(args.model, "student").to(args.device)
    if args.student_init == "teacher" and not run.state:
        images = start_images(settings.scales, args.input_size, teacher.channels, teacher.upscaled_input, args.seed,
                              args.device)
        return student_from_teacher(teacher, images, config["n_feats"], args.seed, parallel.quiet())
    blocks = stage(run.epoch - (run.round == run.step == 0), config["n_resblocks"], settings)[2]
    return build_model({**config, "n_resblocks": blocks}).to(args.device)


def networks_to_score(args):
    """--test_only: {name: network} of the teacher and --student."""
    if not args.student:
        raise InputError("--test_only: say which student to score with --student")
    teacher, student = (load_network(path, role, args.device, args.model, args.res_scale)
                        for path, role in ((args.pretrained, "teacher"), (args.student, "student")))
    check_pair(teacher, student, args.pretrained, args.student)
    return {"teacher": teacher, "student": student}


def main(args):
    settle(args)
    set_up(args.device, args.precision, args.threads, args.deterministic)
    networks = networks_to_score(args) if args.test_only else {
        "teacher": load_network(args.pretrained, "teacher", args.device, args.model, args.res_scale)}
    teacher = networks["teacher"].requires_grad_(False)
    if args.arch not in (None, teacher.config["arch"]):
        raise InputError(f"--arch {args.arch}: {args.pretrained} is of another, {teacher.config['arch']}")
    args.loss_type = args.loss_type or ("MSE" if teacher.upscaled_input else "L1")
    scales = choose_scales(args.scale, teacher, args.pretrained)
    settings = Settings(scales, **{field.name: getattr(args, field.name) for field in fields(Settings)[1:]})
    config = student_config(teacher, args.model_type == "half", args.n_resblocks, args.n_feats)
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device, args.self_ensemble)
    validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
    call = recorder(args.device, args.plain)
    generators = draw = None
    if not args.test_only:
        check(args, teacher, config, settings)
        if "generator" in args.source:
            generators = make_generators(settings, args.input_size, teacher, args.device)
        draw = make_source(args, settings, teacher, generators, call)

    def validate(student, epoch):
        save_epoch_samples(Path(args.save_dir, f"samples/epoch_{epoch:04d}.png"),
                           [draw(scale, -1, args.batchSize) for scale in scales])
        return validation.psnr(student)

    run = open_run(args, "distillation", validate, teacher=fingerprint(teacher))
    with run:
        trained = {}
        if not args.test_only:
            if parallel.is_main():
                warn_of_a_bad_teacher(validation, teacher, args.pretrained, run.log)
            with run.interruptible():
                student = first_student(args, settings, run, teacher, config)
            images, depth = labelled(args, settings, teacher, draw, call), config["n_resblocks"]
            networks["student"] = distil(teacher, student, images, settings, generators, depth, run, call)
            trained = {"seconds": round(run.seconds, 1), "student_steps": run.steps,
                       "images": run.steps * args.batchSize, "bank": args.bank}
        if parallel.is_main():
            report(args, run, networks, benchmarks, trained)


def report(args, run, networks, benchmarks, trained):
    """Leave the student, score it beside its teacher, draw pictures."""
    if trained:
        save_model(networks["student"], args.output)
        save_sample_sheet(run.path / "samples", run.path / "samples.png", benchmarks.scales)
        save_curves(run.path)
    with run.interruptible():
        run.log.report(benchmarks, networks, vars(args), **trained)
        save_comparison(run.path / "comparison.png", benchmarks.examples(networks))
    run.log.line(f"student: {args.student or args.output}; pictures and results: {run.path}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
