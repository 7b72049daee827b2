"""Train a super-resolution network on images: the teacher, or the half-width student with the data.

The teacher T of Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution" (CVPR 2021):

    python train_teacher.py --model_type=origin                  # leaves teacher.pth
    python train_teacher.py --model_type=half                    # leaves half.pth, Table 1's Student column
    python train_teacher.py --test_only --pretrained=teacher.pth --data_test=Set5+Set14
    python train_teacher.py --arch=edsr_baseline --scale=2       # another kind of network: RGB, upscales itself

Images are expected in datasets/train291 and datasets/benchmark (see the README); --data_dir=skimage trains
and scores on the pictures that scikit-image ships.
"""


from tqdm import trange

from engine import parallel
from data.benchmark import Benchmarks, choose_scales, choose_sets, choose_validation
from data.images import HELD_OUT, find_training_images
from data.patches import TrainingPatches
from data.table import format_table, paper_scores
from models import PRESETS, build_model, half_width
from models.load import load_model
from engine.options import Parser, add_shared_flags, count, number, positive, settle_shared_flags
from engine.run import Run
from engine.learner import DTYPES, Learner, decay, distance, make_optimizer, recorded
from utils import InputError, fingerprint, run_script, save_model, seed_everything

ARCHITECTURE_FLAGS = ("arch", "n_resblocks", "n_feats", "res_scale")


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
        help="start from (or with --test_only score) this network, whose architecture it is then; an edsr of "
        "another --scale lends what fits")
    return parser.parse_args(argv)


def train_step(model, inputs, hr, D):
    """One step to lower D(model(input), HR). Returns the loss a pixel."""
    loss = model.descend(D(model(inputs), hr))
    return loss / parallel.total(loss.new_full((), hr.numel()))


def train_epoch(args, run, model, step, patches):
    """What is left of the run's epoch, --iter steps of the learner `model`."""
    progress = trange(run.round, args.iter, desc=f"epoch {run.epoch}/{args.nEpochs}", unit="step", leave=False,
                      disable=parallel.quiet())
    for i in progress:
        model.set_rate(args.lr * decay(args, run.epoch - 1 + i / args.iter, args.nEpochs))
        run.sums += step(*patches.batch((run.epoch - 1) * args.iter + i, args.batchSize))
        run.steps += 1
        if i % 50 == 0 or i + 1 == args.iter:  # these wait for the GPU
            model.check()
            progress.set_postfix(run.postfix())
        run.done(i + 1)


def restore(state, model):
    """Put a checkpoint's content back in its place."""
    model.master.load_state_dict(state["model"])
    model.load_state_dict(state["optimizer"])


def train(args, run, model, patches, validation):
    """Train the learner `model` to --nEpochs, saving after each epoch."""
    D = distance(args.loss_type)
    run.snapshot = lambda: {"config": model.master.config, "model": model.master.state_dict(),
                            "optimizer": model.state_dict()}
    step = recorded(lambda inputs, hr: train_step(model, inputs, hr, D), args)
    while run.epoch <= args.nEpochs:
        train_epoch(args, run, model, step, patches)
        psnr = {}
        if parallel.leader():
            with run.resting():
                psnr = validation.psnr(model.master)
        run.end_epoch(model.master, psnr)


def make_model(args):
    """The network to train: --pretrained's, or a new one of --arch, --n_resblocks, --n_feats, halved."""
    given = {name: getattr(args, name) for name in ARCHITECTURE_FLAGS if getattr(args, name) is not None}
    if args.pretrained:
        if given.keys() - {"res_scale"}:
            raise InputError(f"--{next(iter(given))}: cannot go with --pretrained, which says the architecture")
        model = load_model(args.pretrained, args.device, args.res_scale)
        if model.upscaled_input or args.test_only or args.scale in (0, *model.scales):
            return model
        seed_everything(args.seed, "model")
        return lend(model, build_model({**model.config, "scale": args.scale}).to(args.device))
    config = {**PRESETS[given.pop("arch", "vdsr")], **given}
    if config["arch"] == "edsr":
        if not args.scale:
            raise InputError("--scale 0: an edsr has one scale; give --scale 2, 3 or 4")
        config["scale"] = args.scale
    elif "res_scale" in given:
        raise InputError("--res_scale: only an edsr has it")
    seed_everything(args.seed, "model")
    return build_model(half_width(config) if args.model_type == "half" else config).to(args.device)


def lend(model, other):
    """`other` with the weights of `model` that fit: an EDSR of another scale starts with all but its upsampler."""
    weights = model.state_dict()
    for name, tensor in other.state_dict().items():
        if name in weights and weights[name].shape == tensor.shape:
            tensor.copy_(weights[name])
    return other


def main(args):
    settle_shared_flags(args, "train_teacher", "teacher.pth" if args.model_type == "origin" else "half.pth")
    if args.test_only and not args.pretrained:
        raise InputError("--test_only: say what to score with --pretrained")
    model = make_model(args)
    scales = choose_scales(args.scale, model, args.pretrained)
    if not model.upscaled_input and args.patch_size % scales[0]:
        raise InputError(f"--patch_size {args.patch_size}: must be a multiple of the scale, {scales[0]}")
    if args.batchSize < parallel.world():
        raise InputError(f"--batchSize {args.batchSize}: is less than the {parallel.world()} processes")
    args.loss_type = args.loss_type or ("MSE" if model.upscaled_input else "L1")
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device, args.self_ensemble)
    if not args.test_only:
        validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
        paths = find_training_images(args.data_dir, args.val_dataset == HELD_OUT)
        patches = TrainingPatches(paths, scales, args.patch_size, args.seed, args.device, model.channels,
                                  model.upscaled_input)
    initial = fingerprint(model) if args.pretrained else None
    run = Run(args, ["loss"], script="train_teacher", initial=initial, **model.config)
    learner = Learner(model, make_optimizer(args, model.parameters()), DTYPES[args.precision], args.clip)
    run.restore(lambda state: restore(state, learner))
    with run:
        if not args.test_only:
            train(args, run, learner, patches, validation)
        if not parallel.leader():
            return
        if not args.test_only:
            save_model(model, args.output)
            run.say(f"the trained network is {args.output}")
        with run.resting():
            name = "teacher" if args.model_type == "origin" else "student"
            results = benchmarks.scores({name: model}, bicubic=True)
        protocol = benchmarks.protocol({name: model})
        run.save_results(results, protocol, steps=run.steps)
        run.say(format_table(results, protocol, paper_scores(model)))


if __name__ == "__main__":
    run_script(main, parse_arguments())
