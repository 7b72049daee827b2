"""A checkpoint file becomes a ready model.

Our files hold {"config": architecture, "state_dict": tensors} (see utils.save_model). Those of others are read as
far as they hold one of the two networks: under whichever key and prefix, as tensors or as a whole pickled module, in the
names of pytorch-vdsr, EDSR-PyTorch and BasicSR. Their architecture is read off names and shapes.
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
    weights = find_weights(content, path, _recognised)
    config = content.get("config")
    arch = config.get("arch") if isinstance(config, dict) else None
    if arch == "own":
        raise InputError(f"{path}: is of a network of one's own; say which file defines it with --model")
    if arch not in ARCHITECTURES:
        weights, config = _infer(weights, path, res_scale)
    try:
        if not 1 <= config["n_resblocks"] <= len(weights) or config["n_feats"] < 1 or not config.get("res_scale", 1) > 0:
            raise ValueError
        model = build_model(config)
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError):
        raise InputError(f"{path}: no network can be made of its config {config}") from None
    load_weights(model, weights, path)
    return model.to(device).eval()


def load_weights(model, weights, path):
    """Load {name: tensor} into `model`. Raises InputError where names, shapes or kinds do not fit or one is not finite.

    Only parameters have to be finite: a buffer may hold an infinity.
    """
    expected = model.state_dict(keep_vars=True)
    for name, tensor in expected.items():
        found = weights.get(name)
        reason = ("is missing" if found is None else
                  f"is {tuple(found.shape)}, expected {tuple(tensor.shape)}" if found.shape != tensor.shape else
                  f"is {found.dtype}, expected {tensor.dtype}" if not torch.can_cast(found.dtype, tensor.dtype) else
                  "is not finite" if isinstance(tensor, nn.Parameter) and not found.isfinite().all() else None)
        if reason:
            raise InputError(f"{path}: the tensor '{name}' {reason}")
    for name in sorted(weights.keys() - expected.keys()):
        raise InputError(f"{path}: the tensor '{name}' is unexpected in this architecture")
    model.load_state_dict(weights)


# ---- the tensors in a file -------------------------------------------------------------------------


def find_weights(content, path, fits):
    """The tensors {name: tensor} in the content of the checkpoint `path`.

    Taken from the file itself, or a dict or module in it, at most two levels deep. Averaged weights come before
    others, usual keys before unusual. A prefix that all names share goes where that makes them fit.
    fits: says whether a set of names is what is looked for; where none is, any is taken. Raises InputError where
    there are none, or two that are as good.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    found = sorted(((keys, _strip_prefix(weights, fits)) for keys, weights in _candidates(content)),
                   key=lambda one: _rank(one[0]))
    if not found and fits({}.keys()):  # a network without weights
        return {}
    if not found:
        what = f"a pickled {content.stands_for!r:.80}, not" if isinstance(content, StandIn) else "no"
        raise InputError(f"{path}: holds {what} weights; {_KNOWN_NAMES}")
    (keys, weights), *others = [one for one in found if fits(one[1].keys())] or found
    for other, tensors in others:
        same = weights.keys() == tensors.keys() and all(weights[name].equal(tensors[name]) for name in weights)
        if _rank(other) == _rank(keys) and not same:
            raise InputError(f"{path}: holds weights under '{'.'.join(keys)}' and '{'.'.join(other)}'; "
                             "keep one of them in the file")
    if others:
        names = ", ".join(f"'{'.'.join(other)}'" for other, _ in others[:4])
        tqdm.write(f"{path}: '{'.'.join(keys) or 'the file itself'}' is taken, not {names}")
    return weights


def _candidates(content, keys=()):
    """(keys, tensors) of everything in `content` that holds tensors."""
    state = content.state if isinstance(content, StandIn) else {}
    items = dict(_module_tensors(content)) if "_modules" in state else {**content, **state}
    if weights := {str(name): value for name, value in items.items()
                   if isinstance(value, torch.Tensor) and not _COUNTERS.search(str(name))}:
        yield keys, weights
    if len(keys) < 2:
        for key, value in items.items():
            if isinstance(value, dict):
                yield from _candidates(value, (*keys, str(key)))


def _module_tensors(module, prefix=""):
    """(name, value) of the parameters and buffers of a pickled module, as its state_dict() would name them."""
    passing = module.state.get("_non_persistent_buffers_set", ())
    for name, value in (module.state.get("_parameters", {}) | module.state.get("_buffers", {})).items():
        if name not in passing:
            yield prefix + name, value
    for name, inner in module.state.get("_modules", {}).items():
        if isinstance(inner, StandIn) and prefix.count(".") < 16:  # a file could hold a module in itself
            yield from _module_tensors(inner, f"{prefix}{name}.")


def _strip_prefix(weights, fits):
    """`weights` without the prefix that all names share, where they fit without it."""
    stripped = weights
    while not fits(stripped.keys()):
        first = next(iter(stripped)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in stripped):
            return weights
        stripped = {name.removeprefix(first): tensor for name, tensor in stripped.items()}
    return stripped


def _rank(keys):
    """The smaller, the sooner weights are taken from under these keys: averages, usual ones, the file itself, others."""
    return 0 if any(map(_AVERAGES.search, keys)) else 1 if any(map(_USUAL_KEYS.match, keys)) else 3 if keys else 2


# ---- the names and numbers of others ---------------------------------------------------------------


def _recognised(names):
    ours = {_our_name(name) for name in names}
    return "head.weight" in ours or ours >= {"head.0.weight", "tail.0.0.weight"}


def _our_name(name, n_blocks=0):
    """pytorch-vdsr's and BasicSR's names as ours; EDSR-PyTorch's are ours."""
    for theirs, ours in (
        (r"input\.", "head."), (r"residual_layer\.(\d+)\.conv\.", r"body.\1."), (r"output\.", "tail."),
        (r"conv_first\.", "head.0."), (r"body\.(\d+)\.conv1\.", r"body.\1.body.0."),
        (r"body\.(\d+)\.conv2\.", r"body.\1.body.2."), (r"conv_after_body\.", f"body.{n_blocks}."),
        (r"(?:upconv|upsample)\.(\d)\.", r"tail.0.\1."), (r"upconv1\.", "tail.0.0."), (r"upconv2\.", "tail.0.2."),
        (r"conv_last\.", "tail.1."),
    ):
        name = re.sub(f"^{theirs}", ours, name)
    return name


def _infer(found, path, res_scale):
    """(weights under our names, config): what names and shapes tell, and where they do not, the usual and a word."""
    n_blocks = len({match[1] for name in found if (match := re.match(r"(?:body|residual_layer)\.(\d+)\.", name))})
    weights = {_our_name(name, n_blocks): tensor for name, tensor in found.items()}
    if not _recognised(weights.keys()):
        raise InputError(f"{path}: begins with the tensor '{next(iter(found))}'; {_KNOWN_NAMES}")
    head = weights.get("head.weight", weights.get("head.0.weight"))
    if head.dim() != 4:
        raise InputError(f"{path}: the first convolution's weight is {tuple(head.shape)}, expected 4 dimensions")
    n_feats, channels = head.shape[:2]
    if "head.weight" in weights:
        return weights, {"arch": "vdsr", "n_resblocks": n_blocks, "n_feats": n_feats}
    if channels not in (1, 3):
        raise InputError(f"{path}: is an EDSR of {channels} channels; only 3 (RGB) and 1 (luma) are known")
    scale = 4 if "tail.0.2.weight" in weights else 3 if weights["tail.0.0.weight"].shape[:1] == (9 * n_feats,) else 2
    basicsr = "conv_first.weight" in found
    config = {"arch": "edsr", "n_resblocks": n_blocks - (not basicsr), "n_feats": n_feats, "scale": scale,
              "res_scale": res_scale or (0.1 if n_feats >= 256 else 1.0)} | ({"channels": 1} if channels == 1 else {})
    guesses = [] if res_scale else [f"res_scale {config['res_scale']}, usual at this width (--res_scale sets another)"]
    if not basicsr:
        weights, mean, guess = _unshift(weights, channels, path)
        config, guesses = config | mean, guesses + guess
    if guesses:
        tqdm.write(f"{path}: does not say all; taken are {'; '.join(guesses)}")
    return weights, config


def _unshift(weights, channels, path):
    """EDSR-PyTorch's weights without its mean shift, for values in 0..255; {"mean": its own, if any}; guesses.

    The network is convolutions and ReLU: one of values in 0..r is one of values in 0..255 once its biases are
    255 / r as large.
    """
    shift = {name: tensor.float() for name, tensor in weights.items() if re.match(r"(sub|add)_mean\.", name)}
    if not shift:  # as super-image stores, whose values are in 0..1, and single-channel EDSR-PyTorch
        high, mean = (1, {"mean": [0.0] * 3}) if channels == 3 else (255, {})
        guesses = [f"no mean shift and values in 0..{high}, as there is no sub_mean"]
    else:
        offset, one = shift.get("add_mean.bias", torch.zeros(0)), torch.eye(channels)[..., None, None]
        usable = {"sub_mean.weight": one, "sub_mean.bias": -offset, "add_mean.weight": one, "add_mean.bias": offset}
        if offset.shape != (channels,) or shift.keys() != usable.keys() or not all(
                shift[name].shape == usable[name].shape and shift[name].allclose(usable[name]) for name in usable):
            raise InputError(f"{path}: sub_mean and add_mean do more than subtract one mean and add it again")
        high, mean, guesses = offset[0].item() / DIV2K_MEAN[0], {}, []
        if channels != 3 or not offset.allclose(high * torch.tensor(DIV2K_MEAN), rtol=1e-3) or high <= 0:
            high = 1 if 0 < offset.abs().max() <= 1 else 255  # a mean is below 1: larger ones are of values in 0..255
            mean, guesses = {"mean": (offset / high).tolist()}, [f"values in 0..{high}, of its own mean shift"]
    weights = {name: tensor.float() * (255 / high) if name.endswith(".bias") else tensor for name, tensor in weights.items()
               if name not in shift}
    return weights, mean, guesses
