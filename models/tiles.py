"""A network on a large image, piece by piece, and on the eight flips and turns of an image."""

import math

import torch
from torch import nn

# Values in the largest feature map of a tile: 64 MB in float32.
_LARGEST = 2**24


def _pieces(length, most):
    """[start, stop) of pieces of nearly equal length, at most `most`, that cover `length`."""
    count = math.ceil(length / most)
    edges = [length * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


def reach(model):
    """How many input pixels away an output pixel's receptive field can end: the sum over the convolutions."""
    return sum(max(k // 2 * d for k, d in zip(module.kernel_size, module.dilation))
               for module in model.modules() if isinstance(module, nn.Conv2d))


def widest(model):
    """Channels of the widest feature map: n_feats, or in a network without such the most of any layer."""
    layers = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return getattr(model, "n_feats", max(layers, default=1))


@torch.inference_mode()
def run_tiled(model, x, largest=_LARGEST):
    """model(x) for a batch x (B, C, H, W) that may be too large to hold all its features at once.

    Each tile comes with the pixels around it on which its output depends, so that no seam shows: the result
    is that of the whole image but for rounding. largest: values in a feature map.
    """
    ratio, radius = 1 if model.upscaled_input else model.scales[0], reach(model)
    rows, columns = x.shape[-2:]
    side = max(math.isqrt(largest // (len(x) * widest(model) * ratio**2)) - 2 * radius, 16)
    if max(rows, columns) <= side + 2 * radius:
        return model(x)
    output = x.new_empty(*x.shape[:2], rows * ratio, columns * ratio)
    for top, bottom in _pieces(rows, side):
        for left, right in _pieces(columns, side):
            above, before = max(top - radius, 0), max(left - radius, 0)
            tile = model(x[..., above:bottom + radius, before:right + radius])
            inside = tile[..., (top - above) * ratio:(bottom - above) * ratio,
                          (left - before) * ratio:(right - before) * ratio]
            output[..., top * ratio:bottom * ratio, left * ratio:right * ratio] = inside
    return output


def self_ensemble(function, x):
    """The mean of function's results on the eight flips and turns of x, turned back (EDSR's "+")."""
    total = 0
    for turns in range(4):
        for flip in ((), (-1,)):
            output = function(x.rot90(turns, (-2, -1)).flip(flip))
            total = total + output.flip(flip).rot90(-turns, (-2, -1))
    return total / 8
