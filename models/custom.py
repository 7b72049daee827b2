"""A network that this project does not have, from a Python file of one's own (distillation.py --model).

    # my_network.py
    def teacher():
        return MyNetwork(channels=64)

    def student():
        return MyNetwork(channels=32)

Both return a torch.nn.Module that takes LR images (B, C, h, w) in [0, 1] to SR images (B, C, scale * h, scale * w)
and says its `scale` and its `channels` C (3: RGB, 1: luma). Nothing else is asked of it.
"""

import hashlib
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import torch
from torch import nn

from models.load import check_fit, find_weights
from utils import InputError, read_checkpoint

_PROJECT = Path(__file__).resolve().parent.parent


def custom_network(path, role, weights=None):
    """The network that the function `role` ("teacher" or "student") of the file `path` makes, in evaluation mode.

    weights: a checkpoint to load into it, with the names it has. It gets what this project asks of a network
    besides: `scales`, `upscaled_input` and `config`. Raises InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--model {path}: no such file")
    try:
        make = getattr(_run(path.resolve()), role, None)
        network = make() if make else None
    except (Exception, SystemExit) as error:  # whatever the user's code stumbles over
        raise InputError(f"--model {path}: {role}() ended with {_describe(error, path)}") from None
    if not make:
        raise InputError(f"--model {path}: defines no {role}()")
    for name, usable in (("scale", (2, 3, 4)), ("channels", (1, 3))):
        if not (isinstance(network, nn.Module) and getattr(network, name, None) in usable):
            raise InputError(f"--model {path}: {role}() must return a module with `scale` (2, 3 or 4) and `channels` "
                             "(3: RGB, 1: luma)")
    network.scales, network.upscaled_input = (network.scale,), False
    network.config = {"arch": "own", "file": path.name, "role": role}
    _try_out(network.eval(), path, role)
    if weights:
        _load(network, weights)
    return network


def _run(path):
    """The file as a module: run once, with what lies beside it importable, even under the name of a module of ours."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    beside = {entry.stem for entry in path.parent.iterdir()} if path.parent != _PROJECT else ()
    ours = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in beside
            and _PROJECT in Path(getattr(module, "__file__", None) or "/").parents}
    for key in ours:
        del sys.modules[key]
    loader = SourceFileLoader(name, str(path))
    module = sys.modules[name] = module_from_spec(spec_from_loader(name, loader))
    sys.path.insert(0, str(path.parent))
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
        sys.path.append(str(path.parent))  # for imports in its functions, behind everything else
        sys.modules.update(ours)
    return module


def _describe(error, path):
    """An exception in one line, with the last line of the user's own code that it came through."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename, error.lineno))
    folder = path.resolve().parent
    own = [(Path(file).name, line) for file, line in frames if file and "site-packages" not in file
           and folder in Path(file).parents and Path(file) != Path(__file__)]
    place = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    message = " ".join(getattr(error, "msg", str(error)).split())
    return f"{type(error).__name__}: {message}{place}"


@torch.no_grad()
def _try_out(network, path, role):
    x = torch.rand(1, network.channels, 12, 16)
    expected = (1, network.channels, 12 * network.scale, 16 * network.scale)
    try:
        output = network(x)
    except Exception as error:
        raise InputError(f"--model {path}: the {role} cannot take {tuple(x.shape)}: {_describe(error, path)}") from None
    if not isinstance(output, torch.Tensor) or output.shape != expected:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(f"--model {path}: the {role} makes {shape} of {tuple(x.shape)}, expected {expected}")


def _load(network, path):
    """Weights of any type that the network's own have; where its names all begin alike, the file's need not."""
    expected = network.state_dict()
    found = find_weights(read_checkpoint(path), path)
    found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    first = next(iter(expected), "").partition(".")[0] + "."
    if all(name.startswith(first) for name in expected):
        found = {name if name in expected else first + name: tensor for name, tensor in found.items()}
    check_fit(expected, found, path)
    for name, _ in network.named_parameters():
        if name in found and not torch.isfinite(found[name]).all():  # a buffer may well be infinite: a mask is
            raise InputError(f"{path}: the tensor '{name}' is not finite")
    network.load_state_dict(found)
