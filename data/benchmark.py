"""Benchmark sets, and the two protocols by which super-resolution results are scored.

"luma"  for networks on luma (VDSR; Table 1 of the paper): Y in float from HR cropped to a multiple of the scale;
        LR, and upscaled input where the network takes that, by bicubic, nothing rounded; output clipped to 0..255.
"rgb"   for networks on RGB (EDSR): LR by MATLAB's bicubic on 8-bit RGB, or read from LR_bicubic/X2 (X3, X4) beside
        HR; output rounded to 8 bits, then luma.

Both shave `scale` pixels on every side; PSNR has peak 255, SSIM an 11x11 Gaussian of sigma 1.5.
"""

import os
from collections import defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
SSIM_WINDOW = 11  # pixels
HIGHEST_PSNR = 100.0  # in dB, of an exact image: neither a mean nor JSON can hold infinity
WORKERS = min(8, os.cpu_count() or 1)

# An image at a scale: HR luma (H, W), an array; LR (C, h, w) and LR upscaled (C, H, W), tensors; float64 in 0..255.
Pair = namedtuple("Pair", "hr lr bicubic")


def set_paths(data_dir, name):
    """Image paths of the set `name`, from benchmark/NAME/HR, NAME/HR or NAME; empty where it is missing."""
    if name == BUNDLED:
        return bundled_photographs(BUNDLED_TEST)
    if name == HELD_OUT:
        return held_out_images(data_dir)
    layouts = (list_images(Path(data_dir, layout)) for layout in (f"benchmark/{name}/HR", f"{name}/HR", name))
    return next(filter(None, layouts), [])


def choose_sets(data_dir, names=None):
    """{name: image paths} of the sets "A+B+..."; by default the benchmarks found, else scikit-image's photographs.

    Raises InputError for a named set that is missing.
    """
    if names is None:
        found = {name: paths for name in KNOWN_SETS if (paths := set_paths(data_dir, name))}
        return found or {BUNDLED: set_paths(data_dir, BUNDLED)}
    sets = {name: set_paths(data_dir, name) for name in map(str.strip, names.split("+")) if name}
    for name, paths in (sets or {names: []}).items():
        if not paths:
            raise InputError(
                f"{data_dir}: no images of the set {name}; expected {data_dir}/benchmark/{name}/HR/*.png|jpg; "
                f"to fetch {', '.join(KNOWN_SETS)}: python -m data.download benchmark --to {data_dir}")
    return sets


def choose_scales(scale, model, path):
    """The scales of --scale; 0 stands for all of the model's. Raises InputError for one that it lacks."""
    if scale and scale not in model.scales:
        raise InputError(f"--scale {scale}: the network {path} upscales by {model.scales[0]} only")
    return (scale,) if scale else model.scales


def choose_validation(data_dir, name=None):
    """The one set that is scored after each epoch: `name`, or Set5 where it is found, else scikit-image's."""
    if name and "+" in name:
        raise InputError(f"--val_dataset {name}: one set only; --data_test takes several")
    return choose_sets(data_dir, name or ("Set5" if set_paths(data_dir, "Set5") else BUNDLED))


def lr_path(path, scale):
    """The LR image of the HR image `path` in the layout of EDSR's benchmarks, or None where there is no such file."""
    lr = path.parent.parent / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}{path.suffix}"
    return lr if path.parent.name == "HR" and lr.is_file() else None


def prepare(rgb, scale, channels=1, path=None):
    """The Pair of an image, uint8 RGB (H, W, 3), under the protocol "luma" (one channel) or "rgb" (three).

    path: the image's, beside which its LR image may lie. Raises InputError where that has another size.
    """
    rows, columns = (n - n % scale for n in rgb.shape[:2])
    rgb = rgb[:rows, :columns]
    hr, file = luma(rgb), path and channels == 3 and lr_path(path, scale)
    pixels = read_image(file) if file else rgb if channels == 3 else hr[..., None]
    lr = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    lr = lr if file else imresize(lr, 1 / scale)
    if lr.shape[1:] != (rows // scale, columns // scale):
        raise InputError(f"{file}: is {lr.shape[2]}x{lr.shape[1]}, expected {columns // scale}x{rows // scale}")
    return Pair(hr, lr.double(), imresize(lr, scale).double())


def score(output, hr, scale, ssim=True):
    """{"psnr": in dB, at most HIGHEST_PSNR, "ssim": if wanted} of luma `output` against `hr`, both (H, W) in 0..255.

    The output is clipped, then `scale` pixels are shaved on every side.
    """
    output, hr = (image[scale:-scale, scale:-scale] for image in (output.clip(0, 255), hr))
    with np.errstate(divide="ignore"):
        scores = {"psnr": min(float(peak_signal_noise_ratio(hr, output, data_range=255)), HIGHEST_PSNR)}
    if ssim:
        scores["ssim"] = float(structural_similarity(
            hr, output, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))
    return scores


def run_network(model, x, ensemble=False):
    """The network's output for an input (C, h, w) of any size in [0, 1], not clipped.

    ensemble: the mean over the eight flips and turns of the input.
    """
    run = lambda x: run_tiled(model, x)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return (self_ensemble(run, x[None]) if ensemble else run(x[None]))[0]


def upscale(model, pair, device, ensemble=False):
    """The network's output luma (H, W) in 0..255 for a pair, before clipping."""
    x = ((pair.bicubic if model.upscaled_input else pair.lr) / 255).float().to(device)
    return _as_luma(run_network(model, x, ensemble).double().cpu() * 255)


def _as_luma(image):
    """Luma (H, W) of (C, H, W) in 0..255: itself, or of RGB rounded to 8 bits."""
    return image[0].numpy() if len(image) == 1 else luma(image.round().clamp(0, 255).permute(1, 2, 0).numpy())


class Benchmarks:
    """Scores networks on sets of images, {name: paths}, which are read once.

    ensemble: see run_network. Raises InputError where an image cannot be read or is too small.
    """

    def __init__(self, sets, scales, device, ensemble=False):
        self.scales, self.device, self.ensemble = scales, device, ensemble
        self.middle_scale = scales[len(scales) // 2]
        self.sets = {name: [(path, read_image(path)) for path in paths] for name, paths in sets.items()}
        self.images = [image for images in self.sets.values() for image in images]
        self.prepared = {}
        smallest = SSIM_WINDOW + 3 * max(scales)
        for path, rgb in self.images:
            if min(rgb.shape[:2]) < smallest:
                raise InputError(f"{path}: {rgb.shape[1]}x{rgb.shape[0]} is too small to score at x{max(scales)}; "
                                 f"the least is {smallest}x{smallest}")

    def scores(self, networks):
        """Mean scores {set: {scale: {label: {"psnr", "ssim"}}}} of networks {label: model}, and of "bicubic".

        Threads prepare and score the images while the networks run.
        """
        tasks = [(name, scale, image) for name, images in self.sets.items() for scale in self.scales
                 for image in images]
        rows, channels, threads = defaultdict(list), _channels(networks), torch.get_num_threads()
        score_all = lambda outputs, *about: {label: score(output, *about) for label, output in outputs.items()}
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # The pool works in order: an image is scored before another is prepared, so few are held at a time.
            pairs = (pool.submit(prepare, rgb, scale, channels, path) for _, scale, (path, rgb) in tasks)
            ahead = deque(islice(pairs, WORKERS))
            for name, scale, _ in tqdm(tasks, desc="scoring", unit="image", leave=False, disable=None):
                pair = ahead.popleft().result()
                rows[name, scale].append(pool.submit(score_all, self._outputs(networks, pair), pair.hr, scale))
                ahead.extend(islice(pairs, 1))
        torch.set_num_threads(threads)
        rows = {place: [row.result() for row in found] for place, found in rows.items()}
        self.hardest = {name: images[np.argmin([row["bicubic"]["psnr"] for row in rows[name, self.middle_scale]])]
                        for name, images in self.sets.items()}
        return {name: {str(scale): _mean(rows[name, scale]) for scale in self.scales} for name in self.sets}

    def psnr(self, model):
        """{scale: mean PSNR in dB} of one network over all images, which stay prepared for the next epoch."""
        if not self.prepared:
            self.prepared = {scale: [prepare(rgb, scale, model.channels, path) for path, rgb in self.images]
                             for scale in self.scales}
        return {str(scale): float(np.mean([
            score(upscale(model, pair, self.device), pair.hr, scale, ssim=False)["psnr"] for pair in pairs]))
            for scale, pairs in self.prepared.items()}

    def one_image(self, model):
        """PSNR in dB of the network and of bicubic on the smallest image at the middle scale."""
        scored = self._scored({"network": model}, *min(self.images, key=lambda image: image[1].size))
        return scored["network"][1]["psnr"], scored["bicubic"][1]["psnr"]

    def examples(self, networks):
        """After scores(): of every set the image that bicubic did worst at the middle scale.

        Yields (set, scale, image name, {"HR", "bicubic" or a network: (luma (H, W), scores; None of "HR")}).
        """
        for name, (path, rgb) in self.hardest.items():
            yield name, self.middle_scale, path.stem, self._scored(networks, path, rgb)

    def _scored(self, networks, path, rgb):
        """{"HR", "bicubic" or a network: (luma (H, W), scores; None of "HR")} of an image at the middle scale."""
        pair = prepare(rgb, self.middle_scale, _channels(networks), path)
        return {"HR": (pair.hr, None), **{label: (output, score(output, pair.hr, self.middle_scale))
                                          for label, output in self._outputs(networks, pair).items()}}

    def protocol(self, networks):
        """How `networks` are scored, in words."""
        words = "luma, nothing rounded (Table 1's protocol)"
        if _channels(networks) == 3:
            files = [lr_path(path, scale) for path, _ in self.images for scale in self.scales]
            source = "from LR_bicubic" + " where it is there" * (not all(files)) if any(files) else "made by bicubic"
            words = f"luma of 8-bit RGB output, LR {source} (EDSR's protocol)"
        return words + ", self-ensemble" * self.ensemble

    def _outputs(self, networks, pair):
        """Luma {label: (H, W)} by bicubic and by the networks."""
        return {"bicubic": _as_luma(pair.bicubic),
                **{name: upscale(model, pair, self.device, self.ensemble) for name, model in networks.items()}}


def _channels(networks):
    """Of the networks' images: 1 or 3, which tells the protocol."""
    return next(iter(networks.values())).channels


def _mean(rows):
    """The mean of scores {label: {metric: value}}."""
    return {label: {metric: float(np.mean([row[label][metric] for row in rows])) for metric in scores}
            for label, scores in rows[0].items()}
