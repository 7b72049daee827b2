"""Train a super-resolution network on images: the teacher, or the half-width student with the data.

The teacher T of Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution" (CVPR 2021):

    python train_teacher.py --model_type=origin                  # leaves teacher.pth
    python train_teacher.py --model_type=half                    # leaves half.pth, Table 1's Student column
    python train_teacher.py --test_only --pretrained=teacher.pth --data_test=Set5+Set14
    python train_teacher.py --arch=edsr_baseline --scale=2       # another kind of network: RGB, upscales itself

Images are expected in datasets/train291 and datasets/benchmark (see the README); --data_dir=skimage trains
and scores on the pictures that scikit-image ships.
"""

from data.benchmark import Benchmarks, choose_scales, choose_sets, choose_validation
from data.images import HELD_OUT, find_training_images
from data.patches import TrainingPatches
from data.sources import start_images
from engine import parallel
from engine.graphs import recorder
from engine.learner import Learner, decay, distance, make_optimizer, train_step
from engine.options import (Parser, add_shared_flags, count, number, open_run, positive, set_up,
                            settle_shared_flags)
from figure.plots import save_curves
from models import PRESETS, build_model, half_width
from models.from_teacher import student_from_teacher
from models.load import load_model
from models.pair import check_start, student_config
from utils import InputError, fingerprint, run_script, save_model, seed_everything


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    parser.set_defaults(model_type="origin", nEpochs=50, iter=1000)
    add = parser.add_argument
    add("--arch", choices=tuple(PRESETS), help="(default: vdsr; edsr_baseline is 16 blocks of 64, edsr 32 of 256)")
    add("--n_resblocks", type=count, help="body blocks (default: those of --arch)")
    add("--n_feats", type=number(int, 2), help="channels at full width (default: those of --arch)")
    add("--res_scale", type=positive, help="edsr: factor on each residual block (default: that of --arch)")
    add("--patch_size", type=count, default=48, help="side of the HR patches")
    add("--pretrained", metavar="CHECKPOINT",
        help="start from (or with --test_only score) this network, whose architecture it is then; of an edsr of "
        "another --scale what fits is taken; with --student_init=teacher a half-width is fitted to it")
    return parser.parse_args(argv)


def train(model, patches, settings, run, call):
    """Train the network `model` to lower D(model(input), HR). settings: the flags; run, call: as in distil."""
    s, D = settings, distance(settings.loss_type)
    optimizer = make_optimizer(model, s.optimizer, s.lr, s.momentum, s.weight_decay)
    learner = Learner(model, optimizer, s.precision, s.clip)
    run.begin(model=learner)
    for epoch in range(run.epoch, s.nEpochs + 1):
        for i in run.rounds(s.iter, "step", every=50):
            learner.set_rate(decay(s.schedule, epoch - 1 + i / s.iter, s.nEpochs, s.step))
            inputs, hr = patches.batch((epoch - 1) * s.iter + i, s.batchSize, parallel.shard(s.batchSize))
            run.add(loss=call(train_step, learner, inputs, hr, D))
            run.steps += 1
            run.advance(i + 1)
            if i % 50 == 0:  # this waits for the GPU
                learner.check()
        run.end_epoch(learner)
    return model.eval()


def make_model(args, pretrained):
    """The network to train: `pretrained`, or a new one of --arch, --n_resblocks, --n_feats, halved or fitted to it."""
    given = {name: getattr(args, name) for name in ("n_resblocks", "n_feats", "res_scale") if getattr(args, name)}
    asked = {**PRESETS[args.arch or "vdsr"], **given}
    if pretrained and args.arch and asked["arch"] != pretrained.config["arch"]:
        raise InputError(f"--arch {args.arch}: {args.pretrained} is of another, {pretrained.config['arch']}")
    if pretrained and (args.test_only or args.student_init == "random"):
        for name in ("n_resblocks", "n_feats"):
            if given.get(name, pretrained.config[name]) != pretrained.config[name]:
                raise InputError(f"--{name} {given[name]}: {args.pretrained} has {pretrained.config[name]}")
        full = {preset["n_feats"] for preset in PRESETS.values()}
        if args.model_type == "half" and not args.test_only and pretrained.config["n_feats"] in full:
            raise InputError(f"--model_type half: {args.pretrained} is of full width, and so would be what starts from "
                             "it; to fit half a width to it, --student_init=teacher")
        if pretrained.upscaled_input or args.test_only or args.scale in (0, *pretrained.scales):
            return pretrained
        seed_everything(args.seed, "model")
        model = build_model({**pretrained.config, "scale": args.scale}).to(args.device)
        ours, theirs = model.state_dict(), pretrained.state_dict()  # of whose upsampler not all fits
        fitting = {name: theirs[name] for name in ours if name in theirs and theirs[name].shape == ours[name].shape}
        model.load_state_dict(fitting, strict=False)
        return model
    if args.student_init == "teacher":
        if not pretrained or args.model_type != "half":
            raise InputError("--student_init teacher: needs --model_type=half and the teacher as --pretrained")
        config = student_config(pretrained, True, args.n_resblocks, args.n_feats)
        check_start(pretrained, config)
        return build_model(config).to(args.device)
    if asked["arch"] == "edsr":
        if not args.scale:
            raise InputError("--scale 0: an edsr has one scale; give --scale 2, 3 or 4")
        asked["scale"] = args.scale
    elif "res_scale" in given:
        raise InputError("--res_scale: only an edsr has it")
    seed_everything(args.seed, "model")
    return build_model(half_width(asked) if args.model_type == "half" else asked).to(args.device)


def main(args):
    settle_shared_flags(args, "train_teacher", "teacher.pth" if args.model_type == "origin" else "half.pth")
    if args.test_only and not args.pretrained:
        raise InputError("--test_only: say what to score with --pretrained")
    set_up(args.device, args.precision, args.threads, args.deterministic)
    pretrained = args.pretrained and load_model(args.pretrained, args.device, args.res_scale)
    model = make_model(args, pretrained)
    scales = choose_scales(args.scale, model, args.pretrained)
    if not model.upscaled_input and args.patch_size % scales[0]:
        raise InputError(f"--patch_size {args.patch_size}: must be a multiple of the scale, {scales[0]}")
    args.loss_type = args.loss_type or ("MSE" if model.upscaled_input else "L1")
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device, args.self_ensemble)
    validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
    run = open_run(args, "train_teacher", lambda model, epoch: validation.psnr(model),
                   initial=fingerprint(pretrained) if pretrained else None, **model.config)
    if not args.test_only:
        paths = find_training_images(args.data_dir, args.val_dataset == HELD_OUT)
        patches = TrainingPatches(paths, scales, args.patch_size, args.seed, args.device, model.channels,
                                  model.upscaled_input, parallel.quiet())
    with run:
        trained = {}
        if not args.test_only:
            if args.student_init == "teacher" and not run.state:
                images = start_images(scales, 48, model.channels, model.upscaled_input, args.seed, args.device)
                n_feats = model.config["n_feats"]
                with run.interruptible():
                    model = student_from_teacher(pretrained, images, n_feats, args.seed, parallel.quiet())
            train(model, patches, args, run, recorder(args.device, args.plain))
            trained = {"seconds": round(run.seconds, 1), "steps": run.steps, "images": run.steps * args.batchSize}
        if parallel.is_main():
            if trained:
                save_model(model, args.output)
                run.log.line(f"the trained network is {args.output}")
                save_curves(run.path)
            with run.interruptible():
                role = "teacher" if args.model_type == "origin" else "student"
                run.log.report(benchmarks, {role: model}, vars(args), **trained)


if __name__ == "__main__":
    run_script(main, parse_arguments())
