"""Where the student's inputs come from.

A source is a function draw(scale, step) -> network inputs (B, C, H, W), float32 in [0, 1], the same for
the same seed and step. B is --batchSize, or of several processes each one's share of it. The next call may
overwrite what the last one returned.
"""

import torch

from engine import parallel
from bicubic import imresize
from data.images import HELD_OUT, find_training_images
from data.patches import TrainingPatches
from models import Generator
from engine.learner import DTYPES, Learner, adam, recorded
from utils import random_stream, seed_everything


def lr_size(input_size, scale):
    """Side of an LR image that becomes about input_size pixels at x`scale`: a multiple of 4."""
    return 4 * (input_size // scale // 4)


def network_input(x_lr, scale, upscaled_input):
    """x of an LR image x_lr: clamp(up_s(x_lr), 0, 1) for networks on upscaled images, else x_lr itself."""
    return imresize(x_lr, scale).clamp(0, 1) if upscaled_input else x_lr


class Generators:
    """The paper's source: G_s for every scale, which learn (`step`) between the student's phases.

    teacher: says what the images are like (channels, upscaled_input).
    """

    def __init__(self, args, scales, teacher):
        self.args, self.upscaled_input, self.take_step = args, teacher.upscaled_input, {}
        seed_everything(args.seed, "generators")
        self.networks = torch.nn.ModuleDict({
            str(s): Generator(args.latent, lr_size(args.input_size, s), teacher.channels, args.ge_type)
            for s in scales
        }).to(args.device)
        self.learners = {s: Learner(self.networks[str(s)], adam(self.networks[str(s)].parameters()),
                                    DTYPES[args.precision], loss="the generator's loss") for s in scales}
        self.images = {s: recorded(lambda z, s=s: self._images(z, s), args) for s in scales}

    def _latent(self, *key):
        """z ~ N(0, I), this process's share of (batchSize, latent), of the stream `key`."""
        stream = random_stream(self.args.seed, *key, device=self.args.device)
        z = torch.randn(self.args.batchSize, self.args.latent, generator=stream, device=self.args.device)
        return z[parallel.share(len(z))]

    @torch.no_grad()
    def _images(self, z, scale):
        return network_input(self.learners[scale](z), scale, self.upscaled_input)

    def draw(self, scale, step):
        return self.images[scale](self._latent("z", step))

    def learn_by(self, generator_step):
        """From now on step() is generator_step(generator, z, scale)."""
        self.take_step = {s: recorded(lambda z, s=s, g=learner: generator_step(g, z, s), self.args)
                          for s, learner in self.learners.items()}

    def step(self, scale, step, rate):
        """The generator phase. Returns what generator_step does."""
        self.learners[scale].set_rate(rate)
        return self.take_step[scale](self._latent("generator z", step))

    def check(self):
        """Raise NotFinite where a loss was not finite."""
        for learner in self.learners.values():
            learner.check()

    def state_dict(self):
        return {"networks": self.networks.state_dict(),
                "optimizers": {str(s): learner.state_dict() for s, learner in self.learners.items()}}

    def load_state_dict(self, state):
        self.networks.load_state_dict(state["networks"])
        for s, learner in self.learners.items():
            learner.load_state_dict(state["optimizers"][str(s)])


def noise_source(args, teacher):
    """Table 1's Noise column: --noise uniform on [0, 1], or normal (mean 0.5, deviation 0.25, clipped to it).

    --noise_at: lr, made an input like a generated image; hr, of the HR size, the input itself where that is
    upscaled, and reduced to it where it is not.
    """

    def draw(scale, step):
        size = lr_size(args.input_size, scale) * (scale if args.noise_at == "hr" else 1)
        shape, stream = (args.batchSize, teacher.channels, size, size), random_stream(
            args.seed, "noise", step, device=args.device)
        if args.noise == "uniform":
            x = torch.rand(shape, generator=stream, device=args.device)
        else:
            x = (0.5 + 0.25 * torch.randn(shape, generator=stream, device=args.device)).clamp(0, 1)
        x = x[parallel.share(len(x))]
        if args.noise_at == "lr":
            return network_input(x, scale, teacher.upscaled_input)
        return x if teacher.upscaled_input else imresize(x, 1 / scale).clamp(0, 1)

    return draw


def folder_source(args, scales, teacher):
    """Patches of the real LR images made from --data_dir's training images."""
    paths = find_training_images(args.data_dir, args.val_dataset == HELD_OUT)
    patches = {
        scale: TrainingPatches(paths, (scale,), scale * lr_size(args.input_size, scale), args.seed, args.device,
                               teacher.channels, teacher.upscaled_input)
        for scale in scales
    }
    return lambda scale, step: patches[scale].batch(step, args.batchSize)[0]
