"""A function of images, or a network, piece by piece, and on the eight flips and turns of an image."""

import itertools
import math

import torch
from tqdm import tqdm


def tiled(function, x, ratio, halo, most, disable=True):
    """function(x) of images x (..., H, W), tile by tile where they are larger than about most x most pixels.

    function: gives (..., ratio * h, ratio * w) for (..., h, w). halo: how many input pixels around an output pixel it
    depends on; every tile comes with those around it, so that no seam shows. disable: tqdm's.
    """
    rows, columns = x.shape[-2:]
    side = max(most - 2 * halo, 2 * halo, 16)  # at most four times the work of the whole
    if max(rows, columns) <= side + 2 * halo:
        return function(x)
    output = None
    places = [*itertools.product(range(0, rows, side), range(0, columns, side))]
    for top, left in tqdm(places, desc="tiles", unit="", leave=False, disable=disable):
        above, before = max(top - halo, 0), max(left - halo, 0)
        tile = function(x[..., above:top + side + halo, before:left + side + halo])
        tile = tile[..., (top - above) * ratio:, (left - before) * ratio:]
        output = tile.new_empty(*tile.shape[:-2], rows * ratio, columns * ratio) if output is None else output
        part = output[..., top * ratio:(top + side) * ratio, left * ratio:(left + side) * ratio]
        part.copy_(tile[..., :part.shape[-2], :part.shape[-1]])
    return output


@torch.inference_mode()
def run_tiled(model, x, largest=2**24):
    """model(x), but for rounding, for a batch x (B, C, H, W) that may be too large to hold all its features at once.

    A network without a `receptive_field` gets all at once. largest: values in a feature map (64 MB in float32).
    """
    if not hasattr(model, "receptive_field"):
        return model(x)
    ratio = 1 if model.upscaled_input else model.scales[0]
    widest = max(getattr(module, "out_channels", 1) for module in model.modules())
    widest = getattr(model, "config", {}).get("n_feats", widest)
    return tiled(model, x, ratio, model.receptive_field // 2, math.isqrt(largest // (len(x) * widest * ratio**2)))


def self_ensemble(function, x):
    """The mean of function's results on the eight flips and turns of x, turned back (EDSR's "+")."""
    views = ((turns, flip) for turns in range(4) for flip in ((), (-1,)))
    return sum(function(x.rot90(turns, (-2, -1)).flip(flip)).flip(flip).rot90(-turns, (-2, -1))
               for turns, flip in views) / 8
