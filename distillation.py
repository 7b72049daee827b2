"""Distil a trained super-resolution network into one of half its width, without data.

Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution", CVPR 2021:

    python distillation.py --demo                      # five minutes on a CPU, no files needed
    python distillation.py --stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 \\
        --latent=256 --lr_G=1e-5 --model_type=half --nEpochs=80 --pretrained=teacher.pth
    python distillation.py --recipe=fast --pretrained=teacher.pth        # from dead leaves images
    python distillation.py --test_only --pretrained=teacher.pth --student=student.pth

A generator for each scale draws LR images. The student learns to give what the teacher gives on them; the
generators learn to draw images that the teacher reconstructs and on which the student is still wrong.
"""

from pathlib import Path

import torch
from tqdm import trange

from engine import parallel
from bicubic import imresize
from data.benchmark import Benchmarks, choose_scales, choose_sets, choose_validation
from data.dead_leaves import dead_leaves_source
from data.sources import Generators, folder_source, lr_size, network_input, noise_source
from data.table import format_table, paper_scores
from figure.pictures import save_comparison, save_epoch_samples, save_sample_sheet
from models import ARCHITECTURES
from models.pair import load_networks, new_student, student_config
from engine.options import Parser, add_shared_flags, count, positive, settle_shared_flags, weight, whole
from engine.run import Run
from engine.learner import DTYPES, Learner, decay, distance, frozen, lowered, make_optimizer, recorded
from utils import InputError, fingerprint, run_script, save_model, seed_everything, stream_seed

# The defaults are the paper's command; "fast" is this project's own.
FAST = dict(source="dead_leaves", optimizer="adam", schedule="cosine", nEpochs=90, iter=20)
RECIPES = {"paper": {}, "fast": FAST}
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
    add("--recipe", choices=tuple(RECIPES), default="paper", help="other defaults: fast distils from dead leaves")
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
    add("--noise_at", choices=("hr", "lr"), default="hr", help="the size at which it is drawn")
    add("--input_size", type=count, default=48, help="side of the student's inputs, in HR pixels")
    add("--stu_step", type=count, default=50, help="student steps a round")
    add("--latent", type=count, default=256, help="length of the latent vector")
    add("--ge_type", choices=("IN", "BN"), default="IN", help="generator's normalisation: instance or batch")
    add("--lr_G", type=positive, default=1e-5, help="generators' learning rate (Adam)")
    add("--reconw", type=weight, default=1.0, help="weight of the reconstruction loss")
    add("--gw", type=weight, default=1.0, help="weight of the adversarial loss")
    add("--rounded", action="store_true",
        help="round resized images in the generator's losses as the reference does, which cuts their gradient")
    add("--inc_num", type=int, choices=(18, 9, 6, 3, 2, 1), default=1, help="progressive stages")
    add("--inc_step", type=whole, default=0, help="epochs a stage")
    add("--grow_init", choices=("random", "identity"), default="random", help="how added blocks start")
    given = parser.parse_known_args(argv)[0]
    parser.set_defaults(**{**RECIPES[given.recipe], **(DEMO if given.demo else {})})
    return parser.parse_args(argv)


# ---- the method ------------------------------------------------------------------------------------


def student_step(student, teacher, x, D):
    """Student phase: one step to lower D(S(x), T(x)). Returns the loss a pixel."""
    with torch.no_grad():
        target = teacher(x)
    loss = student.descend(D(student(x), target))
    return loss / parallel.total(loss.new_full((), target.numel()))


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
    adversarial = -torch.log1p(parallel.total(D(student(x), teacher_output)))
    return reconstruction, adversarial


def generator_step(generator, student, teacher, z, scale, D, reconw, gw, rounded=False):
    """Generator phase: one step on reconw * L_R + gw * L_adv. Returns L_R a pixel and L_adv."""
    with frozen(student.network):
        reconstruction, adversarial = generator_losses(generator, student.network, teacher, z, scale, D, rounded)
        generator.descend(reconw * reconstruction + gw * adversarial)
    pixels = len(z) * teacher.channels * generator.master.size**2
    totals = parallel.total(torch.stack((reconstruction.detach(), reconstruction.new_full((), pixels))))
    return torch.stack((totals[0] / totals[1], adversarial.detach()))


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
                      disable=parallel.quiet())
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
    if args.source == "noise":
        return noise_source(args, teacher), None
    if args.source == "folder":
        return folder_source(args, scales, teacher), None
    if args.source == "dead_leaves":
        return dead_leaves_source(args, teacher), None
    generators = Generators(args, scales, teacher)
    if args.source == "generator":
        return generators.draw, generators
    leaves = dead_leaves_source(args, teacher)
    return lambda scale, step: (generators.draw if step % 2 else leaves)(scale, step), generators


def make_learner(args, student):
    """The student as a learner, with a new optimiser."""
    return Learner(student, make_optimizer(args, student.parameters()), DTYPES[args.precision], args.clip,
                   "D(S(x), T(x))")


def restore(state, args, generators):
    """The student, a learner, of a checkpoint; the generators' content goes back in its place."""
    student = new_student(args, state["config"])
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
    full = student_config(args, teacher)
    run.snapshot = lambda: {"config": student.master.config, "model": student.master.state_dict(),
                            "optimizer": student.state_dict(),
                            "generators": generators.state_dict() if generators else None}
    for number, (begin, end, blocks) in enumerate(stages(full["n_resblocks"], args)):
        if end <= run.epoch:
            continue
        if student is None or (run.epoch, run.round, run.step) == (begin, 0, 0):  # a new stage
            seed_everything(args.seed, "student", number)
            if student is None:
                network = new_student(args, {**full, "n_resblocks": blocks})
            else:
                network = student.master
                network.grow(blocks, args.grow_init)
            student = make_learner(args, network)
        take_step = recorded(lambda x, student=student: student_step(student, teacher, x, D), args)
        if generators:
            generators.learn_by(lambda generator, z, scale, student=student: generator_step(
                generator, student, teacher, z, scale, D, args.reconw, args.gw, args.rounded))
        while run.epoch < end:
            distil_epoch(args, run, (begin, end), student, take_step, draw, generators, scales)
            psnr = {}
            if parallel.leader():
                with run.resting():
                    psnr = validation.psnr(student.master)
                samples = [draw(s, -1) for s in scales]  # the same every time, but for what learns
                save_epoch_samples(run / f"samples/epoch_{run.epoch:04d}.png", samples)
            run.end_epoch(student.master, psnr)
    return student.master if student else None


def check(args, teacher, scales):
    """Raise InputError where the flags do not fit each other or the teacher."""
    config = student_config(args, teacher)
    if min(lr_size(args.input_size, s) for s in scales) < 8:  # the generator's first layers need 2x2
        raise InputError(f"--input_size {args.input_size}: too small at x{max(scales)}; the least is {8 * max(scales)}")
    if args.inc_num > config["n_resblocks"]:
        raise InputError(f"--inc_num {args.inc_num}: the student has only {config['n_resblocks']} body blocks")
    if args.inc_num > 1 and not 0 < args.inc_step * (args.inc_num - 1) < args.nEpochs:
        raise InputError(f"--inc_step {args.inc_step}: {args.inc_num} stages need --inc_step of at least 1 and "
                         f"at most (nEpochs - 1) / (inc_num - 1)")
    if config.get("n_feats", 1) < 1 and not args.test_only:
        raise InputError(f"{args.pretrained}: has one channel, which cannot be halved; use --model_type=origin")
    if args.batchSize < parallel.world():
        raise InputError(f"--batchSize {args.batchSize}: is less than the {parallel.world()} processes")
    if args.ge_type == "BN" and parallel.world() > 1:
        raise InputError("--ge_type BN: needs the whole batch in one process")
    if args.student and not args.test_only:
        raise InputError("--student: goes with --test_only; to continue a run give --resume its checkpoint.pth")


def main(args):
    settle_shared_flags(args, "demo" if args.demo else "distillation", "student.pth")
    teacher, student = load_networks(args)
    scales = choose_scales(args.scale, teacher, args.pretrained)
    args.loss_type = args.loss_type or ("MSE" if teacher.upscaled_input else "L1")
    check(args, teacher, scales)
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device, args.self_ensemble)
    if not args.test_only:
        validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
        lowered_teacher = lowered(teacher, DTYPES[args.precision])
        draw, generators = make_source(args, scales, lowered_teacher)
    losses = ["student", "L_R", "L_adv"] if "generator" in args.source else ["student"]
    run = Run(args, losses, script="distillation", teacher=fingerprint(teacher))
    begun = run.restore(lambda state: restore(state, args, generators))
    with run:
        if not args.test_only:
            student = distil(args, run, begun, lowered_teacher, scales, draw, generators, validation)
        if not parallel.leader():
            return
        if not args.test_only:
            save_model(student, args.output)
            save_sample_sheet(run / "samples", run / "samples.png", scales)
        networks = {"teacher": teacher, "student": student}
        with run.resting():
            results = benchmarks.scores(networks, bicubic=True)
            save_comparison(run / "comparison.png", benchmarks.examples(networks))
        protocol = benchmarks.protocol(networks)
        run.save_results(results, protocol, student_steps=run.steps)
        run.say(format_table(results, protocol, paper_scores(teacher)))
        run.say(f"student: {args.student or args.output}; pictures and results: {run.path}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
