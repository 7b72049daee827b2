"""A network that this project does not have, from a Python file of one's own (distillation.py --model).

    # my_network.py
    def teacher():
        return MyNetwork(channels=64)

    def student():
        return MyNetwork(channels=32)

Both return a torch.nn.Module that takes LR images (B, C, h, w) in [0, 1] to SR images (B, C, scale * h, scale * w)
and says its `scale` and its `channels` C (3: RGB, 1: luma). Nothing else is asked of it.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn

from models.load import check_fit, find_weights
from utils import InputError, read_checkpoint


def custom_network(path, role, weights=None):
    """The network that the function `role` ("teacher" or "student") of the file `path` makes.

    weights: a checkpoint to load into it, with the names it has. It gets what this project asks of a network
    besides: `scales`, `upscaled_input` and `config`. Raises InputError.
    """
    try:
        network = getattr(_run(path), role)()
    except Exception as error:  # whatever the user's code stumbles over
        raise InputError(f"--model {path}: {role}() ended with {type(error).__name__}: {error}") from None
    for name, usable in (("scale", lambda v: v in (2, 3, 4)), ("channels", lambda v: v in (1, 3))):
        if not (isinstance(network, nn.Module) and usable(getattr(network, name, None))):
            raise InputError(f"--model {path}: {role}() must return a module with `scale` (2, 3 or 4) and `channels` "
                             "(3: RGB, 1: luma)")
    network.scales, network.upscaled_input = (network.scale,), False
    network.config = {"arch": "own", "file": Path(path).name, "role": role}
    _try_out(network, path, role)
    if weights:
        found = find_weights(read_checkpoint(weights), weights)
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
        check_fit(network.state_dict(), found, weights)
        network.load_state_dict(found)
    return network.eval()


def _run(path):
    """The file as a module."""
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def _try_out(network, path, role):
    x = torch.rand(1, network.channels, 12, 16)
    expected = (1, network.channels, 12 * network.scale, 16 * network.scale)
    try:
        output = network.eval()(x)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--model {path}: the {role} cannot take {tuple(x.shape)} ({reason})") from None
    if not isinstance(output, torch.Tensor) or output.shape != expected:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(f"--model {path}: the {role} makes {shape} of {tuple(x.shape)}, expected {expected}")
