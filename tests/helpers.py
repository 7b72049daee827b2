"""Flags of tiny runs, and what tests ask of the runs they made."""

import json

import torch

from models.load import load_model

TINY = ("--batchSize=2", "--iter=2", "--device=cpu", "--threads=2")


def teacher_flags(images):
    return (*TINY, "--data_dir", images, "--n_resblocks=2", "--n_feats=4", "--patch_size=24", "--nEpochs=2",
            "--data_test=Set5")


def student_flags(images, teacher):
    return (*TINY, "--data_dir", images, "--pretrained", teacher, "--input_size=32", "--latent=4", "--stu_step=2",
            "--nEpochs=2", "--data_test=Set5")


def read(folder):
    """(results, list of metrics) that a run left."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "results.json").read_text()), metrics


def weights_equal(a, b):
    a, b = load_model(a).state_dict(), load_model(b).state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_refused(process, *words):
    """Exit code 2 and one line on stderr, which holds all `words`."""
    assert process.returncode == 2, process.stderr
    lines = process.stderr.splitlines()
    assert len(lines) == 1 and "error: " in lines[0], process.stderr
    assert all(word in lines[0] for word in words), lines[0]
