"""Where the student's inputs come from.

A source is a function draw(scale, step, count) -> network inputs (count, C, H, W), float32 in [0, 1], the same for
the same seed and step. size: side of the inputs in HR pixels. upscaled: whether they are upscaled to it by bicubic
(VDSR) or stay small (EDSR). call: how a function is called, see engine.graphs.
"""

import math

import torch
from tqdm import tqdm

from bicubic import imresize
from data.dead_leaves import dead_leaves
from data.patches import TrainingPatches
from utils import random_stream, stream_seed


def lr_size(size, scale):
    """Side, a multiple of 4, of an LR image that becomes about `size` pixels at x`scale`."""
    return 4 * (size // scale // 4)


def network_input(x_lr, scale, upscaled):
    """clamp(up_s(x_lr), 0, 1) for networks on upscaled images, else x_lr itself."""
    return imresize(x_lr, scale).clamp(0, 1) if upscaled else x_lr


def noise_source(kind, size, channels, upscaled, seed, device="cpu"):
    """Table 1's Noise column: noise of the HR size, which is the upscaled input or is reduced to the small one.

    kind: "uniform" on [0, 1], or "normal" (mean 0.5, deviation 0.25, clipped to [0, 1]).
    """

    def draw(scale, step, count):
        side = lr_size(size, scale) * scale
        x = torch.empty(count, channels, side, side, device=device)
        stream = random_stream(seed, "noise", step, device=device)
        x = x.uniform_(generator=stream) if kind == "uniform" else x.normal_(0.5, 0.25, generator=stream).clamp(0, 1)
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
        return network_input(imresize(hr, 1 / scale).clamp(0, 1), scale, upscaled)

    return draw


def start_images(scales, size, channels, upscaled, seed, device="cpu", count=256):
    """Dead leaves on which a student is fitted to its teacher; a quarter is of each scale after the first."""
    draw = dead_leaves_source(size, channels, upscaled, seed, device)
    share = count // 4
    images = [draw(scale, -2 - i, share if i else count - share * (len(scales) - 1)) for i, scale in enumerate(scales)]
    side = min(image.shape[-1] for image in images)
    return torch.cat([image[..., :side, :side] for image in images])


def folder_source(paths, scales, size, channels, upscaled, seed, device="cpu", disable=None):
    """Patches of the real LR images made from the image files `paths`. disable: as of TrainingPatches."""
    patches = {scale: TrainingPatches(paths, (scale,), scale * lr_size(size, scale), seed, device, channels, upscaled,
                                      disable) for scale in scales}
    return lambda scale, step, count: patches[scale].batch(step, count)[0]


class Bank:
    """Images with the teacher's outputs, which grow by `size` every `steps` batches and are used again and again.

    draw: a source. label(x): the teacher's outputs. disable: tqdm's. What is drawn is whole chunks of every scale; of
    more than MOST images the oldest go. Every pass is a new order; none is flipped or turned, since the teacher is not
    symmetric. batch(step, count) -> (inputs, targets) depends on the seed and the step alone.
    """

    CHUNK = 32  # images drawn and labelled at once
    MOST = 32_768  # images: 600 MB of 48x48, with the teacher's outputs

    def __init__(self, draw, label, scales, size, steps, seed, disable=None):
        self.draw, self.label, self.scales, self.steps, self.seed = draw, label, scales, steps, seed
        self.disable, self.chunks, self.generation = disable, {}, None
        self.growth = len(scales) * math.ceil(size / (len(scales) * self.CHUNK))  # in chunks

    def batch(self, step, count):
        generation, step = divmod(step, self.steps)
        if generation != self.generation:
            self._grow(generation)
        # Scales whose inputs are of one size are mixed in a batch, others take turns.
        chunks = self.by_shape[step % len(self.by_shape)]
        first, length = step // len(self.by_shape) * count, len(chunks) * self.CHUNK
        orders = [torch.randperm(length, generator=random_stream(self.seed, "bank", generation, number))
                  for number in range(first // length, (first + count - 1) // length + 1)]
        order = torch.cat(orders)[first % length:][:count].tolist()
        pairs = [[tensor[i % self.CHUNK] for tensor in chunks[i // self.CHUNK]] for i in order]
        return tuple(map(torch.stack, zip(*pairs)))

    def _grow(self, generation):
        """Forget the oldest chunks and draw those that are missing: all, where a run is resumed."""
        most = max(1, self.MOST // (self.growth * self.CHUNK))  # generations that are kept
        kept = range(max(0, generation + 1 - most) * self.growth, (generation + 1) * self.growth)
        self.chunks = {i: chunk for i, chunk in self.chunks.items() if i in kept}
        missing = [i for i in kept if i not in self.chunks]
        for i in tqdm(missing, desc="bank", unit="chunk", leave=False, disable=self.disable):
            x = self.draw(self.scales[i % len(self.scales)], i, self.CHUNK)
            self.chunks[i] = x, self.label(x)
        by_shape = {}
        for i in kept:
            by_shape.setdefault(self.chunks[i][0].shape, []).append(self.chunks[i])
        self.generation, self.by_shape = generation, list(by_shape.values())
