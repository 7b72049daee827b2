"""Benchmark sets, and the protocols by which super-resolution results are scored.

Two protocols, chosen by the network's kind and never mixed in one table:

"luma"  networks on luma (VDSR; Table 1 of the paper): Y in float from HR cropped to a multiple of the scale;
        LR, and upscaled input where the network takes that, by bicubic, nothing rounded; output clipped to 0..255.
"rgb"   networks on RGB (EDSR): LR by MATLAB's bicubic on 8-bit RGB, or read from
        LR_bicubic/X2 (X3, X4) beside HR; output rounded to 8 bits, then luma.

Both: `scale` pixels shaved on every side; PSNR with peak 255; SSIM with an 11x11 Gaussian of sigma 1.5.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from bicubic import imresize
from data.images import (BUNDLED, BUNDLED_TEST, HELD_OUT, bundled_photographs, held_out_images, list_images, luma,
                         read_image)
from models.tiles import run_tiled, self_ensemble
from utils import InputError

KNOWN_SETS = ("Set5", "Set14", "B100", "Urban100")
SMALLEST_SIDE = 11  # of the shaved image: SSIM's window
HIGHEST_PSNR = 100.0  # of an image, in dB: that of an exact one is infinite, which no mean and no JSON can hold
WORKERS = min(8, os.cpu_count() or 1)


@dataclass
class Pair:
    """One image at one scale. hr: (H, W) luma 0..255 in float64. lr: LR image (C, h, w), bicubic: LR
    upscaled (C, H, W), both float64 in 0..255."""

    hr: np.ndarray
    lr: torch.Tensor
    bicubic: torch.Tensor


def set_paths(data_dir, name):
    """Image paths of the set `name`, empty where it is missing. Layouts: benchmark/NAME/HR, NAME/HR, NAME."""
    if name == BUNDLED:
        return bundled_photographs(BUNDLED_TEST)
    if name == HELD_OUT:
        return held_out_images(data_dir)
    root = Path(data_dir)
    for folder in (root / "benchmark" / name / "HR", root / name / "HR", root / name):
        if paths := list_images(folder):
            return paths
    return []


def choose_sets(data_dir, names=None):
    """The benchmark sets to score on: those of "A+B+...", or where None is given, all that are found.

    Where nothing was asked for and nothing is found, scikit-image's photographs serve. Returns
    {name: paths}; raises InputError for a set that was asked for and is missing.
    """
    asked = KNOWN_SETS if names is None else [name.strip() for name in names.split("+") if name.strip()] or [names]
    found = {name: set_paths(data_dir, name) for name in asked}
    for name, paths in found.items():
        if names is not None and not paths:
            raise InputError(
                f"{data_dir}: no images of the set {name}; expected {data_dir}/benchmark/{name}/HR/*.png|jpg "
                f"(or {data_dir}/{name}/; the name {BUNDLED} stands for scikit-image's photographs)"
                + f"; to fetch it: python -m data.download benchmark --to {data_dir}" * (name in KNOWN_SETS)
            )
    found = {name: paths for name, paths in found.items() if paths}
    return found or {BUNDLED: set_paths(data_dir, BUNDLED)}


def choose_scales(scale, model, path):
    """The scales of --scale: all of the model's for 0. Raises InputError for one it has not."""
    if scale and scale not in model.scales:
        raise InputError(f"--scale {scale}: the network {path} upscales by {model.scales[0]} only")
    return (scale,) if scale else model.scales


def choose_validation(data_dir, name=None):
    """The one set scored after each epoch: `name`, or Set5 where there is one, else scikit-image's."""
    if name is None:
        name = "Set5" if set_paths(data_dir, "Set5") else BUNDLED
    if "+" in name:
        raise InputError(f"--val_dataset {name}: one set only; --data_test takes several")
    return choose_sets(data_dir, name)


def lr_path(path, scale):
    """Where EDSR's benchmarks have the LR image of the HR image `path`; None where there is no such file."""
    path = Path(path)
    lr = path.parent.parent / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}{path.suffix}"
    return lr if path.parent.name == "HR" and lr.is_file() else None


def prepare(rgb, scale, channels=1, lr_file=None):
    """The Pair of an RGB image, uint8 (H, W, 3), under the protocol of networks with that many channels.

    lr_file: its LR image, for the protocol "rgb". Raises InputError where that has another size.
    """
    rows, columns = (n - n % scale for n in rgb.shape[:2])
    rgb = rgb[:rows, :columns]
    hr = luma(rgb)
    if channels == 1:
        lr = imresize(torch.from_numpy(hr)[None], 1 / scale)
        return Pair(hr, lr, imresize(lr, scale))
    if lr_file:
        lr = torch.from_numpy(read_image(lr_file).transpose(2, 0, 1).copy())
        if lr.shape[1:] != (rows // scale, columns // scale):
            raise InputError(f"{lr_file}: is {lr.shape[2]}x{lr.shape[1]}, expected {columns // scale}x{rows // scale}")
    else:
        lr = imresize(torch.from_numpy(rgb.transpose(2, 0, 1).copy()), 1 / scale)
    return Pair(hr, lr.double(), imresize(lr, scale).double())


def score(output, hr, scale, ssim=True):
    """PSNR in dB and, where asked for, SSIM of luma `output` against `hr`, both (H, W) in 0..255.

    The output is clipped, then `scale` pixels are shaved on every side. PSNR is at most HIGHEST_PSNR.
    """
    inside = (slice(scale, -scale),) * 2
    output, hr = np.clip(output, 0, 255)[inside], hr[inside]
    with np.errstate(divide="ignore"):
        scores = {"psnr": min(float(peak_signal_noise_ratio(hr, output, data_range=255)), HIGHEST_PSNR)}
    if ssim:
        scores["ssim"] = float(structural_similarity(
            hr, output, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))
    return scores


def run_network(model, x, ensemble=False):
    """The network's output for one input (C, h, w) of any size, both in [0, 1], in float32 and not clipped.

    ensemble: the mean over the eight flips and turns of the input.
    """
    run = partial(run_tiled, model)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return (self_ensemble(run, x[None]) if ensemble else run(x[None]))[0]


def upscale(model, pair, device, ensemble=False):
    """The network's output luma (H, W) in 0..255 for a pair, before clipping. ensemble: see run_network."""
    x = ((pair.bicubic if model.upscaled_input else pair.lr) / 255).float().to(device)
    return _as_luma(run_network(model, x, ensemble).double().cpu() * 255)


def _as_luma(image):
    """Luma (H, W) of (C, H, W) in 0..255: itself, or of RGB rounded to 8 bits."""
    if len(image) == 1:
        return image[0].numpy()
    return luma(image.round().clamp(0, 255).permute(1, 2, 0).numpy())


@contextmanager
def _workers():
    """A pool of threads that resize and score while the network runs; NumPy, SciPy and torch let them."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _ahead(pool, function, items):
    """function(item) for each of `items`, in order; the pool works on as many ahead as it has threads."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Benchmarks:
    """Scores networks on sets of images, which are read once.

    sets: {name: paths}, see choose_sets. ensemble: the networks' outputs are means over flips and turns.
    Raises InputError where an image cannot be read or is too small.
    """

    def __init__(self, sets, scales, device, ensemble=False):
        self.scales, self.device, self.ensemble = scales, device, ensemble
        self.prepared, self.hardest = {}, {}
        self.sets = {name: [(path, read_image(path)) for path in paths] for name, paths in sets.items()}
        smallest = SMALLEST_SIDE + 3 * max(scales)
        for path, rgb in self._all_images():
            if min(rgb.shape[:2]) < smallest:
                raise InputError(
                    f"{path}: {rgb.shape[1]}x{rgb.shape[0]} is too small to score at x{max(scales)}; "
                    f"the least is {smallest}x{smallest}"
                )

    def _all_images(self):
        return [image for images in self.sets.values() for image in images]

    def scores(self, networks, bicubic=False):
        """Mean scores {set: {scale: {name: {"psnr", "ssim"}}}} of `networks` ({name: model}, one or several of
        one protocol), with bicubic's own where asked for."""
        results = {}
        count = len(self._all_images()) * len(self.scales)
        with _workers() as pool, tqdm(total=count, desc="scoring", unit="image", leave=False, disable=None) as bar:
            for name, images in self.sets.items():
                results[name] = {}
                for scale in self.scales:
                    rows = []
                    for row in self._score_images(pool, networks, bicubic, images, scale):
                        rows.append(row)
                        bar.update()
                    results[name][str(scale)] = {
                        label: {metric: float(np.mean([row[label][metric] for row in rows])) for metric in scored}
                        for label, scored in rows[0].items()
                    }
                    if bicubic and scale == self.scales[len(self.scales) // 2]:
                        self.hardest[name] = int(np.argmin([row["bicubic"]["psnr"] for row in rows]))
        return results

    def psnr(self, model):
        """{scale: mean PSNR in dB} of one network, over all images. They stay prepared: this is for every epoch."""
        result = {}
        for scale in self.scales:
            if scale not in self.prepared:
                self.prepared[scale] = [_prepare(image, scale, model.channels) for image in self._all_images()]
            result[str(scale)] = float(np.mean([
                score(upscale(model, pair, self.device), pair.hr, scale, ssim=False)["psnr"]
                for pair in self.prepared[scale]]))
        return result

    def one_image(self, model):
        """PSNR in dB of the network and of bicubic on the smallest image at the middle scale, which takes no time."""
        scale = self.scales[len(self.scales) // 2]
        pair = _prepare(min(self._all_images(), key=lambda image: image[1].size), scale, model.channels)
        return tuple(score(output, pair.hr, scale, ssim=False)["psnr"]
                     for output in (upscale(model, pair, self.device), _as_luma(pair.bicubic)))

    def examples(self, networks):
        """Of every set the image that bicubic did worst in scores(), at the middle scale.

        Yields (set, scale, the image's name, {"HR", "bicubic" and names of `networks`: (luma (H, W), its score;
        None for HR)}).
        """
        scale = self.scales[len(self.scales) // 2]
        for name, images in self.sets.items():
            image = images[self.hardest[name]]
            pair = _prepare(image, scale, _channels(networks))
            scored = {label: (output, score(output, pair.hr, scale))
                      for label, output in self._outputs(networks, True, pair).items()}
            yield name, scale, image[0].stem, {"HR": (pair.hr, None), **scored}

    def _score_images(self, pool, networks, bicubic, images, scale):
        """Yield {name: score} of each image: prepared and scored by the pool, upscaled here."""

        def score_all(hr_and_outputs):
            hr, outputs = hr_and_outputs
            return {name: score(output, hr, scale) for name, output in outputs.items()}

        pairs = _ahead(pool, lambda image: _prepare(image, scale, _channels(networks)), images)
        return _ahead(pool, score_all, ((pair.hr, self._outputs(networks, bicubic, pair)) for pair in pairs))

    def _outputs(self, networks, bicubic, pair):
        outputs = {"bicubic": _as_luma(pair.bicubic)} if bicubic else {}
        outputs.update((name, upscale(model, pair, self.device, self.ensemble)) for name, model in networks.items())
        return outputs

    def protocol(self, networks):
        """How `networks` are scored, in words."""
        words = "luma, nothing rounded (Table 1's protocol)"
        if _channels(networks) == 3:
            files = [lr_path(path, scale) for path, _ in self._all_images() for scale in self.scales]
            source = ("from LR_bicubic" if all(files) else "from LR_bicubic where it is there" if any(files)
                      else "made by bicubic")
            words = f"luma of 8-bit RGB output, LR {source} (EDSR's protocol)"
        return words + ", self-ensemble" * self.ensemble


def _channels(networks):
    """Of the networks' images: 1 or 3, which tells the protocol."""
    return next(iter(networks.values())).channels


def _prepare(image, scale, channels):
    """The Pair of an image as (path, rgb)."""
    return prepare(image[1], scale, channels, lr_path(image[0], scale))
