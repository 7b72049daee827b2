"""A checkpoint file becomes a ready model.

Our files hold {"config": architecture, "state_dict": tensors} (see utils.save_model). Those of others are read where
they hold one of the two networks, under whichever key, prefix and _KNOWN_NAMES; names and shapes tell the rest.
"""

import re

import torch
from torch import nn
from tqdm import tqdm

from models import ARCHITECTURES, build_model
from models.checkpoint import StandIn, read_checkpoint
from models.edsr import DIV2K_MEAN
from utils import InputError, refusing

_KNOWN_NAMES = (
    "names known are ours (head, body.N, tail), pytorch-vdsr's (input, residual_layer.N.conv, output), "
    "EDSR-PyTorch's (head.0, body.N.body.0, tail.0.0) and BasicSR's (conv_first, body.N.conv1, conv_last)"
)
_AVERAGES = re.compile(r"(^|[._])(ema|swa|avg|averaged?)([._]|$)")
_USUAL_KEYS = re.compile(r"(^|\.)(state(_dict)?|(model|net|network)(_state(_dict)?)?|params|netG|G|generator|weights)"
                         r"(\.|$)")
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
    arch = str(config.get("arch")) if isinstance(config, dict) else None
    if arch == "custom":
        raise InputError(f"{path}: is of a network of one's own; say which file defines it with --model")
    if arch not in ARCHITECTURES:
        weights, config = _infer(weights, path, res_scale)
    with refusing(f"{path}: no network can be made of its config {config}"):
        if not (1 <= config["n_resblocks"] <= len(weights) and config["n_feats"] > 0 < config.get("res_scale", 1)):
            raise ValueError("a number is out of range")
        model = build_model(config)
    load_weights(model, weights, path)
    return model.to(device).eval()


def load_weights(model, weights, path):
    """Load {name: tensor} into `model`. Raises InputError where names, shapes or kinds do not fit or a parameter is not
    finite; a buffer may hold an infinity.
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


def find_weights(content, path, fits):
    """The tensors {name: tensor} in the content of the checkpoint `path`: its own, or of a dict or module in it.

    fits: says whether a set of names is what is looked for; where none is, any is taken. Raises InputError where there
    are none, or two that are as good.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    found = sorted(_candidates(content), key=lambda one: _rank(one[0]))
    if not found and not fits(set()):  # a network may have no weights
        what = f"a pickled {content.stands_for!r:.80}, not" if isinstance(content, StandIn) else "no"
        raise InputError(f"{path}: holds {what} weights; {_KNOWN_NAMES}")
    (key, weights), *others = [one for one in found if fits(one[1].keys())] or found[:1] or [("", {})]
    for other, tensors in others:
        if _rank(other) == _rank(key) and not _equal(weights, tensors):
            raise InputError(f"{path}: holds weights under '{key}' and '{other}'; keep one of them in the file")
    if others:
        names = ", ".join(f"'{other}'" for other, _ in others[:4])
        tqdm.write(f"{path}: '{key or 'the file itself'}' is taken, not {names}")
    return weights


def _candidates(content, keys=(), depth=2):
    """(dotted keys, tensors) of everything in `content` that holds tensors; what all names begin with is a key, too."""
    weights = {str(name): value for name, value in content.items()
               if isinstance(value, torch.Tensor) and not _COUNTERS.search(str(name))}
    if weights:
        yield ".".join(keys), weights
        first, dot, _ = next(iter(weights)).partition(".")
        if dot and all(name.startswith(first + dot) for name in weights):
            yield from _candidates({name.removeprefix(first + dot): tensor for name, tensor in weights.items()},
                                   (*keys, first), 0)
    if depth:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from _candidates(value, (*keys, str(key)), depth - 1)


def _rank(key):
    """The smaller, the sooner weights are taken from there: averages, usual keys, the file itself, others."""
    return 0 if _AVERAGES.search(key) else 1 if _USUAL_KEYS.search(key) else 3 if key else 2


def _equal(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


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
    n_feats, channels = (*head.shape, 1, 1)[:2]  # what is no kernel is refused by load_weights
    if "head.weight" in weights:
        return weights, {"arch": "vdsr", "n_resblocks": n_blocks, "n_feats": n_feats}
    if channels not in (1, 3):
        raise InputError(f"{path}: is an EDSR of {channels} channels; only 3 (RGB) and 1 (luma) are known")
    scale = 4 if "tail.0.2.weight" in weights else 3 if weights["tail.0.0.weight"].shape[:1] == (9 * n_feats,) else 2
    config = {"arch": "edsr", "n_resblocks": n_blocks, "n_feats": n_feats, "scale": scale,
              "res_scale": res_scale or (0.1 if n_feats >= 256 else 1.0)} | ({"channels": 1} if channels == 1 else {})
    guesses = [] if res_scale else [f"res_scale {config['res_scale']}, usual at this width (--res_scale sets another)"]
    if "conv_first.weight" not in found:  # EDSR-PyTorch's, not BasicSR's
        config["n_resblocks"] -= 1  # the convolution after the blocks was counted as one
        guesses += _unshift(weights, config, path)
    if guesses:
        tqdm.write(f"{path}: does not say all; taken are {'; '.join(guesses)}")
    return weights, config


def _unshift(weights, config, path):
    """Take EDSR-PyTorch's mean shift out of `weights`; its mean, unless usual, goes into `config`. Returns guesses.

    The network is convolutions and ReLU: one of values in 0..high is one of values in 0..255 once its biases are
    255 / high as large.
    """
    channels = config.get("channels", 3)
    shift = {name: weights.pop(name).float() for name in [*weights] if re.match(r"(sub|add)_mean\.", name)}
    if shift:
        offset, one = shift.get("add_mean.bias", torch.zeros(0)), torch.eye(channels)[..., None, None]
        usable = {"sub_mean.weight": one, "sub_mean.bias": -offset, "add_mean.weight": one, "add_mean.bias": offset}
        if offset.shape != (channels,) or shift.keys() != usable.keys() or not all(
                shift[name].shape == usable[name].shape and shift[name].allclose(usable[name]) for name in usable):
            raise InputError(f"{path}: sub_mean and add_mean do more than subtract one mean and add it again")
        high, guesses = offset[0].item() / DIV2K_MEAN[0], []
        if channels != 3 or not offset.allclose(high * torch.tensor(DIV2K_MEAN), rtol=1e-3) or high <= 0:
            high = 1 if 0 < offset.abs().max() <= 1 else 255  # a mean is below 1: larger ones are of values in 0..255
            config["mean"], guesses = (offset / high).tolist(), [f"values in 0..{high}, of its own mean shift"]
    else:  # as super-image stores, whose values are in 0..1, and single-channel EDSR-PyTorch
        high, mean = (1, {"mean": [0.0] * 3}) if channels == 3 else (255, {})
        config |= mean
        guesses = [f"no mean shift and values in 0..{high}, as there is no sub_mean"]
    for name in weights:
        if name.endswith(".bias"):
            weights[name] = weights[name].float() * (255 / high)
    return guesses
