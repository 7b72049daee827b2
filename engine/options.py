"""The flags both scripts have, the defaults that depend on others, and what a main sets up by them."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch

from engine import parallel
from engine.learner import LR, WEIGHT_DECAY
from engine.log import Log
from engine.run import TRAINED, Run
from utils import InputError, choose_device, refusing, set_up_device

# Flags that may change where a run is resumed: paths, length, logging, device and how it computes. (The scripts pass
# what is in the file that --pretrained names.)
MAY_CHANGE = {"resume", "pretrained", "nEpochs", "save_dir", "output", "data_dir", "data_test", "self_ensemble",
              "threads", "device", "precision", "plain", "checkpoint_every", "tensorboard"}
OF_A_RUN = {*TRAINED, "config.json", "log.txt", "metrics.jsonl", "results.json", "curves.png", "samples.png",
            "comparison.png", "samples", "tensorboard"}


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        none = action.default is None or action.default is False
        return action.help if none else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Argument parser that answers a wrong flag with one line, and wants flags in full."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message):
        print(f"{self.prog}: error: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def number(kind, least, most=2**31 - 1):
    """An argparse type: a `kind` from `least` to `most`."""

    def parse(text):
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not at least {least} and at most {most}")
        return value

    parse.__name__ = {int: "integer", float: "number"}[kind]
    return parse


count = number(int, 1)
whole = number(int, 0)
positive = number(float, 1e-12)
weight = number(float, 0)
threads = number(int, 0, 1024)


def add_shared_flags(parser):
    """The flags both scripts have, the reference's and ours."""
    add = parser.add_argument
    add("--model_type", choices=("origin", "half"), help="full width, or half of it")
    add("--batchSize", type=count, default=128, help="images a step")
    add("--nEpochs", type=count, help="epochs in all")
    add("--iter", type=count, help="rounds an epoch")
    add("--optimizer", choices=tuple(LR), default="sgd", help="of the trained network")
    add("--lr", type=positive, help="learning rate (default: 0.1 for sgd, 1e-3 for adam, 3e-3 for muon)")
    add("--schedule", choices=("step", "cosine", "trapezoid"), default="step", help="how learning rates fall")
    add("--step", type=count, default=10, help="step schedule: a tenth of the rate every so many epochs")
    add("--clip", type=positive, default=0.4, help="largest norm of the trained network's gradient")
    add("--momentum", type=number(float, 0, 1), default=0.9, help="of sgd")
    add("--weight-decay", "--wd", type=weight, help="(default: 1e-4 for sgd, 0 for adam and muon)")
    add("--loss_type", choices=("MSE", "L1"), help="squared or absolute error (default: MSE for vdsr, L1 for edsr)")
    add("--student_init", choices=("random", "teacher"), default="random", help="at random, or fitted to its teacher")
    add("--scale", type=int, choices=(0, 2, 3, 4), default=0, help="0: all of the network's, at random")
    add("--start-epoch", type=count, default=1, help="begin at this epoch of the schedules")
    add("--resume", metavar="CHECKPOINT", help="go on from this checkpoint.pth; auto: the newest in --save_dir, if any")
    add("--checkpoint_every", type=positive, default=5, metavar="MINUTES", help="besides after every epoch")
    add("--threads", type=threads, default=0, help="CPU threads; 0: as many as cores")
    add("--val_dataset", help="set scored after each epoch (default: Set5); held_out: twenty training images, left out")
    add("--data_test", metavar="A+B", help="sets scored at the end (default: all that are found)")
    add("--self_ensemble", action="store_true", help="score the mean of outputs over eight flips and turns")
    add("--data_dir", "--tmp_data_dir", default="datasets", help="folder of the image sets")
    add("--save_dir", "--tmp_save_dir",
        help="folder for all that the run leaves (default: runs/SCRIPT; runs/SCRIPT_test with --test_only)")
    add("--output", help="where the trained network goes besides (default: teacher.pth, half.pth or student.pth)")
    add("--tensorboard", action="store_true", help="log for TensorBoard, too, in --save_dir (pip install tensorboard)")
    add("--test_only", action="store_true", help="score, do not train")
    add("--seed", type=whole, default=1, help="of everything random")
    add("--precision", choices=("auto", "fp32", "tf32", "bf16", "fp16"), default="auto", help="of convolutions in "
        "training; weights and scoring are fp32 always. auto: fp16 on CUDA, bf16 on CPUs that compute in it, else fp32")
    add("--plain", action="store_true", help="no CUDA graphs, and fp32 unless --precision says otherwise")
    add("--deterministic", action="store_true", help="on CUDA, only kernels that give the same result every time")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; others that PyTorch names (mps) are untested")


def settle_shared_flags(args, script, output):
    """Fill in defaults that depend on other flags; refuse contradictions, and before training what cannot be written.

    script and output: what names the default --save_dir, and the default --output.
    """
    for name, value in vars(args).items():
        if value == "":
            raise InputError(f"--{name}: is empty")
    if args.resume not in (None, "auto"):
        args.save_dir = args.save_dir or str(Path(args.resume).parent)
        if Path(args.resume).resolve().parent != Path(args.save_dir).resolve():
            raise InputError(f"--resume {args.resume}: a run goes on in its own folder, which --save_dir "
                             f"{args.save_dir} is not")
    args.save_dir = args.save_dir or f"runs/{script}" + ("_test" if args.test_only else "")
    args.output = args.output or output
    args.lr = args.lr or LR[args.optimizer]
    args.weight_decay = WEIGHT_DECAY[args.optimizer] if args.weight_decay is None else args.weight_decay
    args.device = choose_device(args.device)
    if args.precision == "auto":
        args.precision = "fp32" if args.plain or getattr(args, "model", None) else best_precision(args.device)
    if args.start_epoch > args.nEpochs:
        raise InputError(f"--start-epoch {args.start_epoch}: is beyond --nEpochs {args.nEpochs}")
    if args.resume and args.test_only:
        raise InputError("--resume: cannot go with --test_only, which does not train")
    if args.test_only and any(Path(args.save_dir, name).exists() for name in TRAINED):
        raise InputError(f"--save_dir {args.save_dir}: holds a run; give --test_only another folder")
    if args.batchSize % parallel.world_size():
        raise InputError(f"--batchSize {args.batchSize}: is no multiple of the {parallel.world_size()} processes")
    if args.tensorboard and not find_spec("tensorboard"):
        raise InputError("--tensorboard: needs pip install tensorboard")
    save_dir, output = (Path(given).resolve() for given in (args.save_dir, args.output))
    if output.is_dir() or output in (save_dir, *save_dir.parents):
        raise InputError(f"--output {args.output}: is a folder")
    if output.parent == save_dir and output.name in OF_A_RUN:
        raise InputError(f"--output {args.output}: is a name of the run itself; give another name")
    for name in ("pretrained", "model"):
        if not args.test_only and output == Path(getattr(args, name, None) or "").resolve():
            raise InputError(f"--output {args.output}: is what --{name} names, and would replace it; give another name")
    for flag, given, folder in (("save_dir", args.save_dir, save_dir), ("output", args.output, output.parent)):
        standing = next(place for place in (folder, *folder.parents) if place.exists())
        with refusing(f"--{flag} {given}: {standing} cannot be written to"):
            TemporaryFile(dir=standing).close()


def set_up(device, precision, threads, deterministic):
    """Set the device up for training; join other processes; set TF32, and how kernels are chosen."""
    set_up_device(device, threads)
    parallel.init_process_group(device)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)


def best_precision(device):
    """The precision in which the device computes fastest at no loss: fp16 on CUDA, bf16 on CPUs that have it."""
    if device.type == "cuda":
        return "fp16"
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # PyTorch has no public name for it
    return "bf16" if device.type == "cpu" and has_bf16() else "fp32"


def open_run(args, script, validate, **identity):
    """The Run that the flags describe. identity: what else makes another run."""
    settings = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
    return Run(Log(args.save_dir, args.tensorboard), settings | {"script": script, **identity}, vars(args), args.resume,
               epochs=args.nEpochs, first_epoch=args.start_epoch, batch=args.batchSize, every=args.checkpoint_every,
               validate=validate)
