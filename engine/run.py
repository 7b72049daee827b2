"""A training run's place, its checkpoints, and being interrupted and going on.

Everything random in a step depends on the seed and the step's number alone, so the networks, their optimizers and the
place in the run are all that a resumed run needs to end bit for bit as if it had never stopped. checkpoint.pth is
replaced only by a complete one; the one before it stays as checkpoint_previous.pth.
"""

import os
import signal
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm, trange

from engine import parallel
from utils import InputError, NotFinite, Stopped, save_atomically, save_json, save_model

# What a checkpoint says of where the run is: what comes next, steps made, best and last validation PSNR.
PLACE = ("epoch", "round", "step", "steps", "best", "psnr")


class Run:
    """Where a run is (epoch, round and step: what comes next; steps: made) and the mean losses of its epoch.

    path: its folder; None for a run that leaves nothing. log: an engine.log.Log, told of each epoch. settings: what
    must be the same where the run is resumed. config: what config.json is to hold. resume: None, "auto" or the path of
    a checkpoint. epochs: how many in all. losses: their names. batch: images a step. every: minutes between
    checkpoints. validate(network, epoch): {scale: PSNR} after an epoch. Raises InputError on a checkpoint that cannot
    serve, or a folder that holds another run.

    Nothing is written before it is entered as a context manager. From then on SIGINT and SIGTERM end it after the
    step, with a checkpoint.
    """

    def __init__(self, path=None, log=None, settings=None, config=None, resume=None, *, epochs=1, losses=("loss",),
                 first_epoch=1, batch=1, every=5.0, device="cpu", validate=None):
        self.path, self.log, self.settings, self.config = path and Path(path), log, settings or {}, config
        self.epochs, self.first_epoch, self.batch, self.every, self.validate = epochs, first_epoch, batch, every, validate
        self.losses, self.sums = losses, torch.zeros(len(losses), device=device)
        self.epoch, self.round, self.step, self.steps = first_epoch, 0, 0, 0
        self.psnr, self.best, self.started = {}, float("-inf"), time.time()
        self.signal, self.stop_at_once, self.parts, self.newest_is_good = 0, False, {}, True
        self.state = self._find_state(resume) if path else None
        if self.state:
            for name in PLACE:
                setattr(self, name, self.state[name])
            self.sums += self.state["sums"].to(device)
            self.started -= self.state["seconds"]
            if epochs < self.epoch - 1:
                raise InputError(f"--nEpochs {epochs}: the run to resume has made {self.epoch - 1} already")
        self.saved = self.epoch_started = time.time()
        self.steps_before = self.steps

    @property
    def seconds(self):
        """Of this run, those before a resumption included."""
        return time.time() - self.started

    # ---- resuming

    def _find_state(self, resume):
        """The content of the checkpoint to go on from, None for a new run."""
        found = [path for path in (self.path / "checkpoint.pth", self.path / "checkpoint_previous.pth") if path.exists()]
        candidates = found if resume in (None, "auto") else [resume]
        for path in candidates:
            try:
                state = _read(path)
                break
            except InputError as error:
                if path == candidates[-1]:
                    raise
                tqdm.write(f"warning: {error}")
                self.newest_is_good = False
        else:
            return None
        theirs, ours = state["settings"], self.settings
        different = [f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in sorted(theirs.keys() | ours.keys())
                     if theirs.get(name) != ours.get(name) and not (resume and name == "nEpochs")]
        if different:
            raise InputError(f"{path}: was left by other settings; give another --save_dir, or remove it "
                             f"({'; '.join(different)})")
        if not resume and (state["epoch"] <= self.epochs or not (self.path / "results.json").exists()):
            raise InputError(f"--save_dir {self.path}: holds this run, unfinished; add --resume=auto to go on with it, "
                             "or give another folder")
        return state if resume else None

    def begin(self, **parts):
        """parts: what has state_dict and load_state_dict: they get the state to go on from, and save() saves them."""
        self.parts, state, self.state = parts, self.state, None  # what begins later begins afresh: a stage, say
        if state:
            try:
                for name, part in parts.items():
                    part.load_state_dict(state["parts"][name])
            except (KeyError, RuntimeError, ValueError) as error:  # networks in a file of one's own may have changed
                raise InputError(f"{self.path}: the checkpoint's content does not fit the run "
                                 f"({str(error).splitlines()[0]})") from None

    # ---- going on

    def rounds(self, count, unit, every):
        """The numbers of the rounds to come in the epoch, below `count`, along a progress bar.

        Every `every` rounds, as that waits for the GPU, it shows the epoch's mean losses so far and the last PSNR.
        """
        progress = trange(self.round, count, desc=f"epoch {self.epoch}/{self.epochs}", unit=unit, leave=False,
                          disable=parallel.quiet())
        for i in progress:
            yield i
            if i % every == 0 and not progress.disable:
                shown = {name: f"{value:.2e}" for name, value in self.means(i + 1).items()}
                psnr = "/".join(f"{value:.2f}" for value in self.psnr.values())
                progress.set_postfix(shown | ({"PSNR": psnr} if psnr else {}))

    def advance(self, round_, step=0):
        """To be called after every step: `round_` and `step` come next. Saves when it is time to."""
        self.round, self.step = round_, step
        number = self.signal if parallel.world() == 1 else 0
        if parallel.world() > 1 and step == 0:  # all processes stop at the same place or none
            number = parallel.largest(self.signal)
        if number:
            raise Stopped(number, bool(self.parts))
        if time.time() - self.saved > 60 * self.every:
            self.save()

    def end_epoch(self, learner):
        """The epoch is over: validation, a line of the log, the last and the best weights, a checkpoint."""
        learner.check()
        psnr = {}
        if self.validate and parallel.leader():
            with self.interruptible():
                psnr = self.validate(learner.network.eval(), self.epoch)
        parallel.wait()
        if self.path and parallel.leader():
            save_model(learner.network, self.path / "model_last.pth")
            mean = sum(psnr.values()) / max(len(psnr), 1)
            if mean > self.best:
                self.best = mean
                save_model(learner.network, self.path / "model_best.pth")
            images = (self.steps - self.steps_before) * self.batch
            self.log.epoch(self.epoch, self.means(self.round), psnr, seconds=round(self.seconds, 1),
                           lr=learner.optimizer.param_groups[0]["lr"].item(), loss_scale=learner.scaler.get_scale(),
                           images_per_second=round(images / (time.time() - self.epoch_started), 1))
        self.epoch, self.round, self.step, self.psnr = self.epoch + 1, 0, 0, psnr
        self.sums.zero_()
        self.save()
        self.epoch_started, self.steps_before = time.time(), self.steps

    def save(self):
        """checkpoint.pth, and the one before as checkpoint_previous.pth."""
        if not (self.path and parallel.leader()):
            return
        content = {**{name: getattr(self, name) for name in PLACE}, "sums": self.sums, "seconds": self.seconds,
                   "settings": self.settings, "parts": {name: part.state_dict() for name, part in self.parts.items()}}
        save_atomically(content, self.path / "checkpoint.pth",
                        keep=self.path / "checkpoint_previous.pth" if self.newest_is_good else None)
        self.saved, self.newest_is_good = time.time(), True

    def means(self, rounds):
        """{name: mean of the epoch's losses so far, over `rounds` rounds}."""
        return dict(zip(self.losses, (self.sums / rounds).tolist()))

    # ---- being interrupted

    def __enter__(self):
        parallel.wait()  # until all have read what the folder holds
        if self.path and parallel.leader():
            if not self.state:
                for pattern in ("checkpoint*.pth", "model_*.pth", "results.json", "samples/epoch_*.png"):
                    for path in self.path.glob(pattern):
                        path.unlink()
            self.log.keep_epochs(self.epoch - self.first_epoch)
            save_json(self.config, self.path / "config.json")
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind, error, traceback):
        if kind is Stopped and self.parts:
            self.save()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is NotFinite:
            raise NotFinite(f"{error} at epoch {self.epoch}, round {self.round + 1}") from None
        if kind is None:
            parallel.wait()  # for the leader, which scores
            if self.signal:
                raise Stopped(self.signal, bool(self.parts))

    def _on_signal(self, number, frame):
        if self.signal == number == signal.SIGINT:
            os._exit(128 + number)  # asked twice: at once
        self.signal = number
        if self.stop_at_once:
            raise Stopped(number, bool(self.parts))

    @contextmanager
    def interruptible(self):
        """While nothing learns (scoring, say), a signal need not wait for a step's end."""
        self.stop_at_once = True
        try:
            if self.signal:
                raise Stopped(self.signal, bool(self.parts))
            yield
        finally:
            self.stop_at_once = False


def _read(path):
    """The state in the checkpoint `path`. Raises InputError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at checksums
                raise ValueError(f"damaged at {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not state.keys() >= {*PLACE, "sums", "seconds", "settings", "parts"}:
            raise ValueError("it is no checkpoint.pth of a run")
        return state
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from None
