"""What a run says of itself: lines on the terminal and in log.txt, metrics.jsonl, results.json, TensorBoard."""

import json
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from data.table import format_table, paper_scores
from utils import append_line, device_name, git_revision, save_json, write_atomically


class Log:
    """The records in the folder `path`, which of several processes only the main one writes.

    tensorboard: keep them for TensorBoard, too.
    """

    def __init__(self, path, tensorboard=False):
        self.path, self.tensorboard = Path(path), tensorboard

    def line(self, text):
        """Print a line and append it to log.txt."""
        with suppress(OSError):  # whoever read our output is gone; log.txt still has it
            tqdm.write(text)
        append_line(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def keep_epochs(self, count):
        """Drop from metrics.jsonl what comes after `count` epochs: some to come again, half a line of a killed run."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            write_atomically(path, b"".join(path.read_bytes().splitlines(keepends=True)[:count]))

    def epoch(self, epoch, losses, psnr, **more):
        """A line of metrics.jsonl and one in words. losses: {name: mean}. psnr: {scale: dB}."""
        append_line(self.path / "metrics.jsonl", json.dumps({"epoch": epoch, **losses, "psnr": psnr, **more}))
        terms = [f"{name} {value:.3e}" for name, value in losses.items()]
        self.line(f"epoch {epoch}: " + ", ".join(terms + [f"x{scale} {value:.2f} dB" for scale, value in psnr.items()]))
        self._board(epoch, {**losses, **more, **{f"PSNR/x{scale}": value for scale, value in psnr.items()}})

    def report(self, benchmarks, networks, args, **trained):
        """Score {name: network}: results.json, with what made them, and a table. args: a dict of the flags."""
        results, protocol = benchmarks.scores(networks), benchmarks.protocol(networks)
        command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
        save_json({"results": results, "protocol": protocol, **trained, "date": time.strftime("%Y-%m-%d"),
                   "device": device_name(args["device"]), "git": git_revision(), "command": command,
                   "networks": {name: network.config for name, network in networks.items()}, "args": args},
                  self.path / "results.json")
        self._board(args["nEpochs"], {
            f"{name}/{which} x{scale}": score["psnr"] for name, by_scale in results.items()
            for scale, row in by_scale.items() for which, score in row.items()})
        self.line(format_table(results, protocol, paper_scores(next(iter(networks.values())))))

    def _board(self, step, numbers):
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(self.path / "tensorboard") as writer:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, step)
