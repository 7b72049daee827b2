"""Runs that are killed, told to stop, or go wrong, as processes; and their resumption."""

import os
import random
import signal
import time
import zipfile

import pytest
import torch

import distillation
import train_teacher
import utils
from models.load import load_model
from engine.run import Run
from tests.helpers import assert_refused, finish, read, start, student_flags, teacher_flags, weights_equal


@pytest.fixture(scope="module")
def whole_runs(images, tiny_teacher, tmp_path_factory):
    """{script: (flags, weights of the run that nothing disturbed, its metrics, its seconds)}."""
    runs = {}
    long = ("--nEpochs=4", "--scale=2", "--checkpoint_every=0.0002", "--optimizer=adam")
    every = {
        "train_teacher.py": (*teacher_flags(images), *long, "--iter=12", "--output=out.pth"),
        "distillation.py": (*student_flags(images, tiny_teacher), *long, "--iter=3", "--inc_num=2", "--inc_step=2",
                            "--output=out.pth"),
    }
    for script, flags in every.items():
        folder = tmp_path_factory.mktemp("whole")
        assert finish(start(script, (*flags, "--save_dir=run"), folder)) == 0, (folder / "stderr").read_text()
        results, metrics = read(folder / "run")
        runs[script] = (flags, folder / "out.pth", metrics, results["seconds"] + 0.5)
    return runs


@pytest.mark.parametrize("trial", range(20))
def test_a_killed_run_ends_as_if_it_had_not_been(whole_runs, tmp_path, trial):
    """SIGKILL or SIGTERM at a random moment; then --resume=auto, killed once more, and to the end."""
    moment = random.Random(trial)
    script = ("train_teacher.py", "distillation.py")[trial % 2]
    number = (signal.SIGKILL, signal.SIGTERM)[trial // 2 % 2]
    flags, weights, metrics, seconds = whole_runs[script]
    for _ in range(2):
        process = start(script, (*flags, "--save_dir=run", "--resume=auto"), tmp_path)
        time.sleep(moment.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, number)
        assert finish(process) in (0, 143, -number), (tmp_path / "stderr").read_text()
    assert finish(start(script, (*flags, "--save_dir=run", "--resume=auto"), tmp_path)) == 0
    assert weights_equal(tmp_path / "out.pth", weights)
    found = read(tmp_path / "run")[1]
    assert [{**m, "seconds": 0} for m in found] == [{**m, "seconds": 0} for m in metrics]
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize("script", ["train_teacher.py", "distillation.py"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step(whole_runs, tmp_path, script, number, code):
    flags, weights, metrics, _ = whole_runs[script]
    process = start(script, (*flags, "--save_dir=run"), tmp_path)
    while not (tmp_path / "run" / "checkpoint.pth").exists():
        assert process.is_alive(), (tmp_path / "stderr").read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert finish(process) == code
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert "stopped by" in line and "--resume=auto" in line
    assert finish(start(script, (*flags, "--save_dir=run", "--resume=auto"), tmp_path)) == 0
    assert weights_equal(tmp_path / "out.pth", weights)


@pytest.mark.parametrize("arch", ["vdsr", "edsr"])
@pytest.mark.parametrize("script, stop", [
    (train_teacher, (1, 1, 0)), (train_teacher, (2, 2, 0)), (train_teacher, (3, 1, 0)),
    (distillation, (1, 1, 1)), (distillation, (2, 0, 2)), (distillation, (2, 2, 0)), (distillation, (3, 1, 0)),
])
def test_stopping_at_any_step_changes_nothing(run, monkeypatch, tmp_path, images, tiny_teacher, script, arch, stop):
    """stop: (epoch, round, step) that come next when the signal is there. Stages begin at epochs 1 and 3."""
    flags = (*teacher_flags(images), "--scale=2", "--nEpochs=3")
    if arch == "edsr":
        flags = (*flags, "--arch=edsr")
    if script is distillation:
        if arch == "edsr":
            assert run(train_teacher, *flags, "--nEpochs=1").returncode == 0
        flags = (*student_flags(images, "teacher.pth" if arch == "edsr" else tiny_teacher), "--scale=2",
                 "--nEpochs=4", "--inc_num=2", "--inc_step=2")
    done = Run.done

    def stopping(self, *place):
        if (self.epoch, *place, 0)[:3] == stop:
            self.signal = signal.SIGTERM
        done(self, *place)

    assert run(script, *flags, "--save_dir=whole", "--output=whole.pth").returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "done", stopping)
        assert run(script, *flags, "--save_dir=part", "--output=part.pth").returncode == 143
    assert run(script, *flags, "--save_dir=part", "--output=part.pth", "--resume=auto").returncode == 0
    assert weights_equal("whole.pth", "part.pth")
    assert weights_equal("whole/model_best.pth", "part/model_best.pth")
    whole, part = read(tmp_path / "whole"), read(tmp_path / "part")
    assert [{**m, "seconds": 0} for m in whole[1]] == [{**m, "seconds": 0} for m in part[1]]
    steps = "steps" if script is train_teacher else "student_steps"
    assert whole[0][steps] == part[0][steps] > 0


def test_auto_falls_back_to_the_checkpoint_before(run, images, tiny_teacher, tmp_path):
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=3")
    assert run(distillation, *flags).returncode == 0
    folder = tmp_path / "runs/distillation"
    weights, metrics = load_model(tmp_path / "student.pth").state_dict(), read(folder)[1]
    newest = (folder / "checkpoint.pth").read_bytes()
    (folder / "checkpoint.pth").write_bytes(newest[: len(newest) // 2])
    assert_refused(run(distillation, *flags, "--resume", folder / "checkpoint.pth"), "checkpoint.pth: cannot be read")
    again = run(distillation, *flags, "--resume=auto")
    assert again.returncode == 0 and "warning" in again.stdout and "checkpoint.pth" in again.stdout
    assert all(torch.equal(v, weights[k]) for k, v in load_model(tmp_path / "student.pth").state_dict().items())
    assert [m["psnr"] for m in read(folder)[1]] == [m["psnr"] for m in metrics]
    for name in ("checkpoint.pth", "checkpoint_previous.pth"):
        (folder / name).write_bytes(b"rubbish")
    refused = run(distillation, *flags, "--resume=auto")
    assert refused.returncode == 2 and "no checkpoint in runs/distillation can be used" in refused.stderr


def test_other_settings_are_listed_and_refused(run, images, tiny_teacher, tmp_path):
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=1")
    assert run(distillation, *flags).returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "runs/distillation").rglob("*") if p.is_file()}
    changed = ("--lr=0.5", "--latent=5", "--momentum=0.5")
    for more in ((), ("--resume=auto",), ("--resume=runs/distillation/checkpoint.pth",)):
        assert_refused(run(distillation, *flags, *changed, *more), "runs/distillation", "lr was 0.1, is 0.5",
                       "latent was 4, is 5", "momentum was 0.9, is 0.5")
    assert_refused(run(train_teacher, *teacher_flags(images), "--save_dir=runs/distillation", "--resume=auto"),
                   "was left by distillation.py, not by train_teacher.py")
    other = tmp_path / "other.pth"
    model = load_model(tiny_teacher)
    model.tail.weight.data += 1
    utils.save_model(model, other)
    assert_refused(run(distillation, *flags, "--pretrained", other, "--resume=auto"), "teacher was")
    assert_refused(run(distillation, *flags, "--nEpochs=2"), "holds another run", "nEpochs was 1, is 2")
    assert before == {p: p.read_bytes() for p in (tmp_path / "runs/distillation").rglob("*") if p.is_file()}
    assert run(distillation, *flags).returncode == 0  # the same once more begins anew
    allowed = ("--nEpochs=2", "--threads=1", "--output=b.pth", "--checkpoint_every=1", "--resume=auto")
    assert run(distillation, *flags, *allowed).returncode == 0
    assert [m["epoch"] for m in read(tmp_path / "runs/distillation")[1]] == [1, 2]


@pytest.mark.parametrize("script", [train_teacher, distillation])
def test_a_loss_that_is_not_finite_stops_the_run(run, monkeypatch, images, tiny_teacher, tmp_path, script):
    """In the second epoch's second round; the checkpoint stays that of the first epoch."""
    flags = teacher_flags(images) if script is train_teacher else student_flags(images, tiny_teacher)
    original, calls = script.distance, []

    def distance(loss_type):
        D = original(loss_type)

        def spoilt(a, b):
            calls.append(1)
            return D(a, b) * (float("nan") if len(calls) == (4 if script is train_teacher else 14) else 1)

        return spoilt

    monkeypatch.setattr(script, "distance", distance)
    process = run(script, *flags, "--scale=2", "--save_dir=run")
    assert process.returncode == 3
    (line,) = process.stderr.splitlines()
    assert "is nan" in line and "epoch 2, round 2, step" in line
    state = utils.read_checkpoint(tmp_path / "run/checkpoint.pth")
    assert (state["epoch"], state["round"]) == (2, 0)
    assert all(torch.isfinite(t).all() for t in state["model"].values())


@pytest.mark.parametrize("name", ["checkpoint.pth", "metrics.jsonl", "model_last.pth", "log.txt"])
def test_a_full_disk_is_one_line(run, monkeypatch, images, tiny_teacher, tmp_path, name):
    """The system reports it as the second epoch's files are written; the first epoch's checkpoint stays."""
    flags = (*student_flags(images, tiny_teacher), "--scale=2")
    assert run(distillation, *flags, "--nEpochs=1").returncode == 0
    fsync = os.fsync

    def full(descriptor):
        begun = os.readlink(f"/proc/self/fd/{descriptor}")
        if name in begun and (name != "metrics.jsonl" or not begun.endswith(".part")):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused = run(distillation, *flags, "--nEpochs=3", "--resume=auto")
    assert_refused(refused, name, "No space left on device")
    assert not list(tmp_path.glob("**/*.part"))
    assert run(distillation, *flags, "--nEpochs=3", "--resume=auto").returncode == 0
    assert [m["epoch"] for m in read(tmp_path / "runs/distillation")[1]] == [1, 2, 3]


def test_a_flipped_bit_is_found(run, images, tiny_teacher, tmp_path):
    """One bit of the stored numbers, which torch.load would let pass."""
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=2")
    assert run(distillation, *flags).returncode == 0
    newest = tmp_path / "runs/distillation/checkpoint.pth"
    content = bytearray(newest.read_bytes())
    with zipfile.ZipFile(newest) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + 64 + largest.file_size // 2] ^= 1
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)
    assert_refused(run(distillation, *flags, f"--resume={newest}"), "checkpoint.pth: is damaged")
    before = newest.with_name("checkpoint_previous.pth").read_bytes()
    again = run(distillation, *flags, "--nEpochs=3", "--resume=auto")
    assert again.returncode == 0 and "is damaged" in again.stdout
    assert newest.with_name("checkpoint_previous.pth").read_bytes() != before
    assert [m["epoch"] for m in read(tmp_path / "runs/distillation")[1]] == [1, 2, 3]


def test_a_run_goes_on_in_its_own_folder_only(run, images, tiny_teacher, tmp_path):
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=1")
    assert run(distillation, *flags, "--save_dir=a").returncode == 0
    checkpoint = "--resume=a/checkpoint.pth"
    assert_refused(run(distillation, *flags, checkpoint, "--save_dir=b"), "--save_dir b", "its own folder")
    assert run(distillation, *flags, "--nEpochs=2", checkpoint).returncode == 0
    assert [m["epoch"] for m in read(tmp_path / "a")[1]] == [1, 2]
    assert_refused(run(distillation, *flags, checkpoint), "--nEpochs 1", "has made 2 already")
    both = ("--test_only", "--pretrained", tiny_teacher, "--student", tiny_teacher, "--save_dir=a")
    assert_refused(run(distillation, *both), "--save_dir a", "holds a run")
    (tmp_path / "a/checkpoint.pth").unlink()
    assert_refused(run(distillation, *flags, "--save_dir=a", "--lr=0.5"), "holds another run", "lr was 0.1")


def test_a_new_run_leaves_nothing_of_the_one_before(run, monkeypatch, images, tiny_teacher, tmp_path):
    """Begun anew by the same command and stopped before its first epoch's end, it resumes as itself."""
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=2")
    assert run(distillation, *flags).returncode == 0
    whole = read(tmp_path / "runs/distillation")[1]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "done", lambda self, *place: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(distillation, *flags).returncode == 130
    assert [p.name for p in (tmp_path / "runs/distillation").glob("*.pth")] == []
    assert run(distillation, *flags, "--resume=auto").returncode == 0
    assert [m["psnr"] for m in read(tmp_path / "runs/distillation")[1]] == [m["psnr"] for m in whole]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_scoring_ends_the_run_at_once(run, monkeypatch, images, tiny_teacher, tmp_path, number, code):
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(distillation.Benchmarks, "scores", lambda *_, **__: signal.raise_signal(number))
        stopped = run(distillation, *flags)
    assert stopped.returncode == code and "--resume=auto" in stopped.stderr
    assert not (tmp_path / "runs/distillation/results.json").exists()
    assert run(distillation, *flags, "--resume=auto").returncode == 0
    assert read(tmp_path / "runs/distillation")[0]["student_steps"] == 4


def test_a_second_interrupt_ends_at_once(monkeypatch, images, tiny_teacher, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = distillation.parse_arguments([*map(str, student_flags(images, tiny_teacher)), "--save_dir=run"])
    args.device = torch.device("cpu")
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(utils.Stopped), Run(args, ["student"]):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert codes == []
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]


@pytest.mark.parametrize("part, content", [
    ("settings", 3), ("epoch", "one"), ("sums", [0.0]), ("model", {}), ("model", 1), ("optimizer", {}),
    ("config", {"arch": "vdsr"}), ("generators", {}), ("generators", None),
])
def test_a_checkpoint_with_other_content_is_refused(run, images, tiny_teacher, tmp_path, part, content):
    flags = (*student_flags(images, tiny_teacher), "--scale=2", "--nEpochs=1")
    assert run(distillation, *flags).returncode == 0
    path = tmp_path / "runs/distillation/checkpoint.pth"
    torch.save(utils.read_checkpoint(path) | {part: content}, path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert_refused(run(distillation, *flags, f"--resume={path}"), str(path))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
