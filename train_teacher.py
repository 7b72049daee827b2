"""Train a super-resolution network on images: the teacher, or the half-width student with the data.

The teacher T of Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution" (CVPR 2021):

    python train_teacher.py --model_type=origin                  # leaves teacher.pth
    python train_teacher.py --model_type=half --output=half.pth  # Table 1's Student column
    python train_teacher.py --test_only --pretrained=teacher.pth --data_test=Set5+Set14

Images are expected in datasets/train291 and datasets/benchmark (see the README); --data_dir=skimage trains
and scores on the pictures that scikit-image ships.
"""

import argparse

from tqdm import trange

from data.benchmark import Benchmarks, choose_sets, choose_validation, format_table, paper_scores
from data.images import find_training_images
from data.patches import TrainingPatches
from models import build_model, half_width
from models.load import load_model
from options import (add_shared_flags, decay, descend, distance, make_optimizer, set_learning_rate,
                     settle_shared_flags)
from run import Run
from utils import InputError, run_script, save_model, seed_everything


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_flags(parser, output="teacher.pth")
    parser.set_defaults(model_type="origin", nEpochs=50, iter=1000)
    add = parser.add_argument
    add("--arch", choices=("vdsr", "edsr"), default="vdsr")
    add("--n_resblocks", type=int, help="body blocks (default 18 for vdsr, 16 for edsr)")
    add("--n_feats", type=int, default=64, help="channels at full width")
    add("--res_scale", type=float, default=1.0, help="edsr: factor on each residual block")
    add("--patch_size", type=int, default=48, help="side of the HR patches")
    add("--pretrained", metavar="CHECKPOINT", help="start from (or with --test_only score) these weights")
    return parser.parse_args(argv)


def train_epoch(args, run, model, optimizer, patches):
    """What is left of the run's epoch, --iter steps of D(model(input), HR)."""
    D = distance(args.loss_type)
    progress = trange(run.round, args.iter, desc=f"epoch {run.epoch}/{args.nEpochs}", unit="step", leave=False)
    for i in progress:
        set_learning_rate(optimizer, args.lr * decay(args, run.epoch - 1 + i / args.iter, args.nEpochs))
        inputs, hr = patches.batch((run.epoch - 1) * args.iter + i, args.batchSize)
        loss = D(model(inputs), hr)
        descend(loss, optimizer, args.clip, "the loss")
        run.sums += loss.detach() / hr.numel()
        if i % 50 == 0:
            progress.set_postfix(run.means(i + 1))
        run.done(i + 1)


def train(args, run, model, patches, validation):
    """Train to --nEpochs, saving after each epoch."""
    optimizer = make_optimizer(args, model.parameters())
    if run.state:
        model.load_state_dict(run.state["model"])
        optimizer.load_state_dict(run.state["optimizer"])
    run.snapshot = lambda: {"config": model.config, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with run:
        while run.epoch <= args.nEpochs:
            train_epoch(args, run, model, optimizer, patches)
            with run.resting():
                psnr = validation.psnr(model)
            run.end_epoch(model, psnr)


def make_model(args):
    """The network to train: --pretrained's, or a new one of --arch, --n_resblocks, --n_feats, halved."""
    if args.pretrained:
        return load_model(args.pretrained, args.device)
    config = {"arch": args.arch, "n_feats": args.n_feats}
    if args.n_resblocks is not None:
        config["n_resblocks"] = args.n_resblocks
    if args.arch == "edsr":
        if not args.scale:
            raise InputError("--scale 0: an edsr has one scale; give --scale 2, 3 or 4")
        config.update(scale=args.scale, res_scale=args.res_scale)
    seed_everything(args.seed, "model")
    return build_model(half_width(config) if args.model_type == "half" else config).to(args.device)


def main(args):
    settle_shared_flags(args, "train_teacher")
    if args.test_only and not args.pretrained:
        raise InputError("--test_only: say what to score with --pretrained")
    model = make_model(args)
    scales = (args.scale,) if args.scale else model.scales
    args.loss_type = args.loss_type or ("MSE" if model.upscaled_input else "L1")
    benchmarks = Benchmarks(choose_sets(args.data_dir, args.data_test), scales, args.device)
    if not args.test_only:
        validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), scales, args.device)
        patches = TrainingPatches(find_training_images(args.data_dir), scales, args.patch_size, args.seed,
                                  args.device, model.channels, model.upscaled_input)
    run = Run(args, ["loss"])
    if not args.test_only:
        train(args, run, model, patches, validation)
        save_model(model, args.output)
        run.say(f"the trained network is {args.output}")
    results = benchmarks.scores({"teacher": model}, bicubic=True)
    run.save_results(results)
    run.say(format_table(results, paper_scores(model)))


if __name__ == "__main__":
    run_script(main, parse_arguments())
