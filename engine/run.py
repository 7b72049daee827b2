"""A training run: the folder it leaves, its checkpoints, being interrupted and going on.

Everything random in a step depends on the seed and the step's number alone, so the networks, their
optimisers and the place in the run are all that a resumed run needs to end bit for bit as if it had never
stopped. checkpoint.pth is replaced only by a complete one; the one before it stays as
checkpoint_previous.pth.
"""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from engine import parallel
from figure import board
from figure.plots import save_curves
from utils import (InputError, NotFinite, Stopped, append_line, device_name, git_revision, read_checkpoint,
                   save_atomically, save_json, save_model, write_atomically)

# Flags that do not make another run: paths, logging, device and how it computes. (The scripts pass what is in
# the file that --pretrained names.) --nEpochs, too, may change when a run is resumed; but a shorter or longer one
# does not begin in the folder of another.
MAY_CHANGE = {"resume", "pretrained", "save_dir", "output", "data_dir", "data_test", "self_ensemble", "threads",
              "device", "precision", "plain", "checkpoint_every", "tensorboard"}


# What a checkpoint says of where the run is: what comes next, steps made, best and last validation PSNR.
PLACE = ("epoch", "round", "step", "steps", "best", "psnr")


class Run:
    """Where a run is (epoch, round and step: what comes next) and what it leaves in --save_dir.

    losses: names of the losses, whose running sums over the epoch are `sums`. settings: what else than the
    flags must be the same where a run is resumed. state: the content of the checkpoint to go on from, None for
    a new run. snapshot: a function of the script's that returns {"config", "model", "optimizer", ...}, the
    state of all that learns.

    Nothing is written before it is entered as a context manager, around training and scoring. From then on
    SIGINT and SIGTERM end it after the step, with a checkpoint. Raises InputError on a --resume or --save_dir
    that cannot serve.
    """

    def __init__(self, args, losses, **settings):
        self.args, self.path, self.losses = args, Path(args.save_dir), losses
        self.settings = {k: v for k, v in vars(args).items() if k not in MAY_CHANGE} | settings
        self.epoch, self.round, self.step, self.steps, self.psnr = args.start_epoch, 0, 0, 0, {}
        self.sums = torch.zeros(len(losses), device=args.device)
        self.best, self.seconds_before = float("-inf"), 0.0
        self.signal, self.resting_now, self.snapshot = None, False, None
        self.newest_is_good = True
        self.state = self._find_state()
        if self.state:
            for name in PLACE:
                setattr(self, name, self.state[name])
            self.sums += self.state["sums"].to(args.device)
            self.seconds_before = self.state["seconds"]
            if args.nEpochs < self.epoch - 1:
                raise InputError(f"--nEpochs {args.nEpochs}: the run to resume has made {self.epoch - 1} already")
        self.started = self.saved = self.drawn = time.time()

    def __truediv__(self, name):
        return self.path / name

    @property
    def seconds(self):
        """Of this run, those before a resumption included."""
        return self.seconds_before + time.time() - self.started

    def say(self, line):
        """Print a line and append it to log.txt."""
        if not parallel.leader():
            return
        try:
            tqdm.write(line)
        except OSError:  # whoever read our output is gone; log.txt still has it
            pass
        append_line(self / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    # ---- resuming

    def _find_state(self):
        """The content of the checkpoint to go on from, None for a new run."""
        newest, before = self / "checkpoint.pth", self / "checkpoint_previous.pth"
        found = [path for path in (newest, before) if path.exists()]
        if self.args.test_only:
            if found:
                raise InputError(f"--save_dir {self.path}: holds a run; give --test_only another folder")
            return None
        if self.args.resume == "auto":
            for path in found:
                try:
                    state = self._read(path)
                except InputError as error:
                    tqdm.write(f"warning: {error}")
                    self.newest_is_good = False
                else:
                    self._compare(state, path)
                    return state
            if found:
                raise InputError(f"--resume auto: no checkpoint in {self.path} can be used")
            return None
        if self.args.resume:
            state = self._read(Path(self.args.resume))
            self._compare(state, self.args.resume)
            return state
        if found:
            try:
                self._compare(self._read(found[0]), found[0])
            except InputError as error:
                raise InputError(f"--save_dir {self.path}: holds another run; give another folder, or remove it "
                                 f"({error})") from None
        return None

    def _read(self, path):
        """The state in the checkpoint `path`. Raises InputError where it is none."""
        state = read_checkpoint(path)
        needed = (*PLACE, "sums", "seconds", "settings", "config", "model", "optimizer")
        whole = isinstance(state, dict) and state.keys() >= set(needed)
        if not (whole and isinstance(state["settings"], dict) and isinstance(state["sums"], torch.Tensor)
                and all(isinstance(state[name], int) for name in ("epoch", "round", "step", "steps"))):
            raise InputError(f"{path}: is no checkpoint.pth of a run")
        return state

    def _compare(self, state, path):
        """Raise InputError, with a list, where the run that left `state` had other settings."""
        theirs = state["settings"]
        if theirs.get("script") != self.settings.get("script"):
            raise InputError(f"{path}: was left by {theirs.get('script')}.py, not by {self.settings.get('script')}.py")
        names = (theirs.keys() | self.settings.keys()) - ({"nEpochs"} if self.args.resume else set())
        different = [f"{name} was {theirs.get(name)}, is {self.settings.get(name)}" for name in sorted(names)
                     if theirs.get(name) != self.settings.get(name)]
        if different:
            raise InputError(f"{path}: was left by other settings: {'; '.join(different)}")

    def restore(self, load):
        """What `load(state)` makes of the checkpoint to go on from; None for a new run."""
        if not self.state:
            return None
        try:
            return load(self.state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"--resume {self.args.resume}: its content does not fit the run ({reason})") from None

    def _trim(self):
        """Drop what the folder holds of epochs that are to come (again), for a new run of all."""
        lines = []
        if not self.state:
            old = ("checkpoint.pth", "checkpoint_previous.pth", "model_best.pth", "model_last.pth", "results.json")
            for path in (*(self / name for name in old), *self.path.glob("samples/epoch_*.png")):
                path.unlink(missing_ok=True)
        if (self / "metrics.jsonl").exists():
            for line in (self / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["epoch"] < self.epoch and self.state:
                        lines.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    pass  # half a line, of a run that was killed as it wrote
        write_atomically(self / "metrics.jsonl", "".join(lines).encode())

    # ---- going on

    def done(self, round_, step=0):
        """To be called after every step: `round_` and `step` come next. Saves when it is time to."""
        self.round, self.step = round_, step
        if step == 0 and parallel.world() > 1:  # all stop at the same place or none
            self.signal = parallel.largest(self.signal or 0)
        if self.signal and (step == 0 or parallel.world() == 1):
            raise self._stopped()
        if time.time() - self.saved > 60 * self.args.checkpoint_every:
            self.save()

    def save(self):
        """checkpoint.pth, and the one before as checkpoint_previous.pth."""
        if not parallel.leader():
            return
        path = self / "checkpoint.pth"
        content = {**self.snapshot(), **{name: getattr(self, name) for name in PLACE}, "sums": self.sums,
                   "seconds": self.seconds, "settings": self.settings}
        save_atomically(content, path, keep=self / "checkpoint_previous.pth" if self.newest_is_good else None)
        self.saved, self.newest_is_good = time.time(), True

    def means(self, rounds):
        """{name: mean of the epoch's losses so far, over `rounds` rounds}."""
        return dict(zip(self.losses, (self.sums / rounds).tolist()))

    def postfix(self):
        """What the progress bar shows after a round: mean losses so far and the last validation PSNR."""
        shown = {name: f"{value:.2e}" for name, value in self.means(self.round).items()}
        return shown | ({"PSNR": "/".join(f"{value:.2f}" for value in self.psnr.values())} if self.psnr else {})

    def end_epoch(self, model, psnr):
        """Log the epoch and save: a line of metrics.jsonl, the last and the best model, the checkpoint.

        psnr: {scale: dB} on the validation set.
        """
        if parallel.leader():
            self._log_epoch(model, psnr)
        self.epoch, self.round, self.step, self.psnr = self.epoch + 1, 0, 0, psnr
        self.sums.zero_()
        self.save()
        if parallel.leader() and (self.epoch > self.args.nEpochs or time.time() - self.drawn > 60):
            self.drawn = time.time()
            if not save_curves(self.path) and self.epoch > self.args.nEpochs:
                self.say("curves.png was not drawn: it needs matplotlib (pip install matplotlib)")

    def _log_epoch(self, model, psnr):
        losses = self.means(self.args.iter)
        append_line(self / "metrics.jsonl", json.dumps(
            {"epoch": self.epoch, **losses, "psnr": psnr, "seconds": round(self.seconds, 1)}))
        terms = [f"{name} {value:.3e}" for name, value in losses.items()]
        terms += [f"x{scale} {value:.2f} dB" for scale, value in psnr.items()]
        line = f"epoch {self.epoch}: " + ", ".join(terms)
        save_model(model, self / "model_last.pth")
        mean = sum(psnr.values()) / len(psnr)
        if mean > self.best:
            self.best = mean
            save_model(model, self / "model_best.pth")
        self.say(line)
        if self.args.tensorboard:
            board.log_epoch(self.path, self.epoch, losses, psnr)

    def save_results(self, results, protocol, **more):
        """results.json. protocol: how they were scored."""
        if self.args.tensorboard:
            board.log_result(self.path, self.epoch, results)
        save_json({"results": results, "protocol": protocol, "seconds": round(self.seconds, 1), **more,
                   "date": time.strftime("%Y-%m-%d"), "device": device_name(self.args.device),
                   "git": git_revision(), "args": vars(self.args)}, self / "results.json")

    # ---- being interrupted

    def __enter__(self):
        parallel.wait()  # until all have read what the folder holds
        if parallel.leader():
            save_json(vars(self.args), self / "config.json")
            if not self.args.test_only:
                self._trim()
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, kind, error, traceback):
        if kind is Stopped and self.snapshot:
            self.save()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is NotFinite:
            where = f"epoch {self.epoch}, round {self.round + 1}, step {self.step + 1}"
            raise NotFinite(f"{error} at {where}") from None
        if kind is None and self.signal:
            raise self._stopped()

    def _stopped(self):
        return Stopped(self.signal, self.snapshot is not None)

    def _on_signal(self, number, frame):
        if self.signal == number == signal.SIGINT:
            os._exit(128 + number)  # asked twice: at once
        self.signal = number
        if self.resting_now:
            self.resting_now = False
            raise self._stopped()

    @contextmanager
    def resting(self):
        """While nothing learns (scoring, say), a signal need not wait for a step's end."""
        self.resting_now = True
        try:
            if self.signal:
                raise self._stopped()
            yield
        finally:
            self.resting_now = False
