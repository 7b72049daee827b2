"""Cutting patches, finding and scoring benchmarks."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from bicubic import imresize
from data.benchmark import (BUNDLED, Benchmarks, choose_sets, choose_validation, prepare, score, set_paths, upscale)
from data.images import find_training_images, luma, read_image
from data.patches import TrainingPatches
from data.table import format_table, paper_scores
from models import EDSR, VDSR
from tests.helpers import pixels
from utils import InputError


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(path)
    return path


def where(patch, image):
    """All (symmetry, row, column) at which `patch` lies in `image`, both (C, ., .), up to half precision."""
    windows = image.unfold(1, patch.shape[1], 1).unfold(2, patch.shape[2], 1)
    turned = [patch.rot90(symmetry % 4, (1, 2)).flip([2] * (symmetry // 4)) for symmetry in range(8)]
    near = [(windows - patch[:, None, None]).abs().amax(dim=(0, 3, 4)) < 6e-4 for patch in turned]
    return set(map(tuple, torch.stack(near).nonzero().tolist()))


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("upscaled, channels", [(True, 1), (False, 3)], ids=["vdsr", "edsr"])
def test_patches_are_corresponding_parts_of_hr_and_input(tmp_path, upscaled, channels, scale):
    path = save(tmp_path / "a.png", pixels(29, 31))
    ratio = 1 if upscaled else scale
    patches = TrainingPatches([path], (scale,), 12, seed=3, channels=channels, upscaled_input=upscaled)
    rgb = read_image(path)
    full = torch.from_numpy(luma(rgb))[None] / 255 if upscaled else torch.from_numpy(rgb).permute(2, 0, 1)  # bytes
    unit = lambda image: image.clamp(0, 1).float() if upscaled else image.float() / 255
    versions = []
    for size in (1, 0.7, 0.5):
        hr = imresize(full, size) if size != 1 else full
        hr = hr[:, : hr.shape[1] // scale * scale, : hr.shape[2] // scale * scale]
        lr = imresize(hr, 1 / scale)
        versions.append((unit(hr), unit(imresize(lr, scale) if upscaled else lr)))
    inputs, hrs = patches.batch(0, 32)
    assert inputs.shape == (32, channels, 12 // ratio, 12 // ratio) and hrs.shape == (32, channels, 12, 12)
    assert inputs.dtype == hrs.dtype == torch.float32
    found = []
    for x, y in zip(inputs, hrs):
        hits = [(size, turn) for size, (hr, lr) in enumerate(versions) for turn, row, column in where(y, hr)
                if (turn, row // ratio, column // ratio) in where(x, lr)]
        assert len(hits) == 1, "HR and input patch must lie at the same place under the same turn"
        found += hits
    sizes, turns = map(set, zip(*found))
    assert len(turns) >= 6 and sizes >= {0, 1}


def test_patches_depend_on_seed_and_step_alone(images, tmp_path):
    paths = find_training_images(images)
    one, same, other = (TrainingPatches(paths, (2, 3, 4), 16, seed) for seed in (1, 1, 2))
    one.batch(0, 4)
    assert torch.equal(torch.stack(one.batch(5, 4)), torch.stack(same.batch(5, 4)))
    assert torch.equal(torch.stack(one.batch(5, 4, slice(1, 3))), torch.stack(same.batch(5, 4))[:, 1:3])
    assert not torch.equal(one.batch(5, 4)[1], one.batch(6, 4)[1])
    assert not torch.equal(one.batch(5, 4)[1], other.batch(5, 4)[1])
    # All scales are in a batch: of a white-noise image the input's distance from HR tells the scale.
    path, errors = save(tmp_path / "a.png", pixels(60, 60)), []
    for scales in ((2,), (3,), (4,), (2, 3, 4)):
        inputs, hrs = TrainingPatches([path], scales, 24, 1).batch(0, 64)
        errors.append((inputs - hrs).square().mean(dim=(1, 2, 3)))
    means = torch.stack(errors[:3]).mean(dim=1, keepdim=True)
    assert set((errors[3] - means).abs().argmin(dim=0).tolist()) == {0, 1, 2}


def test_which_images_are_trained_on(tmp_path, capsys):
    """Those as large as a patch; the patches are as without the others."""
    with pytest.raises(InputError, match="no training images .*train291"):
        find_training_images(tmp_path)
    folder = tmp_path / "291/train291"
    folder.mkdir(parents=True)
    for i in range(291):
        (folder / f"{i:03}.png").touch()
    held_out = choose_validation(folder.parent, "held_out")["held_out"]  # twenty, which are not trained on then
    assert held_out == [folder / f"{i:03}.png" for i in range(13, 291, 14)] and len(held_out) == 20
    trained = find_training_images(folder.parent, without_held_out=True)
    assert sorted(held_out + trained) == find_training_images(folder.parent) and len(trained) == 271
    path = save(tmp_path / "DIV2K/DIV2K_train_HR/small.png", pixels(20, 20))
    assert find_training_images(tmp_path) == find_training_images(path.parent) == [path]
    with pytest.raises(InputError, match="held_out is every 14th training image, and there are 1"):
        choose_validation(tmp_path, "held_out")
    for scale, size in ((2, 48), (3, 20)):  # the second when cropped to 18
        with pytest.raises(InputError, match=f"no image is large enough for patches of {size}x{size}"):
            TrainingPatches([path], (scale,), size, 1)
    large = save(tmp_path / "large.png", pixels(60, 50))
    some, others = (TrainingPatches(paths, (2,), 48, 1).batch(0, 4) for paths in ([large, path], [large]))
    assert all(torch.equal(a, b) for a, b in zip(some, others))
    assert capsys.readouterr().out == "1 of 2 training images are left out, smaller than 48x48\n"


@pytest.mark.parametrize("layout", ["benchmark/Set5/HR", "Set5/HR", "Set5"])
def test_every_layout_is_found(tmp_path, layout):
    """What is missing is an error only when asked for."""
    for name in ("b.png", "a.bmp"):
        save(tmp_path / layout / name, pixels(30, 30))
    (tmp_path / layout / "._a.bmp").touch()
    for sets in (choose_sets(tmp_path), choose_validation(tmp_path), choose_sets(tmp_path, "Set5+")):
        assert sets == {"Set5": [tmp_path / layout / "a.bmp", tmp_path / layout / "b.png"]}
    assert list(choose_sets(tmp_path, " Set5 + skimage")) == ["Set5", "skimage"]
    for name in ("Set14", "Mine", "+"):
        with pytest.raises(InputError, match=f"no images of the set {re.escape(name)}; expected .*/HR/.*download"):
            choose_sets(tmp_path, name)
    with pytest.raises(InputError, match=r"--val_dataset Set5\+skimage: one set only"):
        choose_validation(tmp_path, "Set5+skimage")
    nowhere = tmp_path / "nowhere"
    assert list(choose_sets(nowhere)) == list(choose_validation(nowhere)) == [BUNDLED]
    assert len(choose_sets(nowhere)[BUNDLED]) == 6
    save(tmp_path / layout / "tiny.png", pixels(14, 40))
    with pytest.raises(InputError, match="tiny.png: 40x14 is too small to score at x4; the least is 23x23"):
        Benchmarks(choose_sets(tmp_path), (2, 4), "cpu")


def test_scores_by_hand():
    """PSNR clips, shaves and has peak 255; SSIM is Wang's, here of one window, without sample covariance."""
    hr = np.full((30, 30), 100.0)
    hr[15, 15] = 250
    output = hr + 5
    output[15, 15] = 400  # clipped to 255: an error of 5, too
    output[:3] = output[:, -3:] = 0  # in the border, shaved
    assert score(output, hr, 3)["psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-12)
    assert score(hr, hr, 3) == {"psnr": 100.0, "ssim": 1.0}  # which JSON can hold
    a, b = pixels(15, 30, 1)[..., 0].astype(float).reshape(2, 15, 15)
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    mean = lambda x: (np.outer(g, g) / g.sum() ** 2 * x[2:13, 2:13]).sum()
    ma, mb, c1, c2 = mean(a), mean(b), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variances, covariance = mean(a * a) - ma**2 + mean(b * b) - mb**2, mean(a * b) - ma * mb
    expected = (2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (variances + c2))
    assert score(a, b, 2)["ssim"] == pytest.approx(expected, abs=1e-6)


def test_each_kind_of_network_is_scored_by_its_protocol():
    rgb, vdsr, edsr = pixels(31, 26), VDSR(1, 2), EDSR(1, 2, scale=2)
    pair = prepare(rgb, 3)
    np.testing.assert_array_equal(pair.hr, luma(rgb[:30, :24]))
    assert torch.equal(pair.lr, imresize(torch.from_numpy(pair.hr)[None], 1 / 3))
    assert torch.equal(pair.bicubic, imresize(pair.lr, 3)) and (pair.bicubic != pair.bicubic.round()).any()
    expected = 255 * vdsr(pair.bicubic.float()[None] / 255)[0, 0].detach()
    np.testing.assert_allclose(upscale(vdsr, pair, "cpu"), expected, atol=1e-3)
    pair = prepare(rgb, 2, channels=3)
    lr = imresize(torch.from_numpy(rgb[:30, :26].transpose(2, 0, 1).copy()), 0.5)
    assert pair.hr.shape == (30, 26) and torch.equal(pair.lr, lr.double())
    expected = 255 * edsr(pair.lr.float()[None] / 255)[0].detach().double()
    expected = luma(expected.round().clamp(0, 255).permute(1, 2, 0).numpy())
    np.testing.assert_allclose(upscale(edsr, pair, "cpu"), expected, atol=1e-9)


def test_table_shows_the_papers_figures_beside_ours():
    results = {"Set5": {"2": {"bicubic": {"psnr": 33.691, "ssim": 0.93079}, "student": {"psnr": 36.0, "ssim": 0.95}}}}
    assert format_table(results, "somehow", paper_scores(VDSR(18, 32))).splitlines() == [
        "set   scale  bicubic       student       bicubic*      teacher*      student*      noise*        ours*",
        "Set5  x2     33.69/0.9308  36.00/0.9500  33.69/0.9308  37.59/0.9597  37.36/0.9588  34.38/0.9376  37.20/0.9582",
        "scored: somehow", "* Table 1 of the paper"]
    for other in (EDSR(1, 2), VDSR(6, 32)):
        assert "*" not in format_table(results, "somehow", paper_scores(other))


def test_scores_are_those_of_their_set_and_scale(images):
    """In order, with more images than are prepared ahead."""
    model, threads = VDSR(1, 2), torch.get_num_threads()
    first, second = set_paths(images, "Set5")
    sets = {"one": [first] * 12, "two": [first, second, second] * 4}
    benchmarks = Benchmarks(sets, (2, 3), torch.device("cpu"))
    found = benchmarks.scores({"m": model})
    shown = {name: image for name, _, image, _ in benchmarks.examples({"m": model})}
    for name, paths in sets.items():
        for scale in (2, 3):
            pairs = [prepare(read_image(path), scale) for path in paths]
            outputs = {"bicubic": [pair.bicubic[0].numpy() for pair in pairs],
                       "m": [upscale(model, pair, "cpu") for pair in pairs]}
            for label in outputs:
                rows = [score(output, pair.hr, scale) for output, pair in zip(outputs[label], pairs)]
                means = {metric: np.mean([row[metric] for row in rows]) for metric in ("psnr", "ssim")}
                assert found[name][str(scale)][label] == pytest.approx(means, abs=1e-9)
                if (scale, label) == (3, "bicubic"):  # the hardest image is shown
                    assert shown[name] == paths[np.argmin([row["psnr"] for row in rows])].stem
    validation = Benchmarks({"two": sets["two"]}, (2, 3), torch.device("cpu"))
    assert validation.psnr(model) == {scale: row["m"]["psnr"] for scale, row in found["two"].items()}
    assert torch.get_num_threads() == threads


def test_lr_images_of_the_benchmark_serve_where_they_are_there(tmp_path):
    """Of EDSR's layout: a grey LR image in the place of the true one makes bicubic's output grey."""
    folder, image = tmp_path / "benchmark/Set5", pixels(48, 50)
    for name in "ab":
        save(folder / f"HR/{name}.png", image)
    model = {"m": EDSR(1, 2, scale=2)}
    benchmarks = Benchmarks(choose_sets(tmp_path, "Set5"), (2,), torch.device("cpu"))
    made = benchmarks.scores(model)["Set5"]["2"]["bicubic"]["psnr"]
    assert "LR made by bicubic" in benchmarks.protocol(model)
    save(folder / "LR_bicubic/X2/ax2.png", np.full((24, 25, 3), 128))
    grey = score(luma(np.full((48, 50, 3), 128)), luma(image), 2)["psnr"]
    read = benchmarks.scores(model)["Set5"]["2"]["bicubic"]["psnr"]
    assert read == pytest.approx((made + grey) / 2, abs=1e-6) and abs(made - grey) > 0.1
    assert "LR from LR_bicubic where it is there" in benchmarks.protocol(model)
    assert "Table 1" in benchmarks.protocol({"m": VDSR(1, 2)})  # whose protocol knows no such files
    save(folder / "LR_bicubic/X2/bx2.png", np.full((24, 24, 3), 128))
    assert "LR from LR_bicubic (" in benchmarks.protocol(model)
    with pytest.raises(InputError, match="bx2.png: is 24x24, expected 25x24"):
        benchmarks.scores(model)
