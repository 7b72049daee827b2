"""Bicubic resizing as MATLAB's imresize does it, on torch tensors.

Float images are resized differentiably, without rounding, on any device: the up_s and down_s of the
method (Zhang et al., CVPR 2021) and of its evaluation. uint8 images are rounded and clipped after each
of the two passes, as MATLAB does, which reproduces the LR images of the usual benchmarks exactly.

    imresize(x, 1 / 3)                     # down_3 of a (B, 1, H, W) batch, ceil(H / 3) rows
    imresize(x, 2, padding="symmetric")    # borders as in newer MATLAB

Kernel: Keys' cubic with a = -0.5, widened by 1/scale when shrinking, weights normalised.
"""

import math
from functools import lru_cache

import torch

# Below this length a pass is one small matrix product (quick, deterministic backward, few launches);
# above it, where the matrix would be mostly zeros, a sum over the taps.
_DENSE_LENGTH = 256


def _cubic(x):
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))


def _contributions(length, scale, padding):
    """Input indices and weights of each output pixel, both (outputs, taps), weights in float64."""
    widening = min(scale, 1.0)
    width = 4 / widening
    taps = math.ceil(width) + 2
    # Pixel centres sit at 1, 2, ...; an output pixel u covers the input around u / scale.
    centre = torch.arange(1, math.ceil(scale * length) + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    index = torch.floor(centre - width / 2)[:, None] + torch.arange(taps, dtype=torch.float64)
    weight = widening * _cubic(widening * (centre[:, None] - index))
    weight = weight / weight.sum(dim=1, keepdim=True)
    index = index.long() - 1
    if padding == "replicate":
        index = index.clamp(0, length - 1)
    else:  # ... 1 0 | 0 1 2 ... length-1 | length-1 length-2 ..., as often as the kernel needs
        index = index.remainder(2 * length)
        index = torch.where(index < length, index, 2 * length - 1 - index)
    keep = (weight != 0).any(dim=0)
    return index[:, keep], weight[:, keep]


# The caches make their tensors outside inference mode, so that training can reuse them. The matrices
# are small and never evicted: a CUDA graph that was captured with one keeps reading its memory.
@lru_cache(maxsize=None)
@torch.inference_mode(False)
def _matrix(length, scale, padding, device, dtype):
    index, weight = _contributions(length, scale, padding)
    return weight.new_zeros(len(weight), length).scatter_add_(1, index, weight).to(device, dtype)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _taps(length, scale, padding, device, dtype):
    index, weight = _contributions(length, scale, padding)
    return list(zip(index.T.contiguous().to(device), weight.T.contiguous().to(device, dtype)))


# What a CUDA graph was captured with stays, too.
_captured_taps = lru_cache(maxsize=None)(lambda *key: _taps(*key))


def _resize_rows(image, scale, padding, exact):
    """One pass over dimension -2. exact: in MATLAB's order of operations."""
    key = image.shape[-2], scale, padding, image.device, image.dtype
    if not exact and image.shape[-2] * max(scale, 1) <= _DENSE_LENGTH:
        return _matrix(*key) @ image
    # One tap at a time, in order: the sum MATLAB computes, and no copy of the image per tap is kept.
    capturing = image.is_cuda and torch.cuda.is_current_stream_capturing()
    return sum(image.index_select(-2, index) * weight[:, None]
               for index, weight in (_captured_taps if capturing else _taps)(*key))


def imresize(image, scale, padding="replicate"):
    """Resize the last two dimensions of `image` with the bicubic kernel.

    image: (..., H, W), floating point of any range (differentiable, never rounded or clipped) or uint8
        (rounded half up and clipped to 0..255 after each pass, bit for bit MATLAB's result). Half
        precision is computed in float32 and returned as it came.
    scale: a positive number, not necessarily an integer; the result has ceil(scale * n) rows or columns.
    padding: "replicate" repeats the border pixel, "symmetric" mirrors the image at its border (newer MATLAB).
    Returns a tensor (..., H', W') of the same dtype on the same device.
    Raises ValueError on arguments out of range, TypeError on an integer image other than uint8.
    """
    if image.dim() < 2 or 0 in image.shape[-2:]:
        raise ValueError(f"imresize: the image must be (..., H, W) and not empty, not {tuple(image.shape)}")
    as_bytes = image.dtype == torch.uint8
    if not (as_bytes or image.is_floating_point()):
        raise TypeError(f"imresize: the image must be floating point or uint8, not {image.dtype}")
    if padding not in ("replicate", "symmetric"):
        raise ValueError(f"imresize: padding must be replicate or symmetric, not {padding}")
    if not 0 < scale < math.inf:
        raise ValueError(f"imresize: scale must be a positive number, not {scale}")
    result = image.to(torch.float64 if as_bytes else torch.promote_types(image.dtype, torch.float32))
    with torch.autocast(image.device.type, enabled=False):
        for _ in range(2):  # rows, then columns, as MATLAB where both change alike
            result = _resize_rows(result, float(scale), padding, exact=as_bytes).mT
            if as_bytes:
                result = (result + 0.5).floor().clamp(0, 255)
    return result.contiguous().to(image.dtype)
