"""A checkpoint file becomes a ready model.

Our files hold {"config": architecture, "state_dict": tensors} (see utils.save_model). Those of others are read as
far as they hold one of the two networks: under whichever key, with whichever prefix, as tensors or as a whole
pickled module (utils.read_checkpoint runs no code), in the names of pytorch-vdsr, EDSR-PyTorch and BasicSR. Their
architecture is read off names and shapes.
"""

import re

import torch
from torch import nn
from tqdm import tqdm

from models import ARCHITECTURES, build_model
from models.checkpoint import StandIn, read_checkpoint
from models.edsr import DIV2K_MEAN
from utils import InputError

_KNOWN_NAMES = (
    "names known are ours (head, body.N, tail), pytorch-vdsr's (input, residual_layer.N.conv, output), "
    "EDSR-PyTorch's (head.0, body.N.body.0, tail.0.0) and BasicSR's (conv_first, body.N.conv1, conv_last)"
)
_AVERAGES = re.compile(r"(^|_)(ema|swa|avg|averaged?)(_|$)")
_USUAL_KEYS = re.compile(r"(state_dict|(model|net|network)_state(_dict)?|model|params|net|network|netG|G|generator|"
                         r"weights|state)$")
# Counters of thop and of torch.optim.swa_utils among the weights.
_COUNTERS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")


def load_model(path, device="cpu", res_scale=None):
    """The network stored in the file `path`, in float32 on `device`, in evaluation mode.

    res_scale: of an EDSR, where the file does not say. What is guessed is printed. Raises InputError, one line with
    the path and the name or shape that does not fit.
    """
    content = read_checkpoint(path)
    config = content.get("config") if isinstance(content, dict) else None
    known = isinstance(config, dict) and config.get("arch") in (*ARCHITECTURES, "own")
    if known and config["arch"] == "own":
        raise InputError(f"{path}: is of a network of one's own; say which file defines it with --model")
    weights = find_weights(content, path, _recognised)
    if not weights:
        raise InputError(f"{path}: holds no weights; {_KNOWN_NAMES}")
    if not known:
        weights, config = _infer(weights, path, res_scale)
    try:
        if not 1 <= config["n_resblocks"] <= len(weights) or config["n_feats"] < 1 or not config.get("res_scale", 1) > 0:
            raise ValueError
        model = build_model(config)
    except (KeyError, TypeError, RuntimeError, ValueError, ArithmeticError):
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: no network of {known} can be made of its config {config}") from None
    check_fit(model.state_dict(keep_vars=True), weights, path)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.to(device).eval()


# ---- the tensors in a file -------------------------------------------------------------------------


def find_weights(content, path, fits=None):
    """The tensors {name: tensor} in the content of the checkpoint `path`: of any type, empty where there are none.

    Taken from the file itself, or a dict or module in it, at most two levels deep. Averaged weights come before
    others, usual keys before unusual. What shares a prefix loses it.
    fits: whether a set of names is what is looked for; without it any is, and only the prefixes of DataParallel
    and torch.compile go. Raises InputError where two fit equally.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    found = [(keys, _strip_prefix(weights, fits)) for keys, weights in _candidates(content)]
    found = [one for one in found if fits and fits(one[1].keys())] or found
    if not found:
        if isinstance(content, StandIn):
            raise InputError(f"{path}: holds a pickled {content.stands_for!r:.80}, not weights")
        return {}
    found.sort(key=lambda one: _rank(one[0]))
    (keys, weights), *others = found
    for rival, same in others:
        if _rank(rival) == _rank(keys) and not _equal(weights, same):
            raise InputError(f"{path}: holds weights under '{'.'.join(keys)}' and '{'.'.join(rival)}'; "
                             "keep one of them in the file")
    if others:
        names = ", ".join(f"'{'.'.join(rival)}'" for rival, _ in others[:4])
        tqdm.write(f"{path}: '{'.'.join(keys) or 'the file itself'}' is taken, not {names}")
    return weights


def _candidates(content, keys=()):
    """(keys, tensors) of everything in `content` that holds tensors."""
    state = content.state if isinstance(content, StandIn) else {}
    items = {**content, **state}
    if isinstance(state.get("_modules"), dict):
        weights = dict(_module_tensors(content))
    else:
        weights = {str(name): value for name, value in items.items() if isinstance(value, torch.Tensor)}
    weights = {name: tensor for name, tensor in weights.items() if not _COUNTERS.search(name)}
    if weights:
        yield keys, weights
    if len(keys) < 2 and "_modules" not in state:
        for key, value in items.items():
            if isinstance(value, dict):
                yield from _candidates(value, (*keys, str(key)))


def _module_tensors(module, prefix="", depth=0):
    """(name, tensor) of the parameters and buffers of a pickled module, as its state_dict() would name them."""
    parts = {part: module.state.get(part) for part in ("_parameters", "_buffers", "_modules")}
    parts = {part: value if isinstance(value, dict) else {} for part, value in parts.items()}
    passing = module.state.get("_non_persistent_buffers_set") or ()
    for name, tensor in (*parts["_parameters"].items(), *parts["_buffers"].items()):
        if isinstance(tensor, torch.Tensor) and not (name in parts["_buffers"] and name in passing):
            yield f"{prefix}{name}", tensor
    for name, inner in parts["_modules"].items():
        if isinstance(inner, StandIn) and depth < 16:  # a file could hold a module in itself
            yield from _module_tensors(inner, f"{prefix}{name}.", depth + 1)


def _strip_prefix(weights, fits):
    """`weights` without the prefix that all names share, where they fit without it."""
    stripped = weights
    while not (fits and fits(stripped.keys())):
        first = next(iter(stripped)).partition(".")[0] + "."
        shared = all(name.startswith(first) and name != first for name in stripped)
        if not shared or not (fits or first in ("module.", "_orig_mod.")):
            return weights if fits else stripped
        stripped = {name[len(first):]: tensor for name, tensor in stripped.items()}
    return stripped


def _rank(keys):
    """The smaller, the sooner weights are taken from under these keys."""
    if any(_AVERAGES.search(key) for key in keys):
        return 0
    if any(_USUAL_KEYS.match(key) for key in keys):
        return 1
    return 3 if keys else 2


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_fit(expected, found, path):
    """Raise InputError where names, shapes or kinds of the tensors `found` are not those `expected`.

    expected: a module's state_dict(keep_vars=True). Only what is a parameter in it has to be finite.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(f"{path}: the tensor '{name}' is missing")
        other = found[name]
        if other.shape != tensor.shape:
            raise InputError(f"{path}: the tensor '{name}' is {tuple(other.shape)}, expected {tuple(tensor.shape)}")
        same_kind = (other.is_floating_point(), other.is_complex()) == (tensor.is_floating_point(), tensor.is_complex())
        if not same_kind or other.layout != tensor.layout or other.is_quantized:
            raise InputError(f"{path}: the tensor '{name}' is {other.dtype}, {other.layout}, expected {tensor.dtype}, "
                             f"{tensor.layout}")
        if isinstance(tensor, nn.Parameter) and not torch.isfinite(other).all():
            raise InputError(f"{path}: the tensor '{name}' is not finite")
    for name in found:
        if name not in expected:
            raise InputError(f"{path}: the tensor '{name}' is unexpected in this architecture")


# ---- the names and numbers of others ---------------------------------------------------------------


def _recognised(names):
    ours = {_our_name(name, 0) for name in names}
    return "head.weight" in ours or ours >= {"head.0.weight", "tail.0.0.weight"}


def _our_name(name, n_blocks):
    """pytorch-vdsr's and BasicSR's names as ours; EDSR-PyTorch's are ours."""
    for pattern, ours in (
        (r"input\.", "head."),
        (r"residual_layer\.(\d+)\.conv\.", r"body.\1."),
        (r"output\.", "tail."),
        (r"conv_first\.", "head.0."),
        (r"body\.(\d+)\.conv1\.", r"body.\1.body.0."),
        (r"body\.(\d+)\.conv2\.", r"body.\1.body.2."),
        (r"conv_after_body\.", f"body.{n_blocks}."),
        (r"(?:upconv|upsample)\.(\d)\.", r"tail.0.\1."),
        (r"(?:upconv|upsample)\.", "tail.0.0."),
        (r"conv_last\.", "tail.1."),
    ):
        if re.match(pattern, name):
            return re.sub(pattern, ours, name, count=1)
    return name


def _infer(found, path, res_scale):
    """(weights under our names, config): what names and shapes tell, and where they do not, the usual and a word."""
    n_blocks = len({match[1] for name in found if (match := re.match(r"(?:body|residual_layer)\.(\d+)\.", name))})
    weights = {_our_name(name, n_blocks): tensor for name, tensor in found.items()}
    head = weights.get("head.weight", weights.get("head.0.weight"))
    if head is None or not _recognised(weights.keys()):
        raise InputError(f"{path}: begins with the tensor '{next(iter(found))}'; {_KNOWN_NAMES}")
    for name in ("head.weight", "head.0.weight", "tail.0.0.weight"):
        if name in weights and weights[name].dim() != 4:
            raise InputError(f"{path}: the tensor '{name}' is {tuple(weights[name].shape)}, expected 4 dimensions")
    n_feats, channels = head.shape[:2]
    if "head.weight" in weights:
        return weights, {"arch": "vdsr", "n_resblocks": n_blocks, "n_feats": n_feats}
    if channels not in (1, 3):
        raise InputError(f"{path}: is an EDSR of {channels} channels; only 3 (RGB) and 1 (luma) are known")
    thrice = len(weights["tail.0.0.weight"]) == 9 * n_feats
    scale = 4 if "tail.0.2.weight" in weights else 3 if thrice else 2
    basicsr = "conv_first.weight" in found
    config = {"arch": "edsr", "n_resblocks": n_blocks - (not basicsr), "n_feats": n_feats, "scale": scale,
              "res_scale": res_scale or (0.1 if n_feats >= 256 else 1.0)}
    if channels == 1:
        config["channels"] = 1
    guesses = [] if res_scale else [f"res_scale {config['res_scale']}, usual at this width (--res_scale sets another)"]
    if not basicsr:
        guesses += _take_range(weights, config, channels, path)
    if guesses:
        tqdm.write(f"{path}: does not say all; taken are {'; '.join(guesses)}")
    return weights, config


def _take_range(weights, config, channels, path):
    """Take EDSR-PyTorch's mean shift out of `weights` into `config`, and its range of values into the biases.

    Returns what is a guess, in words. The network is convolutions and ReLU, so that one of values in 0..r is one of
    values in 0..255 once its biases are 255 / r as large.
    """
    shift = {name: weights.pop(name).double() for name in [*weights] if re.match(r"(sub|add)_mean\.", name)}
    if not shift:  # as super-image stores, whose values are in 0..1, and single-channel EDSR-PyTorch
        high, mean = (1 if channels == 3 else 255), torch.zeros(channels)
        guesses = [f"no mean shift and values in 0..{high}, as there is no sub_mean"]
    else:
        offset, one = shift.get("add_mean.bias"), torch.eye(channels).double()[..., None, None]
        usable = offset is not None and offset.shape == (channels,) and torch.isfinite(offset).all() and all(
            (value := shift.get(name)) is not None and value.shape == right.shape and torch.allclose(value, right)
            for name, right in (("sub_mean.weight", one), ("add_mean.weight", one), ("sub_mean.bias", -offset)))
        if not usable:
            raise InputError(f"{path}: sub_mean and add_mean do more than subtract one mean and add it again")
        high = offset[0].item() / DIV2K_MEAN[0]
        if channels == 3 and high > 0 and torch.allclose(offset, high * torch.tensor(DIV2K_MEAN).double(), rtol=1e-3):
            mean, guesses = None, []
        else:  # a mean is below 1, so that larger numbers are of values in 0..255
            high = 1 if 0 < offset.abs().max() <= 1 else 255
            mean, guesses = offset / high, [f"values in 0..{high}, of its own mean shift"]
    if mean is not None and (channels == 3 or mean.any()):
        config["mean"] = mean.tolist()
    if abs(high / 255 - 1) > 1e-3:
        weights.update({name: tensor * (255 / high) for name, tensor in weights.items() if name.endswith(".bias")})
    return guesses
