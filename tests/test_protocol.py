"""Scores on real images by which the evaluation protocol is pinned; they need $SR_DATASETS."""

import numpy as np
import pytest

from data.benchmark import Benchmarks, choose_sets, prepare, score, set_paths
from data.images import read_image
from models.load import load_model
from tests.helpers import ROOT

BICUBIC_OF_TABLE_1 = {"Set5": {2: (33.69, 0.9308), 3: (30.41, 0.8692), 4: (28.43, 0.8114)},
    "Set14": {2: (30.34, 0.8701), 3: (27.64, 0.7757), 4: (26.10, 0.7044)}}


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_has_its_column_of_table_1(datasets, name):
    images = [read_image(path) for path in set_paths(datasets, name)]
    assert len(images) == {"Set5": 5, "Set14": 14}[name]
    for scale, expected in BICUBIC_OF_TABLE_1[name].items():
        pairs = [prepare(image, scale) for image in images]
        scores = [score(pair.bicubic[0].numpy(), pair.hr, scale) for pair in pairs]
        assert np.mean([s["psnr"] for s in scores]) == pytest.approx(expected[0], abs=0.005)
        assert np.mean([s["ssim"] for s in scores]) == pytest.approx(expected[1], abs=0.00005)


@pytest.mark.parametrize("network, psnr", [
    ("public teacher", (37.656, 33.776, 31.456)),  # 37.65 / 33.77 / 31.45 when cut to two places
    ("models/vdsr_half.pth", (37.539, 33.668, 31.303)),  # as the README says
])
def test_networks(datasets, request, network, psnr):
    path = request.getfixturevalue("public_teacher") if network == "public teacher" else ROOT / network
    found = Benchmarks(choose_sets(datasets, "Set5"), (2, 3, 4), "cpu").psnr(load_model(path))
    assert found == pytest.approx(dict(zip("234", psnr)), abs=0.005)
