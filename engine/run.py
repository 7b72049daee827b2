"""A training run's place, its checkpoints, and being interrupted and going on.

Everything random in a step depends on the seed and the step's number alone, so the networks, their optimizers and the
place in the run are all that a resumed run needs to end bit for bit as if it had never stopped; and, for networks of
one's own that draw random numbers themselves, the state of torch's generator.
"""

import os
import shutil
import signal
import time
import zipfile
from contextlib import contextmanager, suppress

import torch
from tqdm import tqdm, trange

from engine import parallel
from utils import InputError, NotFinite, Stopped, refusing, save_atomically, save_json, save_model

# What a resumed run takes over: what comes next, steps made, best and last PSNR, the epoch's losses.
RESTORED = ("epoch", "round", "step", "steps", "best", "psnr", "sums")
KEPT = (*RESTORED, "seconds", "settings")  # of a run, in its checkpoint
CHECKPOINTS = ("checkpoint.pth", "checkpoint_previous.pth")  # the newest, the one before
TRAINED = (*CHECKPOINTS, "model_best.pth", "model_last.pth")  # what a run's folder is known by


class Run:
    """Where a run is (epoch, round and step: what comes next; steps: made) and the losses of its epoch.

    log: an engine.log.Log, whose folder is the run's; None for a run that leaves nothing. settings: what must be the
    same where the run is resumed. config: what config.json is to hold. resume: None, "auto" or a checkpoint's path.
    epochs: how many in all. batch: images a step. every: minutes between checkpoints. validate(network, epoch):
    {scale: PSNR} after an epoch. Raises InputError on a checkpoint that cannot serve, or a folder that holds a run.

    Nothing is written before it is entered as a context manager, then by the main process. From then on SIGINT and
    SIGTERM end it with a checkpoint: after the step, of several processes after the round.
    """

    def __init__(self, log=None, settings=None, config=None, resume=None, *, epochs=1, first_epoch=1, batch=1,
                 every=5.0, validate=None):
        self.log, self.path, self.settings, self.config = log, log and log.path, settings or {}, config
        self.epochs, self.first_epoch, self.batch, self.every = epochs, first_epoch, batch, every
        self.validate = validate
        self.epoch, self.round, self.step, self.steps = first_epoch, 0, 0, 0
        self.psnr, self.best, self.sums = {}, float("-inf"), {}
        self.saved, self.saved_place = time.time(), None
        self.started = self.saved
        self.signal, self.stop_at_once, self.parts, self.newest_is_good = 0, False, {}, True
        self.state = self._find_state(resume) if log else None
        if self.state:
            for name in RESTORED:
                setattr(self, name, self.state[name])
            self.saved_place = self.place
            self.started -= self.state["seconds"]
            if epochs < self.epoch - 1:
                raise InputError(f"--nEpochs {epochs}: the run to resume has made {self.epoch - 1} already")

    @property
    def seconds(self):
        """Of this run, those before a resumption included."""
        return time.time() - self.started

    @property
    def place(self):
        """What comes next."""
        return self.epoch, self.round, self.step

    def _find_state(self, resume):
        """The content of the checkpoint to go on from, None for a new run."""
        there = [name for name in TRAINED if (self.path / name).exists()]
        paths = [self.path / name for name in there if name in CHECKPOINTS] if resume in (None, "auto") else [resume]
        if there and not (resume and paths):
            raise InputError(f"--save_dir {self.path}: holds a run already; give another folder" + (
                ", or add --resume=auto to go on with that run" if paths else ", its checkpoint is not there"))
        if not paths:
            return None
        try:
            state = _read(paths[0])
        except InputError as error:
            if len(paths) == 1:
                raise
            tqdm.write(f"warning: {error}")
            state, self.newest_is_good = _read(paths[1]), False
        theirs, ours = state["settings"], self.settings
        different = [f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in sorted({*theirs, *ours})
                     if theirs.get(name) != ours.get(name)]
        if different:
            raise InputError(f"{self.path}: was left by other settings; give another --save_dir, or remove it "
                             f"({'; '.join(different)})")
        return state

    def begin(self, **parts):
        """parts: what has state_dict and load_state_dict: they get the state to go on from, and save() saves them."""
        self.parts, state, self.state = parts, self.state, None  # what begins later begins afresh: a stage, say
        if self.path and parallel.is_main():
            self.log.keep_epochs(self.epoch - self.first_epoch)
        if state:
            # Networks in a file of one's own may have changed.
            with refusing(f"{self.path}: the checkpoint's content does not fit the run"):
                for name, part in parts.items():
                    part.load_state_dict(state["parts"][name])
                torch.set_rng_state(state["random"])

    def rounds(self, count, unit, every):
        """The epoch's rounds to come, below `count`, along a progress bar.

        It shows mean losses and the last PSNR, new every `every` rounds, since that waits for the GPU.
        """
        self.epoch_started, self.steps_before = time.time(), self.steps
        progress = trange(self.round, count, desc=f"epoch {self.epoch}/{self.epochs}", unit=unit, leave=False,
                          disable=parallel.quiet())
        for i in progress:
            yield i
            if i % every == 0 and not progress.disable:
                shown = {name: f"{value:.2e}" for name, value in self.means(i + 1).items()}
                progress.set_postfix(shown | {f"x{scale}": f"{value:.2f} dB" for scale, value in self.psnr.items()})

    def advance(self, round_, step=0):
        """To be called after every step: `round_` and `step` come next. Saves when it is time to."""
        self.round, self.step = round_, step
        if parallel.world_size() == 1 or step == 0:  # all processes stop at the same place or none
            self._stop(parallel.all_reduce_max(self.signal))
        if time.time() - self.saved > 60 * self.every:
            self.save()

    def end_epoch(self, learner):
        """The epoch is over: validation, a line of the log, the last and the best weights, a checkpoint."""
        learner.check()
        seconds = max(time.time() - self.epoch_started, 1e-3)  # clocks may be coarse
        if self.path and not (self.path / "checkpoint.pth").exists():
            self.save()  # weights are never there without a checkpoint
        psnr = {}
        if self.validate and parallel.is_main():
            with self.interruptible():
                psnr = self.validate(learner.network.eval(), self.epoch)
        parallel.barrier()
        if self.path and parallel.is_main():
            save_model(learner.network, self.path / "model_last.pth")
            mean = sum(psnr.values()) / max(len(psnr), 1)
            if mean > self.best:
                self.best = mean
                save_model(learner.network, self.path / "model_best.pth")
            self.log.epoch(self.epoch, self.means(self.round), psnr, seconds=round(self.seconds, 1),
                           lr=learner.optimizer.param_groups[0]["lr"].item(), loss_scale=learner.scaler.get_scale(),
                           images_per_second=round((self.steps - self.steps_before) * self.batch / seconds, 1))
        self.epoch, self.round, self.step, self.psnr, self.sums = self.epoch + 1, 0, 0, psnr, {}
        self.save()

    def add(self, **losses):
        """Add losses, tensors, to the epoch's sums."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss

    def means(self, rounds):
        """{name: mean of the epoch's losses so far, over `rounds` rounds}."""
        return {name: (total / rounds).item() for name, total in self.sums.items()}

    def save(self):
        """checkpoint.pth, and the one before as checkpoint_previous.pth."""
        if self.path and parallel.is_main():
            content = {name: getattr(self, name) for name in KEPT}
            content["parts"] = {name: part.state_dict() for name, part in self.parts.items()}
            content["random"] = torch.get_rng_state()
            newest, previous = (self.path / name for name in CHECKPOINTS)
            if newest.exists() and self.newest_is_good:
                previous.unlink(missing_ok=True)
                try:
                    os.link(newest, previous)  # until the next line replaces it, both are the newest
                except OSError:  # a file system without links
                    shutil.copyfile(newest, previous)
            save_atomically(content, newest)
            self.saved, self.saved_place, self.newest_is_good = time.time(), self.place, True

    def __enter__(self):
        parallel.barrier()  # until all have read what the folder holds
        if self.path and parallel.is_main():
            self._held = _hold(self.path)
            save_json(self.config, self.path / "config.json")
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind, error, traceback):
        # Not where it was saved already: before the first step of a stage the student has grown since.
        if kind is Stopped and self.parts and self.place != self.saved_place:
            self.save()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._held = None
        if kind is NotFinite:
            raise NotFinite(f"{error} at epoch {self.epoch}, round {self.round + 1}") from None
        if kind is None:  # the main process scores, for which the others wait
            self._stop(parallel.all_reduce_max(self.signal))

    def _on_signal(self, number, frame):
        if self.signal == number == signal.SIGINT:
            os._exit(128 + number)  # asked twice: at once
        self.signal = number
        if self.stop_at_once:
            self._stop(number)

    def _stop(self, number):
        if number:
            raise Stopped(number, bool(self.parts or self.state))

    @contextmanager
    def interruptible(self):
        """While nothing learns (scoring, say), a signal ends a run at once, but for one of several processes."""
        self.stop_at_once = parallel.world_size() == 1
        try:
            if self.stop_at_once:
                self._stop(self.signal)
            yield
        finally:
            self.stop_at_once = False


def _hold(folder):
    """An open file of the folder; until it is closed, or its process gone, another process is refused one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "log.txt", "ab")
    with suppress(ImportError, OSError):  # Windows, and some file systems, have no such locks
        from fcntl import LOCK_EX, LOCK_NB, flock
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--save_dir {folder}: another process is at it; give another folder") from None
    return file


def _read(path):
    """The state in the checkpoint `path`. Raises InputError where it is none."""
    with refusing(f"{path}: cannot be read as a checkpoint", "; give another --save_dir, or remove it"):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at checksums
                raise ValueError(f"damaged at {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not state.keys() >= {*KEPT, "parts", "random"}:
            raise ValueError("it is no checkpoint.pth of a run")
        return state
