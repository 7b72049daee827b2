"""Where the student's inputs come from.

A source is a function draw(scale, step, count) -> network inputs (count, C, H, W), float32 in [0, 1], the same for
the same seed and step. size: side of the inputs in HR pixels. upscaled: whether they are upscaled to it by bicubic
(VDSR) or stay small (EDSR). call: see engine.graphs.call.
"""

import torch

from bicubic import imresize
from data.dead_leaves import dead_leaves
from data.patches import TrainingPatches
from utils import random_stream, stream_seed


def lr_size(size, scale):
    """Side of an LR image that becomes about `size` pixels at x`scale`: a multiple of 4."""
    return 4 * (size // scale // 4)


def network_input(x_lr, scale, upscaled):
    """x of an LR image x_lr: clamp(up_s(x_lr), 0, 1) for networks on upscaled images, else x_lr itself."""
    return imresize(x_lr, scale).clamp(0, 1) if upscaled else x_lr


def degraded(hr, scale, upscaled):
    """The network input of an HR image in [0, 1]: as a photograph would be made one."""
    return network_input(imresize(hr, 1 / scale).clamp(0, 1), scale, upscaled)


def noise_source(kind, size, channels, upscaled, seed, device="cpu"):
    """Table 1's Noise column: of the HR size, the input itself where that is upscaled, and reduced to it where not.

    kind: "uniform" on [0, 1], or "normal" (mean 0.5, deviation 0.25, clipped to it).
    """

    def draw(scale, step, count):
        side = lr_size(size, scale) * scale
        shape, stream = (count, channels, side, side), random_stream(seed, "noise", step, device=device)
        if kind == "uniform":
            x = torch.rand(shape, generator=stream, device=device)
        else:
            x = (0.5 + 0.25 * torch.randn(shape, generator=stream, device=device)).clamp(0, 1)
        return x if upscaled else imresize(x, 1 / scale).clamp(0, 1)

    return draw


def dead_leaves_source(size, channels, upscaled, seed, device="cpu", call=lambda function, *a: function(*a)):
    """Dead leaves (data.dead_leaves) of HR size, made LR images and inputs as photographs would be."""
    stream = torch.Generator(device)

    def draw(scale, step, count):
        stream.manual_seed(stream_seed(seed, "dead leaves", step))
        return call(leaves, stream, scale, count)

    def leaves(stream, scale, count):
        hr = dead_leaves(count, scale * lr_size(size, scale), channels, stream, device)
        return degraded(hr, scale, upscaled)

    return draw


def start_images(scales, size, channels, upscaled, seed, device="cpu", count=256):
    """The images on which a student is fitted to its teacher: dead leaves, half of them of the first of three scales."""
    draw = dead_leaves_source(size, channels, upscaled, seed, device)
    shares = (count // 2, count // 4, count // 4) if len(scales) == 3 else (count // len(scales),) * len(scales)
    images = [draw(scale, -1, share) for scale, share in zip(scales, shares)]
    side = min(image.shape[-1] for image in images)
    return torch.cat([image[..., :side, :side] for image in images])


def folder_source(paths, scales, size, channels, upscaled, seed, device="cpu"):
    """Patches of the real LR images made from the image files `paths`."""
    patches = {scale: TrainingPatches(paths, (scale,), scale * lr_size(size, scale), seed, device, channels, upscaled)
               for scale in scales}
    return lambda scale, step, count: patches[scale].batch(step, count)[0]


class Bank:
    """Images with the teacher's outputs, made once and used again: batch(step, count) -> (inputs, targets).

    On a CPU the frozen teacher is more than half of a step. draw: a source. label(x): the teacher's outputs. size: how
    many images, of all scales in equal parts, rounded up to whole chunks of each. Every pass is a new order; none is flipped or turned, since the teacher
    is not symmetric. A batch depends on the seed and the step alone.
    """

    CHUNK = 32

    def __init__(self, draw, label, scales, size, seed, progress=lambda chunks: chunks):
        by_shape = {}  # scales whose inputs are of one size are mixed in a batch, the others take turns
        for step in progress(range(len(scales) * -(-size // (len(scales) * self.CHUNK)))):
            x = draw(scales[step % len(scales)], step, self.CHUNK)
            by_shape.setdefault(x.shape[1:], []).append((x, label(x)))
        self.stacks = [tuple(map(torch.cat, zip(*chunks))) for chunks in by_shape.values()]
        self.seed, self.order, self.turn = seed, None, None

    def batch(self, step, count):
        inputs, targets = self.stacks[step % len(self.stacks)]
        first = step // len(self.stacks) * count
        index = [self._place(turn, first - turn * len(inputs), count, len(inputs))
                 for turn in range(first // len(inputs), (first + count - 1) // len(inputs) + 1)]
        index = torch.cat(index)
        return inputs[index], targets[index]

    def _place(self, turn, first, count, length):
        """Those of the places `first` to `first` + `count` that lie within pass `turn` through `length` images."""
        if self.turn != (turn, length):
            stream = random_stream(self.seed, "bank", turn)
            self.order, self.turn = torch.randperm(length, generator=stream), (turn, length)
        return self.order[max(first, 0):first + count]
