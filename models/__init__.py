"""The networks, and how a checkpoint file becomes one of them."""

import torch

from models.edsr import EDSR
from models.generator import Generator
from models.vdsr import VDSR

__all__ = ["ARCHITECTURES", "EDSR", "PRESETS", "VDSR", "Generator", "build_model", "half_width"]

ARCHITECTURES = {"vdsr": VDSR, "edsr": EDSR}
# The usual sizes, by the names that --arch takes. An EDSR has a scale besides.
PRESETS = {
    "vdsr": {"arch": "vdsr", "n_resblocks": 18, "n_feats": 64},
    "edsr_baseline": {"arch": "edsr", "n_resblocks": 16, "n_feats": 64, "res_scale": 1.0},
    "edsr": {"arch": "edsr", "n_resblocks": 32, "n_feats": 256, "res_scale": 0.1},
}


def build_model(config):
    """A freshly initialised network from its `config` ({"arch": ..., and its constructor's arguments}).

    Its weights are laid out channels last, which convolutions prefer on CPUs and in half precision on GPUs.
    """
    arguments = dict(config)
    return ARCHITECTURES[arguments.pop("arch")](**arguments).to(memory_format=torch.channels_last)


def half_width(config):
    """The student's config: the teacher's depth, half its channels (paper section 4)."""
    return {**config, "n_feats": config["n_feats"] // 2}
