"""A network on a large image, piece by piece."""

import math

import torch

# Values in the largest feature map of a tile: 64 MB in float32.
_LARGEST = 2**24


def _pieces(length, most):
    """[start, stop) of pieces of nearly equal length, at most `most`, that cover `length`."""
    count = math.ceil(length / most)
    edges = [length * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


@torch.inference_mode()
def run_tiled(model, x, largest=_LARGEST):
    """model(x) for a batch x (B, C, H, W) that may be too large to hold all its features at once.

    Each tile comes with the `model.radius` pixels around it on which its output depends, so that no seam
    shows: the result is that of the whole image but for rounding. largest: values in a feature map.
    """
    ratio = 1 if model.upscaled_input else model.scales[0]
    rows, columns = x.shape[-2:]
    side = max(math.isqrt(largest // (len(x) * model.n_feats * ratio**2)) - 2 * model.radius, 16)
    if max(rows, columns) <= side + 2 * model.radius:
        return model(x)
    output = x.new_empty(*x.shape[:2], rows * ratio, columns * ratio)
    for top, bottom in _pieces(rows, side):
        for left, right in _pieces(columns, side):
            above, before = max(top - model.radius, 0), max(left - model.radius, 0)
            tile = model(x[..., above:bottom + model.radius, before:right + model.radius])
            inside = tile[..., (top - above) * ratio:(bottom - above) * ratio,
                          (left - before) * ratio:(right - before) * ratio]
            output[..., top * ratio:bottom * ratio, left * ratio:right * ratio] = inside
    return output
