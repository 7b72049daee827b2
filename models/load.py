"""A checkpoint file becomes a ready model.

Our files hold {"config": architecture, "state_dict": tensors} (see utils.save_model). Also read: a bare state
dict, one under a usual key ("state_dict", "model", "params", "model_state_dict"), names with a "module." or
"model." prefix, the names of pytorch-vdsr (input, residual_layer.N.conv, output) and of EDSR-PyTorch (sub_mean and
add_mean besides ours). Without a config the architecture is read off the names and shapes.
"""

import re

import torch

from models import ARCHITECTURES, build_model
from utils import InputError, read_checkpoint

_KNOWN_NAMES = (
    "names known are ours (head, body.N, tail), pytorch-vdsr's (input, residual_layer.N.conv, output) "
    "and EDSR-PyTorch's (head.0, body.N.body.0, tail.0.0)"
)


def load_model(path, device="cpu", res_scale=None):
    """The network stored in the file `path`, in float32 on `device`, in evaluation mode.

    res_scale: of an EDSR, where the file does not say. Raises InputError, one line with the path and the name
    or shape that does not fit.
    """
    content = read_checkpoint(path)
    weights = find_weights(content, path)
    if not weights:
        raise InputError(f"{path}: holds no weights; {_KNOWN_NAMES}")
    weights = _translate(weights)
    if isinstance(content.get("config"), dict) and content["config"].get("arch") == "own":
        raise InputError(f"{path}: is of a network of one's own; say which file defines it with --model")
    stored = content.get("config") if isinstance(content.get("config"), dict) else None
    config = stored or _infer_config(weights, path, res_scale)
    try:
        if min(config["n_resblocks"], config["n_feats"]) < 1 or not config.get("res_scale", 1) > 0:
            raise ValueError
        model = build_model(config)
    except (KeyError, TypeError, RuntimeError, ValueError, ArithmeticError):
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: no network of {known} can be made of its config {config}") from None
    check_fit(model.state_dict(), weights, path)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.to(device).eval()


def find_weights(content, path):
    """The tensors {name: tensor} in the content of the checkpoint `path`. Raises InputError where one is unusable."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for key in ("state_dict", "model", "params", "model_state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, tensor in weights.items():
        usable = tensor.layout == torch.strided and tensor.is_floating_point()
        if not usable or not torch.isfinite(tensor).all():
            kind = "not finite" if usable else f"not plain floating-point numbers ({tensor.dtype}, {tensor.layout})"
            raise InputError(f"{path}: the tensor '{name}' is {kind}")
    return weights


def _translate(weights):
    """Weights under our names. The mean shift of EDSR-PyTorch is dropped: ours is a constant."""
    renames = (
        (r"^module\.", ""),
        (r"^model\.", ""),
        (r"^input\.weight$", "head.weight"),
        (r"^residual_layer\.(\d+)\.conv\.weight$", r"body.\1.weight"),
        (r"^output\.weight$", "tail.weight"),
    )
    ours = {}
    for name, tensor in weights.items():
        for pattern, ours_is in renames:
            name = re.sub(pattern, ours_is, name)
        if not re.match(r"^(sub|add)_mean\.(weight|bias)$", name):
            ours[name] = tensor
    return ours


def _infer_config(weights, path, res_scale=None):
    """The architecture that names and shapes tell. EDSR's res_scale they do not: the usual one, unless given."""

    def channels(name):
        if weights[name].dim() != 4:
            raise InputError(f"{path}: the tensor '{name}' is {tuple(weights[name].shape)}, expected 4 dimensions")
        return len(weights[name])

    n_blocks = len({match[1] for name in weights if (match := re.match(r"^body\.(\d+)\.", name))})
    if "head.weight" in weights:
        return {"arch": "vdsr", "n_resblocks": n_blocks, "n_feats": channels("head.weight")}
    if "head.0.weight" in weights and "tail.0.0.weight" in weights:
        n_feats = channels("head.0.weight")
        thrice = channels("tail.0.0.weight") == 9 * n_feats
        scale = 4 if "tail.0.2.weight" in weights else 3 if thrice else 2
        res_scale = res_scale or (0.1 if n_feats >= 256 else 1.0)
        return {"arch": "edsr", "n_resblocks": n_blocks - 1, "n_feats": n_feats,
                "scale": scale, "res_scale": res_scale}
    raise InputError(f"{path}: begins with the tensor '{next(iter(weights))}'; {_KNOWN_NAMES}")


def check_fit(expected, found, path):
    """Raise InputError where names or shapes of the tensors `found` are not those `expected`."""
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(f"{path}: the tensor '{name}' is missing")
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{path}: the tensor '{name}' is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            )
    for name in found:
        if name not in expected:
            raise InputError(f"{path}: the tensor '{name}' is unexpected in this architecture")
