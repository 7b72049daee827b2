"""Train a super-resolution network on images: the teacher, or the half-width student with the data.

The teacher T of Zhang et al., "Data-Free Knowledge Distillation for Image Super-Resolution" (CVPR 2021):

    python train_teacher.py --model_type=origin                  # leaves teacher.pth
    python train_teacher.py --model_type=half --output=half.pth  # Table 1's Student column
    python train_teacher.py --test_only --pretrained=teacher.pth --data_test=Set5+Set14

Images are expected in datasets/train291 and datasets/benchmark (see the README); --data_dir=skimage trains
and scores on the pictures that scikit-image ships.
"""

import argparse

from torch.nn.utils import clip_grad_norm_
from tqdm import trange

from data.benchmark import Benchmarks, choose_sets, choose_validation, format_table, paper_scores
from data.images import find_training_images
from data.patches import TrainingPatches
from models import build_model, half_width
from models.load import load_model
from utils import (InputError, RunFolder, add_shared_flags, decay, distance, make_optimizer, run_script,
                   save_model, seed_everything, set_learning_rate, settle_shared_flags)


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


def train_step(model, optimizer, inputs, hr, distance_, clip):
    """One step on inputs and HR patches; returns D(model(inputs), HR), detached."""
    loss = distance_(model(inputs), hr)
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def train_epoch(args, epoch, model, optimizer, patches):
    """One epoch of --iter steps; returns the mean loss a pixel."""
    D = distance(args.loss_type)
    model.train()
    total = 0
    progress = trange(args.iter, desc=f"epoch {epoch}/{args.nEpochs}", unit="step", leave=False)
    for i in progress:
        done = epoch - 1 + i / args.iter
        set_learning_rate(optimizer, args.lr * decay(args, done, args.nEpochs))
        inputs, hr = patches.batch((epoch - 1) * args.iter + i, args.batchSize)
        total += train_step(model, optimizer, inputs, hr, D, args.clip) / hr.numel()
        if i % 50 == 0:
            progress.set_postfix(loss=f"{total.item() / (i + 1):.2e}")
    model.eval()
    return total.item() / args.iter


def train(args, folder, model, patches, validation):
    """Train to --nEpochs, saving after each epoch."""
    optimizer = make_optimizer(args, model.parameters())
    first = args.start_epoch
    if args.resume:
        state = folder.resume(args.resume)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
    for epoch in range(first, args.nEpochs + 1):
        loss = train_epoch(args, epoch, model, optimizer, patches)
        psnr = validation.psnr(model)
        folder.end_epoch(epoch, model, {"loss": loss}, psnr, {"optimizer": optimizer.state_dict()})


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
    folder = RunFolder(args)
    if not args.test_only:
        train(args, folder, model, patches, validation)
        save_model(model, args.output)
        folder.say(f"the trained network is {args.output}")
    results = benchmarks.scores({"teacher": model}, bicubic=True)
    folder.save_results(results, args)
    folder.say(format_table(results, paper_scores(model)))


if __name__ == "__main__":
    run_script(main, parse_arguments())
