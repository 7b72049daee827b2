"""Several processes make the run of one: what torchrun starts, on the CPU."""

import signal
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch

import distillation
import train_teacher
from engine import parallel
from engine.learner import Learner, make_optimizer
from models.load import load_model
from tests.helpers import ROOT, die_at, finish, read, start, student_flags, teacher_flags, tiny_flags

# The order of a sum changes weights in their last digits, in bfloat16 in their first.
EXACT = ("--precision=fp32", "--scale=2")


def run_all(count, script, flags, folder, signals={}):
    """Exit codes of what torchrun would start; process N prints to folder/N. signals: {N: arguments of die_at}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in map(str, range(count)):
        (folder / rank).mkdir(exist_ok=True)
        prepare = partial(die_at, *signals[int(rank)]) if int(rank) in signals else dict
        processes.append(start(script, flags, folder, folder / rank, prepare, RANK=rank, LOCAL_RANK=rank,
                               WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
    return [finish(process) for process in processes]


def gradients(folder):
    """The mean gradients that Adam keeps, of all networks that learn by it."""
    parts = torch.load(folder / "checkpoint.pth")["parts"].values()
    return torch.cat([torch.zeros(0), *(weight["exp_avg"].flatten() for part in parts
                                        for weight in part["optimizer"].values() if "exp_avg" in weight)])


@pytest.mark.parametrize("count, script, flags", [
    (2, distillation, "--source=generator --batchSize=4 --iter=1 --inc_num=2 --inc_step=1 --stu_step=5 --lr=0.01"),
    (3, distillation, "--source=dead_leaves --batchSize=6 --iter=5 --bank=20 --optimizer=muon --loss_type=L1"),
    (2, train_teacher, "--batchSize=4 --iter=10 --arch=edsr_baseline --optimizer=adam --lr=1e-4"),
], ids=["generator", "bank", "edsr"])
def test_processes_end_where_one_does(images, tiny_teacher, tmp_path, count, script, flags):
    """After 10 or 20 steps the weights are the same to 1e-5, the logged losses, too; only the first writes.

    A generator has made 2 steps, of which its gradients are looked at: Adam makes steps of the rounding in them, too.
    """
    flags = tiny_flags(script, images, tiny_teacher, *EXACT, *flags.split(), "--output=net.pth")
    assert finish(start(script, (*flags, "--save_dir=one", "--output=one.pth"), tmp_path)) == 0
    assert run_all(count, script, (*flags, "--save_dir=run"), tmp_path) == [0] * count
    a, b = (load_model(path).state_dict() for path in (tmp_path / "one.pth", tmp_path / "net.pth"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    a, b = (gradients(tmp_path / folder) for folder in ("one", "run"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * a.abs().max().item() if len(a) else 0)
    for ours, theirs in zip(read(tmp_path / "run")[1], read(tmp_path / "one")[1], strict=True):
        for name in theirs.keys() - {"psnr", "seconds", "images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert (tmp_path / "0/stdout").read_text()
    assert all(not (tmp_path / f"{rank}/stdout").read_text() for rank in range(1, count))


def test_processes_stop_and_go_on_together(images, tiny_teacher, tmp_path):
    """SIGTERM to one ends all after the same round; resumed by one process the run ends as if it never stopped."""
    flags = (*student_flags(images, tiny_teacher), *EXACT, "--iter=5", "--lr=1e-4")
    run = (*flags, "--save_dir=run", "--resume=auto")
    assert run_all(2, distillation, run, tmp_path, {1: (4, signal.SIGTERM)}) == [128 + signal.SIGTERM] * 2
    assert "--resume=auto" in (tmp_path / "0/stderr").read_text()
    assert finish(start(distillation, run, tmp_path)) == 0
    assert finish(start(distillation, (*flags, "--save_dir=one", "--output=one.pth"), tmp_path)) == 0
    a, b = (load_model(path).state_dict() for path in (tmp_path / "one.pth", tmp_path / "student.pth"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_process_that_dies_ends_the_others(images, tiny_teacher, tmp_path):
    """And a batch that cannot be shared out equally ends all."""
    flags = student_flags(images, tiny_teacher)
    assert run_all(2, distillation, (*flags, "--batchSize=3"), tmp_path) == [2, 2]
    for rank in "01":
        assert (f"distillation.py (process {rank}): error: --batchSize 3: is no multiple of the 2 processes"
                in (tmp_path / rank / "stderr").read_text())
    assert not (tmp_path / "runs").exists()
    assert run_all(2, distillation, flags, tmp_path, {1: (4, signal.SIGKILL)}) == [4, -signal.SIGKILL]
    (line,) = [line for line in (tmp_path / "0/stderr").read_text().splitlines() if "error" in line]
    assert "another process of the run is gone" in line and "--resume=auto" in line


def test_torchrun(images, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", ROOT / "train_teacher.py",
               *teacher_flags(images), "--nEpochs=1", "--scale=2"]
    process = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("the trained network is teacher.pth") == 1
    assert read(tmp_path / "runs/train_teacher")[0]["steps"] == 2


def test_processes_start_with_the_main_ones_weights(monkeypatch):
    """A network of one's own may have drawn others; buffers go with them."""
    sent = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel.dist, "broadcast", lambda tensor, source: sent.append((tensor.data_ptr(), source)))
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    Learner(network, make_optimizer(network, "sgd"))
    assert sent == [(tensor.data_ptr(), 0) for tensor in network.state_dict().values()] and len(sent) == 7
