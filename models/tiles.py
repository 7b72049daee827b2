"""A network on a large image, piece by piece, and on the eight flips and turns of an image."""

import math

import torch


@torch.inference_mode()
def run_tiled(model, x, largest=2**24):
    """model(x) for a batch x (B, C, H, W) that may be too large to hold all its features at once.

    Each tile comes with the `model.reach` pixels around it that its output depends on, so that no seam shows: the
    result is that of the whole image but for rounding. A network that does not say its reach gets all at once.
    largest: values in a feature map (64 MB in float32).
    """
    ratio, (rows, columns) = 1 if model.upscaled_input else model.scales[0], x.shape[-2:]
    own = max(getattr(module, "out_channels", 1) for module in model.modules())
    widest = getattr(model, "config", {}).get("n_feats", own)
    most = math.isqrt(largest // (len(x) * widest * ratio**2))
    radius = getattr(model, "reach", None)
    if radius is None or max(rows, columns) <= max(most, 16 + 2 * radius):
        return model(x)
    side = max(most - 2 * radius, 16)
    output = x.new_empty(*x.shape[:2], rows * ratio, columns * ratio)
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            above, before = max(top - radius, 0), max(left - radius, 0)
            tile = model(x[..., above:top + side + radius, before:left + side + radius])
            part = output[..., top * ratio:(top + side) * ratio, left * ratio:(left + side) * ratio]
            tile = tile[..., (top - above) * ratio:, (left - before) * ratio:]
            part.copy_(tile[..., :part.shape[-2], :part.shape[-1]])
    return output


def self_ensemble(function, x):
    """The mean of function's results on the eight flips and turns of x, turned back (EDSR's "+")."""
    views = ((turns, flip) for turns in range(4) for flip in ((), (-1,)))
    return sum(function(x.rot90(turns, (-2, -1)).flip(flip)).flip(flip).rot90(-turns, (-2, -1))
               for turns, flip in views) / 8
