"""The networks, and how a checkpoint file becomes one of them."""

import torch

from models.edsr import EDSR
from models.generator import Generator
from models.vdsr import VDSR

__all__ = ["ARCHITECTURES", "EDSR", "VDSR", "Generator", "build_model", "half_width"]

ARCHITECTURES = {"vdsr": VDSR, "edsr": EDSR}


def build_model(config):
    """A freshly initialised network from its `config` ({"arch": ..., and its constructor's arguments}).

    Its weights are laid out channels last, which convolutions prefer on CPUs and in half precision on GPUs.
    """
    arguments = dict(config)
    return ARCHITECTURES[arguments.pop("arch")](**arguments).to(memory_format=torch.channels_last)


def half_width(config):
    """The student's config: the teacher's depth, half its channels (paper section 4)."""
    return {**config, "n_feats": config["n_feats"] // 2}
