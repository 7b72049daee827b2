"""Runs that are killed, told to stop, or go wrong; and their resumption."""

import os
import random
import signal
from functools import partial

import pytest
import torch

import distillation
import train_teacher
import utils
from engine.log import Log
from engine.run import Run
from models import EDSR, VDSR
from models.load import load_model
from tests.helpers import (assert_refused, assert_same_run, contents, die_at, finish, outcome, read, start,
                           teacher_flags, tiny_flags)

MUON = "--source=dead_leaves --student_init=teacher --optimizer=muon --schedule=trapezoid --loss_type=L1 --bank=40"\
    " --precision=fp16"
STAGES = "--inc_num=2 --inc_step=1 --optimizer=muon --schedule=cosine --lr_G=0.01"
EDSR_TEACHER = "--arch=edsr_baseline --optimizer=adam --schedule=cosine --precision=bf16"


@pytest.mark.parametrize("script, flags", [
    (train_teacher, ""), (train_teacher, EDSR_TEACHER), (distillation, STAGES), (distillation, MUON),
    (distillation, "--pretrained=edsr.pth --source=dead_leaves+generator --schedule=cosine")])
def test_a_run_that_stops_after_every_step_ends_as_if_it_had_not(
        run, done, few_places, monkeypatch, images, tiny_teacher, tmp_path, script, flags):
    """It is resumed as often as it has steps: of two rounds in each of two epochs."""
    flags = tiny_flags(script, images, tiny_teacher, "--scale=2", *flags.split())
    utils.save_model(EDSR(2, 4), tmp_path / "edsr.pth")
    done(script, *flags, "--save_dir=whole")
    places, codes, advance = [], [], Run.advance

    def stopping(self, round_, step=0):
        places.append((self.epoch, round_, step))
        self.signal = signal.SIGTERM
        advance(self, round_, step)

    monkeypatch.setattr(Run, "advance", stopping)
    while codes[-1:] in ([], [143]):
        codes.append(run(script, *flags, "--save_dir=part", "--resume=auto").returncode)
    assert codes == [143] * len(places) + [0]
    rounds = [(1, 0), (2, 0)] if script is train_teacher else [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert places == [(epoch, *place) for epoch in (1, 2) for place in rounds]
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("trial", range(4))
def test_a_killed_run_ends_as_if_it_had_not_been(images, tiny_teacher, tmp_path, trial):
    moment = random.Random(trial)
    script, number = (train_teacher, distillation)[trial % 2], (signal.SIGKILL, signal.SIGTERM)[trial // 2]
    flags = tiny_flags(script, images, tiny_teacher, "--scale=2", "--checkpoint_every=1e-6", "--iter=5",
                       "--optimizer=adam")
    assert finish(start(script, (*flags, "--save_dir=whole"), tmp_path)) == 0
    for _ in range(2):
        die = partial(die_at, moment.randrange(5, 22), number)
        killed = start(script, (*flags, "--save_dir=run", "--resume=auto"), tmp_path, prepare=die)
        assert finish(killed) == (143 if number == signal.SIGTERM else -number), (tmp_path / "stderr").read_text()
    assert finish(start(script, (*flags, "--save_dir=run", "--resume=auto"), tmp_path)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.fixture
def flags(images, tiny_teacher):
    return tiny_flags(distillation, images, tiny_teacher, "--scale=2", "--save_dir=run")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_in_one_line(run, done, monkeypatch, flags, tmp_path, number, code):
    """After the step while it trains, at once while it scores."""
    flags, advance = (*flags, "--nEpochs=1", "--resume=auto"), Run.advance
    for place in ((distillation, "first_student", lambda *_: signal.raise_signal(number)),
                  (Run, "advance", lambda *place: signal.raise_signal(number) or advance(*place)),
                  (distillation, "label", lambda *_: signal.raise_signal(number)),
                  (distillation.Benchmarks, "scores", lambda *_, **__: signal.raise_signal(number))):
        with monkeypatch.context() as patch:
            patch.setattr(*place)
            stopped = run(distillation, *flags)
        assert stopped.returncode == code and len(stopped.stderr.splitlines()) == 1
        assert "stopped by" in stopped.stderr
        assert ("--resume=auto" in stopped.stderr) == (place[1] != "first_student")
        assert not (tmp_path / "run/results.json").exists()
    done(distillation, *flags)
    results = read(tmp_path / "run")[0]
    assert (results["student_steps"], results["images"]) == (4, 8)
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)  # a second interrupt ends at once
    with pytest.raises(utils.Stopped), Run():
        signal.raise_signal(number)
        assert codes == []
        signal.raise_signal(signal.SIGINT)
        assert codes == [130] * (number == signal.SIGINT)


def test_a_signal_between_stages(run, done, monkeypatch, flags, tmp_path):
    """The student has grown, and no step was made: resumed it grows again."""
    flags, grow = (*flags, *STAGES.split()), VDSR.grow
    done(distillation, *flags, "--save_dir=whole")
    with monkeypatch.context() as patch:
        patch.setattr(VDSR, "grow", lambda *args: grow(*args) or signal.raise_signal(signal.SIGTERM))
        assert run(distillation, *flags).returncode == 143
    done(distillation, *flags, "--resume=auto")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_when_checkpoints_are_written(done, monkeypatch, flags):
    """After every epoch, and before its weights where there is none; by --checkpoint_every after steps, too."""
    places, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda self: places.append(self.place) or save(self))
    done(distillation, *flags)
    assert places == [(1, 2, 0), (2, 0, 0), (3, 0, 0)]
    places.clear()
    done(distillation, *flags, "--save_dir=often", "--checkpoint_every=1e-9", "--nEpochs=1")
    assert places == [(1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 2, 0), (2, 0, 0)]


def test_a_folder_is_of_one_process_at_a_time(run, done, flags, tmp_path):
    """Before it holds a checkpoint, too; what is refused touches nothing."""
    pytest.importorskip("fcntl")
    with Run(Log(tmp_path / "run")):
        before = contents(tmp_path)
        assert_refused(run(distillation, *flags), "--save_dir run: another process is at it")
        assert contents(tmp_path) == before
    done(distillation, *flags)


def test_auto_falls_back_to_the_checkpoint_before(run, done, flags, tmp_path):
    """Also from one bit that is not what it was, which torch.load would let pass."""
    for name in ("whole", "run"):
        done(distillation, *flags, f"--save_dir={name}")
    newest, before = tmp_path / "run/checkpoint.pth", tmp_path / "run/checkpoint_previous.pth"
    kept, content = before.read_bytes(), newest.read_bytes()
    numbers = torch.load(newest, weights_only=True)["parts"]["student"]["network"]["head.weight"].numpy().tobytes()
    newest.write_bytes(content.replace(numbers, bytes([numbers[0] ^ 1]) + numbers[1:]))
    assert newest.read_bytes() != content and torch.load(newest, weights_only=True)
    assert_refused(run(distillation, *flags, f"--resume={newest}"), "checkpoint.pth: ", "damaged")
    again = done(distillation, *flags, "--resume=auto")
    assert "warning" in again.stdout and "damaged" in again.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert before.read_bytes() == kept  # what was damaged did not take its place
    for path in (newest, before):
        path.write_bytes(b"rubbish")
    assert_refused(run(distillation, *flags, "--resume=auto"), "checkpoint_previous.pth: cannot be read")


def test_a_checkpoint_with_other_content_is_refused(run, done, flags, tmp_path):
    done(distillation, *flags, "--nEpochs=1")
    path = tmp_path / "run/checkpoint.pth"
    good = torch.load(path, weights_only=True)
    networks = good["parts"] | {"student": {**good["parts"]["student"], "network": {}}}
    for content, words in ((good | {"parts": {}}, "run: the checkpoint's content does not fit"),
                           (good | {"parts": networks}, "run: the checkpoint's content does not fit"),
                           ({"parts": {}}, "checkpoint.pth: cannot be read as a checkpoint"),
                           ([1], "checkpoint.pth: cannot be read as a checkpoint")):
        torch.save(content, path)
        before = contents(tmp_path, "*.pth")
        assert_refused(run(distillation, *flags, f"--resume={path}"), words)
        assert contents(tmp_path, "*.pth") == before


def test_a_run_goes_on_in_its_folder_with_its_settings(run, done, images, tiny_teacher, flags, tmp_path):
    """Whatever differs is listed and refused, and nothing is touched; length, places and the machine may."""
    flags, checkpoint = (*flags, "--nEpochs=1"), "--resume=run/checkpoint.pth"
    done(distillation, *flags)
    folder, model = tmp_path / "run", load_model(tiny_teacher)
    model.tail.weight.data += 1
    utils.save_model(model, tmp_path / "other.pth")
    before = contents(tmp_path)
    for more in ("--resume=auto", checkpoint):
        assert_refused(run(distillation, *flags, "--lr=0.5", "--seed=2", more), "run: was left by other settings; "
                       "give another --save_dir", "lr was 0.1, is 0.5", "seed was 1, is 2")
    for words, script, *more in (
            ("script was distillation, is train_teacher", train_teacher, *teacher_flags(images), "--save_dir=run",
             "--resume=auto"),
            ("teacher was", distillation, *flags, "--pretrained=other.pth", "--resume=auto"),
            ("its own folder", distillation, *flags, checkpoint, "--save_dir=b"),
            ("holds a run already; give another folder, or add --resume=auto", distillation, *flags),
            ("give --test_only another folder", distillation, *flags, "--test_only", "--student", tiny_teacher),
            ("is a name of the run itself", distillation, *flags, "--output=run/results.json"),
            ("--output run: is a folder", distillation, *flags, "--output=run"),
            ("is what --model names", distillation, *flags, "--model=other.pth", "--output=other.pth"),
            ("is what --pretrained names", distillation, *flags, "--output", tiny_teacher)):
        assert_refused(run(script, *more), words)
    assert contents(tmp_path) == before
    whole = outcome(folder)
    done(distillation, *flags, "--resume=auto")
    assert outcome(folder) == whole
    done(distillation, *flags, "--nEpochs=2", "--output=b.pth", "--checkpoint_every=1", "--plain", checkpoint)
    assert [m["epoch"] for m in read(folder)[1]] == [1, 2]
    assert_refused(run(distillation, *flags, checkpoint), "--nEpochs 1", "has made 2 already")
    (folder / "checkpoint.pth").unlink()
    assert_refused(run(distillation, *flags, "--lr=0.5", "--resume=auto"), "lr was 0.1")  # by the one before
    (folder / "checkpoint_previous.pth").unlink()
    for more in ([], ["--resume=auto"]):  # its weights alone, too
        assert_refused(run(distillation, *flags, *more), "holds a run already; give another folder, its checkpoint is")


@pytest.mark.parametrize("script, call", [(train_teacher, 4), (distillation, 14)])
def test_a_loss_that_is_not_finite_stops_the_run(run, monkeypatch, images, tiny_teacher, tmp_path, script, call):
    """In the second epoch's second round; the checkpoint stays that of the first epoch."""
    original, calls = script.distance, []

    def distance(loss_type):
        return lambda a, b: original(loss_type)(a, b) * (float("nan") if calls.append(1) or len(calls) == call else 1)

    monkeypatch.setattr(script, "distance", distance)
    process = run(script, *tiny_flags(script, images, tiny_teacher, "--scale=2", "--save_dir=run"))
    assert process.returncode == 3
    (line,) = process.stderr.splitlines()
    assert "is nan" in line and "epoch 2, round 2;" in line
    state = torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)
    assert (state["epoch"], state["round"]) == (2, 0)
    assert all(torch.isfinite(t).all() for part in state["parts"].values() for t in part["network"].values())


@pytest.mark.parametrize("name", ["metrics.jsonl", "model_last.pth.part", "checkpoint.pth.part"])
def test_a_full_disk_is_one_line(run, done, monkeypatch, flags, tmp_path, name):
    """The system reports it as the second epoch's files are written; the first epoch's checkpoint stays."""
    done(distillation, *flags, "--nEpochs=1")

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{name}"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_refused(run(distillation, *flags, "--resume=auto"), name.removesuffix(".part"), "No space left")
    assert not list(tmp_path.glob("**/*.part"))
    done(distillation, *flags, "--resume=auto")
    assert [metrics["epoch"] for metrics in read(tmp_path / "run")[1]] == [1, 2]
