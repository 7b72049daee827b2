"""A network that this project does not have, from a Python file of one's own (distillation.py --model).

Its functions teacher() and student() return a torch.nn.Module that takes LR images (B, C, h, w) in [0, 1] to SR images
(B, C, scale * h, scale * w) and says its `scale` and its `channels` C (3: RGB, 1: luma). Where it says its
`receptive_field`, in input pixels, large images go through it in tiles.
"""

import hashlib
import sys
import traceback
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from models.checkpoint import read_checkpoint
from models.load import find_weights, load_weights
from utils import InputError

_PROJECT = Path(__file__).resolve().parent.parent


def custom_network(path, role, weights=None):
    """The network that the function `role` ("teacher" or "student") of the file `path` makes, in evaluation mode.

    weights: a checkpoint to load into it, with the names it has. Raises InputError, with the line that is at fault.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--model {path}: no such file")
    with _located(path, f"{role}()"):
        network = getattr(_run(path.resolve()), role)()
    scale, channels, field = (getattr(network, name, 0) for name in ("scale", "channels", "receptive_field"))
    if not (isinstance(network, nn.Module) and scale in (2, 3, 4) and channels in (1, 3)
            and isinstance(field, int) and field >= 0):
        raise InputError(f"--model {path}: {role}() must return a module with `scale` (2, 3 or 4) and `channels` "
                         "(3: RGB, 1: luma); its `receptive_field`, if any, must be a number of pixels")
    # What this project asks of a network besides.
    config = {"arch": "custom", "file": path.name, "role": role}
    for name, value in {"scales": (scale,), "upscaled_input": False, "config": config}.items():
        if getattr(network, name, value) != value:
            raise InputError(f"--model {path}: the {role} has a `{name}` of its own, a name that is taken; rename it")
        setattr(network, name, value)
    with torch.no_grad():
        _try(network.eval(), path)
    if weights:
        names = network.state_dict().keys()
        load_weights(network, find_weights(read_checkpoint(weights), weights, lambda found: found == names), weights)
    return network


def check_learns(student, path):
    """Raise InputError where the student() of the file `path` cannot learn. It is tried, and not to be used then."""
    output = _try(student.train(), path, " in training")
    if not output.requires_grad:
        raise InputError(f"--model {path}: the student's output depends on no parameter that learns")
    with _located(path, "the student, learning,"):
        output.square().sum().backward()


def _try(network, path, how=""):
    """What the network makes of a small batch. Raises InputError where that has another shape than it should."""
    role, scale, shape = network.config["role"], network.scale, (2, network.channels, 12, 16)
    with _located(path, f"the {role}, given {shape}{how},"):
        output = network(torch.zeros(shape))
    made = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    expected = (*shape[:2], 12 * scale, 16 * scale)
    if made != expected:
        raise InputError(f"--model {path}: the {role} makes {made} of {shape}{how}, expected {expected}")
    return output


@cache
def _run(path):
    """The file as a module that runs once. What lies beside it can be imported, even under a name of this project's."""
    module = ModuleType(f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:16]}")
    module.__file__ = str(path)
    beside = {file.stem for file in path.parent.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    hidden = {key: sys.modules.pop(key) for key, ours in list(sys.modules.items())
              if key.partition(".")[0] in beside and path.parent != _PROJECT
              and _PROJECT in Path(getattr(ours, "__file__", None) or "").parents}
    sys.modules[module.__name__] = module  # dataclasses look for it there
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
    finally:
        sys.path.append(sys.path.pop(sys.path.index(str(path.parent))))  # for what its functions import later
        sys.modules.update(hidden)
    return module


@contextmanager
def _located(path, what):
    """Turn what the user's code stumbles over into InputError, with the last line of that code on the way."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        frames += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) and error.filename else []
        own = [f" ({Path(file).name}, line {line})" for file, line in frames if file != __file__
               and path.resolve().parent in Path(file).parents and "site-packages" not in file]
        reason = " ".join(str(getattr(error, "msg", error)).split()) + (own[-1] if own else "")
        raise InputError(f"--model {path}: {what} ended with {type(error).__name__}: {reason}") from None
