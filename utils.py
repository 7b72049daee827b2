"""What both scripts share: their common flags, one seed for everything, files written whole, clear errors."""

import ctypes
import hashlib
import json
import math
import os
import pickle
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm


class InputError(Exception):
    """Something the user gave cannot be used; the message is the one line they read."""


def run_script(main, args):
    """Run main(args); an InputError ends the process with its one line on stderr and exit code 2."""
    try:
        main(args)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


# ---- randomness ------------------------------------------------------------------------------------


def stream_seed(seed, *key):
    """A 63-bit seed for the stream named by `key` (strings and integers) of the run's `seed`."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_stream(seed, *key, device="cpu"):
    """A torch.Generator of its own for every key: what is random in a step depends on (seed, step) alone."""
    return torch.Generator(device).manual_seed(stream_seed(seed, *key))


def seed_everything(seed, *key):
    """Seed torch's global generators, from which networks are initialised."""
    torch.manual_seed(stream_seed(seed, *key))


# ---- files -----------------------------------------------------------------------------------------


def write_atomically(path, write):
    """Let `write(file)` fill a binary file beside `path`, flush it to disk, then rename it to `path`."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_atomically(content, path):
    """torch.save, atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def read_checkpoint(path):
    """What torch.save wrote to `path`, on the CPU. Never runs code from the file. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: not a file of plain tensors (a pickled module, perhaps, which would run code); "
            "save model.state_dict() with torch.save and give that file"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def save_model(model, path):
    """Write `model`'s weights and architecture to `path`, atomically; models.load.load_model reads it."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_atomically({"config": model.config, "state_dict": weights}, path)


def save_json(content, path):
    """Indented JSON, atomically."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


class RunFolder:
    """What a run leaves in --save_dir; see the README for the list."""

    def __init__(self, args):
        self.path = Path(args.save_dir)
        self.best = float("-inf")
        self.started = time.time()
        self.seconds_before = 0.0
        save_json(vars(args), self.path / "config.json")
        if not (args.resume or args.test_only):  # a new run: its metrics and samples start afresh
            for old in (self / "metrics.jsonl", *self.path.glob("samples/epoch_*.png")):
                old.unlink(missing_ok=True)

    def __truediv__(self, name):
        return self.path / name

    @property
    def seconds(self):
        """Of this run, those before a resumption included."""
        return self.seconds_before + time.time() - self.started

    def say(self, line):
        """Print a line and append it to log.txt."""
        tqdm.write(line)
        with open(self / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def end_epoch(self, epoch, model, losses, psnr, state):
        """Log an epoch and save: a line of metrics.jsonl, the last and the best model, checkpoint.pth.

        losses: {name: mean a pixel}. psnr: {scale: dB} on the validation set. state: what else the
        script needs to resume.
        """
        metrics = {"epoch": epoch, **losses, "psnr": psnr, "seconds": round(self.seconds, 1)}
        with open(self / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        terms = [f"{name} {value:.3e}" for name, value in losses.items()]
        terms += [f"x{scale} {value:.2f} dB" for scale, value in psnr.items()]
        self.say(f"epoch {epoch}: " + ", ".join(terms))
        save_model(model, self / "model_last.pth")
        mean = sum(psnr.values()) / len(psnr)
        if mean > self.best:
            self.best = mean
            save_model(model, self / "model_best.pth")
        save_atomically({**state, "epoch": epoch, "config": model.config, "model": model.state_dict(),
                         "best": self.best, "seconds": self.seconds}, self / "checkpoint.pth")

    def resume(self, path):
        """The state that end_epoch saved as `path`."""
        state = read_checkpoint(path)
        if not {"epoch", "config", "model", "best", "seconds"} <= set(state):
            raise InputError(f"{path}: is no checkpoint.pth of a run; --resume continues from one")
        self.best, self.seconds_before = state["best"], state["seconds"]
        return state

    def save_results(self, results, args, **more):
        """results.json."""
        save_json({"results": results, "seconds": round(self.seconds, 1), **more,
                   "device": device_name(args.device), "git": git_revision(), "args": vars(args)},
                  self / "results.json")


# ---- flags -----------------------------------------------------------------------------------------


def add_shared_flags(parser, output):
    """The flags both scripts have, the reference's and ours. output: default of --output."""
    add = parser.add_argument
    add("--model_type", choices=("origin", "half"), help="full width, or half of it")
    add("--batchSize", type=int, default=128, help="images a step")
    add("--nEpochs", type=int, help="epochs in all")
    add("--iter", type=int, help="rounds an epoch")
    add("--optimizer", choices=("sgd", "adam"), default="sgd")
    add("--lr", type=float, help="learning rate (default 0.1 for sgd, 1e-3 for adam)")
    add("--schedule", choices=("step", "cosine"), default="step", help="how learning rates fall")
    add("--step", type=int, default=10, help="step schedule: a tenth of the rate every so many epochs")
    add("--clip", type=float, default=0.4, help="largest norm of the gradient")
    add("--momentum", type=float, default=0.9, help="of sgd")
    add("--weight-decay", "--wd", type=float, help="default 1e-4 for sgd, 0 for adam")
    add("--loss_type", choices=("MSE", "L1"), help="summed squared or absolute error")
    add("--scale", type=int, choices=(0, 2, 3, 4), default=0, help="0: 2, 3 and 4 at random")
    add("--start-epoch", type=int, default=1, help="begin at this epoch of the schedules")
    add("--resume", metavar="CHECKPOINT", help="continue the run that left this checkpoint.pth")
    add("--threads", type=int, default=0, help="CPU threads (0: as many as cores)")
    add("--val_dataset", help="set scored after each epoch (default Set5)")
    add("--data_test", metavar="A+B", help="sets scored at the end (default: all found)")
    add("--data_dir", "--tmp_data_dir", default="datasets", help="folder of the image sets")
    add("--save_dir", "--tmp_save_dir",
        help="folder for all that the run leaves (default runs/<script>, with --test_only runs/<script>_test)")
    add("--output", default=output, help="where the trained network goes besides")
    add("--test_only", action="store_true", help="score, do not train")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def settle_shared_flags(args, script):
    """Fill in the defaults that depend on other flags, and apply --device and --threads."""
    args.save_dir = args.save_dir or f"runs/{script}" + ("_test" if args.test_only else "")
    sgd = args.optimizer == "sgd"
    args.lr = args.lr if args.lr is not None else (0.1 if sgd else 1e-3)
    args.weight_decay = args.weight_decay if args.weight_decay is not None else (1e-4 if sgd else 0.0)
    args.device = choose_device(args.device)
    set_up_cpu(args.threads)


def choose_device(name):
    """The torch.device of --device; auto is CUDA where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def set_up_cpu(threads):
    """Use `threads` CPU threads (0: torch's choice), and let freed memory stay with the process.

    glibc hands every large tensor's memory back to the system, and the page faults of getting it again
    cost up to half of a small network's step on the CPU (mallopt M_TRIM_THRESHOLD, M_MMAP_THRESHOLD).
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**31 - 1)


def device_name(device):
    """The device in words, for results.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def git_revision():
    """The commit of this repository, with -dirty where files differ; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- optimisation ----------------------------------------------------------------------------------


def make_optimizer(args, parameters):
    """The optimiser of --optimizer, --lr, --momentum and --weight-decay."""
    if args.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=args.lr, weight_decay=args.weight_decay)
    return torch.optim.SGD(parameters, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)


def decay(args, epochs_done, epochs):
    """The factor on a learning rate after `epochs_done` (a fraction, too) of `epochs` epochs."""
    if args.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epochs_done / epochs, 1)))
    return 0.1 ** (int(epochs_done) // args.step)


def set_learning_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def distance(loss_type):
    """D of the paper: "MSE" is the summed squared error, "L1" the summed absolute error."""
    if loss_type == "MSE":
        return lambda a, b: (a - b).square().sum()
    return lambda a, b: (a - b).abs().sum()
