"""Benchmark sets, and the protocols by which super-resolution results are scored.

Two protocols, chosen by the network's kind and never mixed in one table:

"luma"  networks that take an upscaled luma image (VDSR; Table 1 of the paper): Y in float from HR cropped
        to a multiple of the scale; LR and input by bicubic, nothing rounded; output clipped to 0..255.
"rgb"   networks that upscale an RGB image themselves (EDSR): LR by MATLAB's bicubic on 8-bit RGB, output
        rounded to 8 bits, then luma.

Both: `scale` pixels shaved on every side; PSNR with peak 255; SSIM with an 11x11 Gaussian of sigma 1.5.
"""

import csv
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from bicubic import imresize
from data.images import BUNDLED, BUNDLED_TEST, bundled_photographs, list_images, luma, read_image
from models.tiles import run_tiled
from utils import InputError

KNOWN_SETS = ("Set5", "Set14", "B100", "Urban100")
PAPER_TABLE = Path(__file__).parent / "table1.csv"
SMALLEST_SIDE = 11  # of the shaved image: SSIM's window


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
    found = {name: set_paths(data_dir, name) for name in (KNOWN_SETS if names is None else names.split("+"))}
    for name, paths in found.items():
        if names is not None and not paths:
            raise InputError(
                f"{data_dir}: no images of the set {name}; expected {data_dir}/benchmark/{name}/HR/*.png|jpg "
                f"(or {data_dir}/{name}/; the name {BUNDLED} stands for scikit-image's photographs)"
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


def prepare(rgb, scale, upscaled_input=True):
    """The Pair of an RGB image, uint8 (H, W, 3), under the protocol of networks with that input."""
    rows, columns = (n - n % scale for n in rgb.shape[:2])
    rgb = rgb[:rows, :columns]
    hr = luma(rgb)
    if upscaled_input:
        lr = imresize(torch.from_numpy(hr)[None], 1 / scale)
        return Pair(hr, lr, imresize(lr, scale))
    lr = imresize(torch.from_numpy(rgb.transpose(2, 0, 1).copy()), 1 / scale)
    return Pair(hr, lr.double(), imresize(lr, scale).double())


def score(output, hr, scale, ssim=True):
    """PSNR in dB and, where asked for, SSIM of luma `output` against `hr`, both (H, W) in 0..255.

    The output is clipped, then `scale` pixels are shaved on every side.
    """
    inside = (slice(scale, -scale),) * 2
    output, hr = np.clip(output, 0, 255)[inside], hr[inside]
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(hr, output, data_range=255)
    if not ssim:
        return {"psnr": float(psnr)}
    similarity = structural_similarity(
        hr, output, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return {"psnr": float(psnr), "ssim": float(similarity)}


def upscale(model, pair, device):
    """The network's output luma (H, W) in 0..255 for a pair, before clipping. The network runs in float32."""
    source = pair.bicubic if model.upscaled_input else pair.lr
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        output = run_tiled(model, (source / 255).float().to(device)[None])[0].double().cpu() * 255
    return _as_luma(output)


def _as_luma(image):
    """Luma (H, W) of (C, H, W) in 0..255: itself, or of RGB rounded to 8 bits."""
    if len(image) == 1:
        return image[0].numpy()
    return luma(image.round().clamp(0, 255).permute(1, 2, 0).numpy())


WORKERS = min(8, os.cpu_count() or 1)


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
    """Scores networks on sets of images, which are read once. sets: {name: paths}, see choose_sets."""

    def __init__(self, sets, scales, device):
        self.scales, self.device, self.prepared = scales, device, {}
        self.sets = {name: [(path, read_image(path)) for path in paths] for name, paths in sets.items()}
        smallest = SMALLEST_SIDE + 3 * max(scales)
        for path, rgb in (entry for images in self.sets.values() for entry in images):
            if min(rgb.shape[:2]) < smallest:
                raise InputError(
                    f"{path}: {rgb.shape[1]}x{rgb.shape[0]} is too small to score at x{max(scales)}; "
                    f"the least is {smallest}x{smallest}"
                )

    def scores(self, networks, bicubic=False):
        """Mean scores {set: {scale: {name: {"psnr", "ssim"}}}} of `networks` ({name: model}, all of one
        protocol), with bicubic's own where asked for."""
        results = {}
        count = sum(map(len, self.sets.values())) * len(self.scales)
        with _workers() as pool, tqdm(total=count, desc="scoring", unit="image", leave=False, disable=None) as bar:
            for name, images in self.sets.items():
                results[name] = {}
                for scale in self.scales:
                    rows = []
                    for row in self._score_images(pool, networks, bicubic, images, scale):
                        rows.append(row)
                        bar.update()
                    results[name][str(scale)] = _mean(rows)
        return results

    def psnr(self, model):
        """{scale: mean PSNR in dB} of one network, over all images."""
        result = {}
        for scale in self.scales:
            pairs = self._pairs(scale, model.upscaled_input)
            result[str(scale)] = float(np.mean([
                score(upscale(model, pair, self.device), pair.hr, scale, ssim=False)["psnr"] for pair in pairs]))
        return result

    def _pairs(self, scale, upscaled_input):
        """All images at a scale, prepared once: validation sets are small and scored every epoch."""
        if scale not in self.prepared:
            images = [rgb for images in self.sets.values() for _, rgb in images]
            self.prepared[scale] = [prepare(rgb, scale, upscaled_input) for rgb in images]
        return self.prepared[scale]

    def example(self, networks):
        """The image of the first set that bicubic does worst, at the middle scale, by HR, bicubic and `networks`.

        Returns ({name: (luma (H, W), PSNR; None for HR)}, scale, the image's name).
        """
        scale = self.scales[len(self.scales) // 2]
        upscaled_input = next(iter(networks.values())).upscaled_input
        images = next(iter(self.sets.values()))
        pairs = [(path, prepare(rgb, scale, upscaled_input)) for path, rgb in images]
        path, pair = min(pairs, key=lambda p: score(_as_luma(p[1].bicubic), p[1].hr, scale, ssim=False)["psnr"])
        scored = {name: (output, score(output, pair.hr, scale, ssim=False)["psnr"])
                  for name, output in self._outputs(networks, True, pair).items()}
        return {"HR": (pair.hr, None), **scored}, scale, path.stem

    def _score_images(self, pool, networks, bicubic, images, scale):
        """Yield {name: score} of each image: prepared and scored by the pool, upscaled here."""
        upscaled_input = next(iter(networks.values())).upscaled_input

        def score_all(hr_and_outputs):
            hr, outputs = hr_and_outputs
            return {name: score(output, hr, scale) for name, output in outputs.items()}

        pairs = _ahead(pool, lambda image: prepare(image[1], scale, upscaled_input), images)
        return _ahead(pool, score_all, ((pair.hr, self._outputs(networks, bicubic, pair)) for pair in pairs))

    def _outputs(self, networks, bicubic, pair):
        outputs = {"bicubic": _as_luma(pair.bicubic)} if bicubic else {}
        outputs.update((name, upscale(model, pair, self.device)) for name, model in networks.items())
        return outputs


def _mean(rows):
    return {
        name: {metric: float(np.mean([row[name][metric] for row in rows])) for metric in ("psnr", "ssim")}
        for name in rows[0]
    }


def paper_scores(model):
    """The paper's Table 1 as {(set, scale): {column: (psnr, ssim)}}; empty for networks it does not have."""
    config = model.config
    if (config["arch"], config["n_resblocks"]) != ("vdsr", 18) or config["n_feats"] not in (64, 32):
        return {}
    with open(PAPER_TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("bicubic", "teacher", "student", "noise", "ours")
    return {
        (row["dataset"], int(row["scale"])): {c: (float(row[c + "_psnr"]), float(row[c + "_ssim"])) for c in columns}
        for row in rows
    }


def format_table(results, paper=None):
    """Text table of `results` (see Benchmarks.scores): PSNR/SSIM, and the paper's where given.

    paper: {(set, scale): {column: (psnr, ssim)}}; its columns are marked with a *.
    """
    paper = paper or {}
    cells = next(iter(next(iter(results.values())).values()))
    known = any((name, int(scale)) in paper for name, row in results.items() for scale in row)
    theirs = ("bicubic", "teacher", "student", "noise", "ours") if known else ()
    lines = [["set", "scale", *cells, *(f"{column}*" for column in theirs)]]
    for name, by_scale in results.items():
        for scale, row in by_scale.items():
            line = [name, f"x{scale}"] + [f"{s['psnr']:.2f}/{s['ssim']:.4f}" for s in row.values()]
            reference = paper.get((name, int(scale)), {})
            line += ["{:.2f}/{:.4f}".format(*reference[c]) if c in reference else "-" for c in theirs]
            lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
    return text + ("\n* Table 1 of the paper" if theirs else "")
