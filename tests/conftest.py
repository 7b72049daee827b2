"""Small networks and images for all tests, and the real ones where the environment names them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from models import VDSR

torch.set_num_threads(1)  # the networks are tiny, and tests run side by side


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test begins with the same ones."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def datasets():
    """The folder of real image sets, $SR_DATASETS."""
    folder = os.environ.get("SR_DATASETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SR_DATASETS does not name a folder with benchmark/Set5/HR and the like")
    return Path(folder)


@pytest.fixture(scope="session")
def public_teacher():
    """The public VDSR in $SR_WEIGHTS."""
    path = Path(os.environ.get("SR_WEIGHTS", "")) / "vdsr_public.pth"
    if not path.is_file():
        pytest.skip("SR_WEIGHTS does not name a folder with vdsr_public.pth")
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A data folder: train291 with 3 smooth random images, benchmark/Set5/HR with 2 of them."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for folder, count in (("train291", 3), ("benchmark/Set5/HR", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(noise.integers(0, 256, (12, 14, 3), dtype=np.uint8))
            coarse.resize((56, 48 + i), Image.BICUBIC).save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """Checkpoint of an untrained VDSR of 6 blocks and 4 channels whose residual is small."""
    torch.manual_seed(0)
    model = VDSR(n_resblocks=6, n_feats=4)
    model.tail.weight.data *= 0.1
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    utils.save_model(model, path)
    return path


@pytest.fixture
def few_places(monkeypatch):
    """A student's start from its teacher in a fraction of the time."""
    monkeypatch.setattr("models.from_teacher.ROWS", 4000)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(script module, flags...) runs a script in an empty folder, in this process, without curves and the disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in ("distillation", "train_teacher"):
        monkeypatch.setattr(f"{name}.save_curves", lambda folder: None)

    def run_script(script, *flags):
        flags = [*map(str, flags)]
        monkeypatch.setattr(sys, "argv", [script.__file__, *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            utils.run_script(script.main, script.parse_arguments(flags))
        return subprocess.CompletedProcess(sys.argv, stop.value.code, *capsys.readouterr())

    return run_script


@pytest.fixture
def done(run):
    """done(script module, flags...) is run, of which the script must make a success."""

    def run_well(script, *flags):
        outcome = run(script, *flags)
        assert outcome.returncode == 0, outcome.stderr
        return outcome

    return run_well
