"""Where the student's inputs come from when no generator makes them.

A source is a function draw(scale, step) -> network inputs (B, C, H, W), float32 in [0, 1], the same for
the same seed and step. The paper's own source, the generators, is in distillation.py.
"""

import torch

from bicubic import imresize
from data.images import find_training_images
from data.patches import TrainingPatches
from utils import random_stream


def lr_size(input_size, scale):
    """Side of an LR image that becomes about input_size pixels at x`scale`: a multiple of 4."""
    return 4 * (input_size // scale // 4)


def network_input(x_lr, scale, upscaled_input):
    """x of an LR image x_lr: clamp(up_s(x_lr), 0, 1) for networks on upscaled images, else x_lr itself."""
    return imresize(x_lr, scale).clamp(0, 1) if upscaled_input else x_lr


def noise_source(args, teacher):
    """Uniform noise at LR size, made an input like a generated image: Table 1's Noise column."""

    def draw(scale, step):
        size = lr_size(args.input_size, scale)
        stream = random_stream(args.seed, "noise", step, device=args.device)
        x_lr = torch.rand(args.batchSize, teacher.channels, size, size, generator=stream, device=args.device)
        return network_input(x_lr, scale, teacher.upscaled_input)

    return draw


def folder_source(args, scales, teacher):
    """Patches of the real LR images made from --data_dir's training images."""
    paths = find_training_images(args.data_dir)
    patches = {
        scale: TrainingPatches(paths, (scale,), scale * lr_size(args.input_size, scale), args.seed, args.device,
                               teacher.channels, teacher.upscaled_input)
        for scale in scales
    }
    return lambda scale, step: patches[scale].batch(step, args.batchSize)[0]
