"""Distil a trained super-resolution network into one of half its width, without data.

Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution", CVPR 2021:

    python distillation.py --demo                      # five minutes on a CPU, no files needed
    python distillation.py --stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 \\
        --latent=256 --lr_G=1e-5 --model_type=half --nEpochs=80 --pretrained=teacher.pth
    python distillation.py --test_only --pretrained=teacher.pth --student=student.pth

A generator for each scale draws LR images. The student learns to give what the teacher gives on them; the
generators learn to draw images that the teacher reconstructs and on which the student is still wrong.
"""

from pathlib import Path

import torch
from tqdm import trange

from bicubic import imresize
from data.benchmark import (Benchmarks, choose_scales, choose_sets, choose_validation, format_table,
                            paper_scores)
from data.sources import Generators, folder_source, lr_size, network_input, noise_source
from figure.pictures import save_comparison, save_epoch_samples, save_sample_sheet
from models import build_model, half_width
from models.load import load_model
from options import Parser, add_shared_flags, count, positive, settle_shared_flags, weight, whole
from run import Run
from training import DTYPES, Learner, decay, distance, frozen, lowered, make_optimizer, recorded
from utils import InputError, fingerprint, run_script, save_model, seed_everything, stream_seed

# --demo: a small teacher (how it was trained is in the README) and settings for minutes on a CPU.
DEMO = dict(
    pretrained=str(Path(__file__).parent / "models" / "demo_teacher.pth"), output="runs/demo/student.pth",
    data_test="skimage", val_dataset="skimage", batchSize=4, nEpochs=5, iter=50, stu_step=20, optimizer="adam",
    schedule="cosine", lr=2e-3,
)


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    parser.set_defaults(model_type="half", nEpochs=80, iter=120)
    add = parser.add_argument
    add("--demo", action="store_true", help="a small example that needs no files and no GPU")
    add("--pretrained", metavar="CHECKPOINT", default="teacher.pth", help="the teacher")
    add("--student", metavar="CHECKPOINT", help="the student to score with --test_only")
    add("--source", choices=("generator", "noise", "folder"), default="generator",
        help="of student inputs: the paper's generators, noise, or the real images of --data_dir")
    add("--input_size", type=count, default=48, help="side of the student's inputs, in HR pixels")
    add("--stu_step", type=count, default=50, help="student steps a round")
    add("--latent", type=count, default=256, help="length of the latent vector")
    add("--ge_type", choices=("IN", "BN"), default="IN", help="generator's normalisation: instance or batch")
    add("--lr_G", type=positive, default=1e-5, help="generators' learning rate (Adam)")
    add("--reconw", type=weight, default=1.0, help="weight of the reconstruction loss")
    add("--gw", type=weight, default=1.0, help="weight of the adversarial loss")
    add("--inc_num", type=int, choices=(18, 9, 6, 3, 2, 1), default=1, help="progressive stages")
    add("--inc_step", type=whole, default=0, help="epochs a stage")
    add("--grow_init", choices=("random", "identity"), default="random", help="how added blocks start")
    if parser.parse_known_args(argv)[0].demo:
        parser.set_defaults(**DEMO)
    return parser.parse_args(argv)


# ---- the method ------------------------------------------------------------------------------------


def student_step(student, teacher, x, D):
    """Student phase: one step to lower D(S(x), T(x)). Returns the loss a pixel."""
    with torch.no_grad():
        target = teacher(x)
    loss = D(student(x), target)
    student.descend(loss)
    return loss.detach() / target.numel()


def generator_losses(generator, student, teacher, z, scale, D):
    """L_R and L_adv of the images that G_s draws from z (paper section 3).

    L_R: the teacher's output, downsampled, must give the input back. L_adv falls where the student is
    wrong. Both reach the generator through the teacher too, since resizing is differentiable.
    """
    x_lr = generator(z)
    x = network_input(x_lr, scale, teacher.upscaled_input)
    teacher_output = teacher(x)
    reconstruction = D(imresize(teacher_output, 1 / scale).clamp(0, 1), x_lr)
    adversarial = -torch.log1p(D(student(x), teacher_output))
    return reconstruction, adversarial


def generator_step(generator, student, teacher, z, scale, D, reconw, gw):
    """Generator phase: one step on reconw * L_R + gw * L_adv. Returns L_R a pixel and L_adv."""
    with frozen(student.network):
        reconstruction, adversarial = generator_losses(generator, student, teacher, z, scale, D)
        generator.descend(reconw * reconstruction + gw * adversarial)
    pixels = len(z) * teacher.channels * generator.master.size**2
    return torch.stack((reconstruction.detach() / pixels, adversarial.detach()))


def stages(depth, args):
    """Progressive distillation: [(first epoch, epoch after the last, body blocks), ...]."""
    begins = [1 + i * args.inc_step for i in range(args.inc_num)]
    blocks = [depth * (i + 1) // args.inc_num for i in range(args.inc_num)]
    return list(zip(begins, begins[1:] + [args.nEpochs + 1], blocks))


def distil_epoch(args, run, stage, student, take_step, draw, generators, scales):
    """What is left of the run's epoch: --iter rounds of --stu_step student steps and one generator step.

    stage: (first epoch, epoch after the last), within which the student's schedule runs. take_step(x):
    student_step of the learner `student`.
    """
    begin, end = stage
    progress = trange(run.round, args.iter, desc=f"epoch {run.epoch}/{args.nEpochs}", unit="round", leave=False,
                      disable=None)
    for i in progress:
        number = (run.epoch - 1) * args.iter + i
        epochs_done = run.epoch - 1 + i / args.iter

        # Student phase
        student.set_rate(args.lr * decay(args, epochs_done - (begin - 1), end - begin))
        for k in range(run.step, args.stu_step):
            step = number * args.stu_step + k
            scale = choose_scale(args.seed, scales, "student", step)
            run.sums[0] += take_step(draw(scale, step)) / args.stu_step
            run.steps += 1
            run.done(i, k + 1)
        student.check()

        # Generator phase
        if generators:
            scale = choose_scale(args.seed, scales, "generator", number)
            run.sums[1:] += generators.step(scale, number, args.lr_G * decay(args, epochs_done, args.nEpochs))
            generators.check()

        run.done(i + 1)
        if i % 10 == 0:
            progress.set_postfix(run.postfix())


def choose_scale(seed, scales, phase, number):
    """The scale that this phase uses in this step."""
    return scales[stream_seed(seed, phase, "scale", number) % len(scales)]


# ---- the run ---------------------------------------------------------------------------------------


def make_source(args, scales, teacher):
    """(draw, generators): the student's inputs draw(scale, step), and what draws them where that learns."""
    if args.source == "generator":
        generators = Generators(args, scales, teacher)
        return generators.draw, generators
    if args.source == "noise":
        return noise_source(args, teacher), None
    return folder_source(args, scales, teacher), None


def make_learner(args, student):
    """The student as a learner, with a new optimiser."""
    return Learner(student, make_optimizer(args, student.parameters()), DTYPES[args.precision], args.clip,
                   "D(S(x), T(x))")


def restore(state, args, generators):
    """The student, a learner, of a checkpoint; the generators' content goes back in its place."""
    student = build_model(state["config"]).to(args.device)
    student.load_state_dict(state["model"])
    learner = make_learner(args, student)
    learner.load_state_dict(state["optimizer"])
    if generators:
        generators.load_state_dict(state["generators"])
    return learner


def distil(args, run, student, teacher, scales, draw, generators, validation):
    """Distil to --nEpochs, saving after each epoch. student: a learner, None for a new run.

    Returns the student network.
    """
    D = distance(args.loss_type)
    full = half_width(teacher.config) if args.model_type == "half" else teacher.config
    run.snapshot = lambda: {"config": student.master.config, "model": student.master.state_dict(),
                            "optimizer": student.state_dict(),
                            "generators": generators.state_dict() if generators else None}
    for number, (begin, end, blocks) in enumerate(stages(full["n_resblocks"], args)):
        if end <= run.epoch:
            continue
        if student is None or (run.epoch, run.round, run.step) == (begin, 0, 0):  # a new stage
            seed_everything(args.seed, "student", number)
            if student is None:
                network = build_model({**full, "n_resblocks": blocks}).to(args.device)
            else:
                network = student.master
                network.grow(blocks, args.grow_init)
            student = make_learner(args, network)
        take_step = recorded(lambda x, student=student: student_step(student, teacher, x, D), args)
        if generators:
            generators.learn_by(lambda generator, z, scale, student=student: generator_step(
                generator, student, teacher, z, scale, D, args.reconw, args.gw))
        while run.epoch < end:
            distil_epoch(args, run, (begin, end), student, take_step, draw, generators, scales)
            with run.resting():
                psnr = validation.psnr(student.master)
            save_epoch_samples(run / f"samples/epoch_{run.epoch:04d}.png", [draw(s, "sample") for s in scales])
            run.end_epoch(student.master, psnr)
    return student.master if student else None


def check(args, teacher, scales):
    """Raise InputError where the flags do not fit each other or the teacher."""
    depth = teacher.config["n_resblocks"]
    if min(lr_size(args.input_size, s) for s in scales) < 8:  # the generator's first layers need 2x2
        raise InputError(f"--input_size {args.input_size}: too small at x{max(scales)}; the least is {8 * max(scales)}")
    if depth % args.inc_num:
        raise InputError(f"--inc_num {args.inc_num}: does not divide the teacher's {depth} body blocks")
    if args.inc_num > 1 and not 0 < args.inc_step * (args.inc_num - 1) < args.nEpochs:
        raise InputError(f"--inc_step {args.inc_step}: {args.inc_num} stages need --inc_step of at least 1 and "
                         f"at most (nEpochs - 1) / (inc_num - 1)")
    if args.model_type == "half" and teacher.config["n_feats"] < 2 and not args.test_only:
        raise InputError(f"{args.pretrained}: has one channel, which cannot be halved; use --model_type=origin")
    if args.student and not args.test_only:
        raise InputError("--student: goes with --test_only; to continue a run give --resume its checkpoint.pth")


def load_networks(args):
    """The teacher, frozen, and with --test_only the student."""
    if not Path(args.pretrained).is_file():
        raise InputError(f"{args.pretrained}: no such teacher; train_teacher.py makes one, --pretrained names one")
    teacher = load_model(args.pretrained, args.device).requires_grad_(False)
    if not args.test_only:
        return teacher, None
    if not args.student:
        raise InputError("--test_only: say which student to score with --student")
    student = load_model(args.student, args.device)
    if (student.config["arch"], student.scales) != (teacher.config["arch"], teacher.scales):
        raise InputError(f"{args.student}: has another architecture or scale than the teacher {args.pretrained}")
    if student.config["n_feats"] > teacher.config["n_feats"]:
        raise InputError(f"{args.student}: is wider than the teacher {args.pretrained}; are they swapped?")
    return teacher, student


def main(args):
    settle_shared_flags(args, "demo" if args.demo else "distillation", "student.pth")
    teacher, student = load_networks(args)
    scales = choose_scales(args.scale, teacher, args.pretrained)
    args.loss_type = args.loss_type or ("MSE" if teacher.upscaled_input else "L1")
    check(args, teacher, scales)
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device)
    if not args.test_only:
        validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
        lowered_teacher = lowered(teacher, DTYPES[args.precision])
        draw, generators = make_source(args, scales, lowered_teacher)
    losses = ["student", "L_R", "L_adv"] if args.source == "generator" else ["student"]
    run = Run(args, losses, script="distillation", teacher=fingerprint(teacher))
    begun = run.restore(lambda state: restore(state, args, generators))
    with run:
        if not args.test_only:
            student = distil(args, run, begun, lowered_teacher, scales, draw, generators, validation)
            save_model(student, args.output)
            save_sample_sheet(run / "samples", run / "samples.png", scales)
        networks = {"teacher": teacher, "student": student}
        with run.resting():
            results, example = benchmarks.scores(networks, bicubic=True), benchmarks.example(networks)
        run.save_results(results, student_steps=run.steps)
        save_comparison(run / "comparison.png", *example)
        run.say(format_table(results, paper_scores(teacher)))
        run.say(f"student: {args.student or args.output}; pictures and results: {run.path}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
