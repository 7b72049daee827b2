"""Several processes make the run of one: what torchrun starts, on the CPU."""

import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import distillation
from engine import parallel
from models.load import load_model
from tests.conftest import ROOT
from tests.helpers import finish, read, start, student_flags, teacher_flags


def start_all(count, script, flags, folder):
    """The processes that torchrun would start; what process N prints goes to folder/N."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(count):
        (folder / str(rank)).mkdir(exist_ok=True)
        processes.append(start(script, flags, folder, folder / str(rank), RANK=str(rank), LOCAL_RANK=str(rank),
                               WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
    return processes


def wait_for(path, processes):
    """Until there is such a file, or a process has ended that should have made it."""
    while not path.exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.02)


def assert_close(a, b, tolerance=1e-5):
    a, b = load_model(a).state_dict(), load_model(b).state_dict()
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


def test_shares_make_the_whole(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(range(8)[parallel.share(8)])
    assert [list(part) for part in parts] == [[0, 1], [2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize("count, script, flags", [
    (2, "distillation.py", ("--source=generator", "--nEpochs=2", "--iter=5", "--stu_step=2", "--inc_num=2",
                            "--inc_step=1", "--lr_G=1e-3")),
    (3, "distillation.py", ("--source=dead_leaves", "--nEpochs=1", "--iter=10", "--stu_step=2")),
    (3, "train_teacher.py", ("--nEpochs=2", "--iter=10")),
    (2, "train_teacher.py", ("--nEpochs=2", "--iter=10", "--arch=edsr_baseline", "--scale=2", "--optimizer=adam",
                             "--lr=1e-4")),
], ids=["generator", "dead leaves", "vdsr", "edsr"])
def test_processes_end_where_one_does(images, tiny_teacher, tmp_path, count, script, flags):
    """After 20 steps of 4 images the weights are the same to 1e-5, the logged losses, too; only the first writes."""
    tiny = teacher_flags(images) if script == "train_teacher.py" else student_flags(images, tiny_teacher)
    flags = (*tiny, *flags, "--batchSize=4", "--output=net.pth")
    assert finish(start(script, (*flags, "--save_dir=one", "--output=one.pth"), tmp_path)) == 0
    processes = start_all(count, script, (*flags, "--save_dir=run"), tmp_path)
    assert [finish(process) for process in processes] == [0] * count
    assert_close(tmp_path / "one.pth", tmp_path / "net.pth")
    for ours, theirs in zip(read(tmp_path / "run")[1], read(tmp_path / "one")[1], strict=True):
        for name, value in theirs.items():
            if name not in ("psnr", "seconds"):
                assert ours[name] == pytest.approx(value, rel=1e-4)
    assert (tmp_path / "0/stdout").read_text() and not (tmp_path / "1/stdout").read_text()


def test_processes_stop_and_go_on_together(images, tiny_teacher, tmp_path):
    """SIGTERM to one ends all after the same round; resumed by one process the run ends as if it never stopped."""
    flags = (*student_flags(images, tiny_teacher), "--nEpochs=2", "--iter=40", "--batchSize=3", "--lr=1e-4")
    processes = start_all(2, "distillation.py", (*flags, "--save_dir=run"), tmp_path)
    wait_for(tmp_path / "run/metrics.jsonl", processes)
    time.sleep(0.1)
    processes[1].terminate()
    assert [finish(process) for process in processes] == [128 + signal.SIGTERM] * 2
    assert "--resume=auto" in (tmp_path / "0/stderr").read_text()
    assert (tmp_path / "run/checkpoint.pth").is_file()
    assert finish(start("distillation.py", (*flags, "--save_dir=run", "--resume=auto"), tmp_path)) == 0
    assert finish(start("distillation.py", (*flags, "--save_dir=one", "--output=one.pth"), tmp_path)) == 0
    assert_close(tmp_path / "one.pth", tmp_path / "student.pth", 1e-4)


def test_a_process_that_dies_ends_the_others(images, tiny_teacher, tmp_path):
    flags = (*student_flags(images, tiny_teacher), "--nEpochs=50", "--iter=1000")
    processes = start_all(2, "distillation.py", flags, tmp_path)
    wait_for(tmp_path / "runs/distillation/metrics.jsonl", processes)
    processes[1].kill()
    assert finish(processes[0]) == 4
    (line,) = [line for line in (tmp_path / "0/stderr").read_text().splitlines() if "error" in line]
    assert "another process of the run is gone" in line and "--resume=auto" in line


@pytest.mark.parametrize("flags, words", [
    (["--batchSize=1"], "--batchSize 1: is less than the 2 processes"), (["--ge_type=BN"], "--ge_type BN")])
def test_what_several_processes_cannot_do(images, tiny_teacher, tmp_path, flags, words):
    processes = start_all(2, "distillation.py", (*student_flags(images, tiny_teacher), *flags), tmp_path)
    assert [finish(process) for process in processes] == [2, 2]
    assert words in (tmp_path / "0/stderr").read_text()


def test_the_readmes_torchrun_command(images, tiny_teacher, tmp_path):
    flags = (*student_flags(images, tiny_teacher), "--nEpochs=1", "--save_dir=run", "--scale=2")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "distillation.py")]
    process = subprocess.run([*command, *map(str, flags)], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    one = distillation.parse_arguments([*map(str, flags)])
    assert one.batchSize == 2 and read(tmp_path / "run")[0]["student_steps"] == 4
    assert torch.isfinite(next(load_model(tmp_path / "student.pth").parameters())).all()
    assert process.stdout.count("student: student.pth") == 1
