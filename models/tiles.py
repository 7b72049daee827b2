"""A network on a large image, piece by piece, and on the eight flips and turns of an image."""

import math
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

from models import EDSR, VDSR

# Values in the largest feature map of a tile: 64 MB in float32.
_LARGEST = 2**24
_measured = WeakKeyDictionary()


def reach(model):
    """How many input pixels away an output pixel's receptive field can end, or None where tiles show.

    Of our networks it is the sum over the convolutions. Of others it is measured, once; None, which a line then
    says, where an output pixel depends on more than 108 pixels around it or on where the image begins.
    """
    if isinstance(model, (VDSR, EDSR)):
        return sum(module.kernel_size[0] // 2 for module in model.modules() if isinstance(module, nn.Conv2d))
    if model not in _measured:
        try:
            _measured[model] = measure_reach(model)
        except Exception:  # what strips are too narrow for may still take whole images
            _measured[model] = None
        if _measured[model] is None:
            tqdm.write("This network's output depends on the whole image, so that large ones are not cut into tiles.")
    return _measured[model]


@torch.inference_mode(False)
@torch.enable_grad()
def measure_reach(model, short=16, long=256):
    """As reach, by the gradient on two strips; None where a strip cut at any place differs from the whole one."""
    ratio, radius = 1 if model.upscaled_input else model.scales[0], 0
    random = torch.Generator().manual_seed(0)
    state = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    for name, _ in model.named_parameters():
        if not state[name].any():  # a gate that begins closed will open
            state[name] += (torch.randn(state[name].shape, generator=random) / 100).to(state[name])
    strip = torch.rand(1, model.channels, short, long, generator=random).to(next(model.parameters(), torch.empty(0)))
    first, last = long // 2 - 4, long // 2 + 4
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for x, axis in ((strip, 3), (strip.mT.contiguous(), 2)):
            whole = functional_call(model, state, x.requires_grad_())
            middle = whole.narrow(axis, first * ratio, (last - first) * ratio)
            (middle * torch.randn(middle.shape, generator=random).to(middle)).sum().backward()
            seen = x.grad.movedim(axis, 0).flatten(1).any(1).nonzero()
            if seen.min() < 16 or seen.max() >= long - 16:  # what is farther may be beyond the strip
                return None
            halo = max(first - seen.min().item(), seen.max().item() + 1 - last, 0)
            radius = max(radius, halo)
            for top in range(first - 8, first):  # at every place modulo 8, of odd and even lengths
                tile = functional_call(model, state, x.detach().narrow(axis, top - halo, last - top + 2 * halo))
                difference = (tile.narrow(axis, halo * ratio, (last - top) * ratio)
                              - whole.narrow(axis, top * ratio, (last - top) * ratio))
                if not difference.abs().max() <= 1e-5 * whole.abs().max().clamp(min=1):
                    return None
    return radius


@torch.inference_mode()
def run_tiled(model, x, largest=_LARGEST):
    """model(x) for a batch x (B, C, H, W) that may be too large to hold all its features at once.

    Each tile comes with the pixels around it on which its output depends, so that no seam shows: the result
    is that of the whole image but for rounding. largest: values in a feature map.
    """
    ratio, (rows, columns) = 1 if model.upscaled_input else model.scales[0], x.shape[-2:]
    widest = getattr(model, "n_feats", max(getattr(module, "out_channels", 1) for module in model.modules()))
    most = math.isqrt(largest // (len(x) * widest * ratio**2))
    radius = None if max(rows, columns) <= most else reach(model)
    if radius is None or max(rows, columns) <= 16 + 2 * radius:
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
    total = 0
    for turns in range(4):
        for flip in ((), (-1,)):
            output = function(x.rot90(turns, (-2, -1)).flip(flip))
            total = total + output.flip(flip).rot90(-turns, (-2, -1))
    return total / 8
