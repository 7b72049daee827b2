"""A convolution and its ReLU as one operation."""

from functools import lru_cache

import torch
import torch.nn.functional as F


class _ConvReLU(torch.autograd.Function):
    """relu(conv(x)) by cuDNN's fused kernel; backward takes the ReLU's mask from the output."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        if x.is_cuda:
            output = torch.cudnn_convolution_relu(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
        else:  # for checking the backward pass
            output = F.conv2d(x, weight, bias, padding=1).relu_()
        ctx.save_for_backward(x, weight, output)
        ctx.bias = bias is not None
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, output = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        sizes = [len(weight)] if ctx.bias else None
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, sizes, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, ctx.needs_input_grad)


@lru_cache(maxsize=None)
def _fuses(device):
    """Whether cuDNN has the fused kernel there in fp16: tried once."""
    x, weight = (torch.zeros(8, 8, side, side, dtype=torch.float16, device=device).to(
        memory_format=torch.channels_last) for side in (8, 3))
    try:
        torch.cudnn_convolution_relu(x, weight, None, (1, 1), (1, 1), (1, 1), 1)
    except (AttributeError, RuntimeError):
        return False
    return True


def conv_relu(x, conv):
    """relu(conv(x)) for a 3x3 convolution `conv` with padding 1; in fp16 on NVIDIA GPUs as one kernel.

    Not with --deterministic: the fused kernel does not know of it.
    """
    suits = x.is_cuda and x.dtype == torch.float16 and conv.in_channels % 8 == conv.out_channels % 8 == 0
    if suits and _fuses(x.device) and not torch.are_deterministic_algorithms_enabled():
        return _ConvReLU.apply(x, conv.weight, conv.bias)
    return F.relu(conv(x), inplace=True)
