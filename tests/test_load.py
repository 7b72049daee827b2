"""Checkpoints as they are out there: how they load, and what is said of those that do not."""

import collections
import copyreg
import pickle
import re
import zipfile
from argparse import Namespace
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from models import build_model
from models.load import load_model
from utils import InputError, save_model

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def tiny(arch="vdsr", **config):
    torch.manual_seed(1)
    return build_model({"arch": arch, "n_resblocks": 2, "n_feats": 6, **config})


def load(content, folder):
    torch.save(content, folder / "m.pth")
    return load_model(folder / "m.pth")


def refusal(path):
    """The one line that load_model says of `path`, after its name."""
    with pytest.raises(InputError) as error:
        load_model(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("config", [{}, {"arch": "edsr", "scale": 3, "res_scale": 0.5},
                                    {"arch": "edsr", "channels": 1}, {"arch": "edsr", "mean": [0.5, 0.25, 0.125]}])
def test_round_trip(tmp_path, config):
    model = tiny(**config)
    save_model(model, tmp_path / "m.pth")
    loaded, x = load_model(tmp_path / "m.pth"), torch.rand(1, model.channels, 6, 6)
    assert loaded.config == model.config and not loaded.training and torch.equal(loaded(x), model(x))


W = dict(tiny().state_dict())
ZERO = {name: 0 * tensor for name, tensor in W.items()}
prefixed = lambda prefix: {prefix + name: tensor for name, tensor in W.items()}


@pytest.mark.parametrize("content", [
    W, {"checkpoint": {"model": W}}, {"params": ZERO, "params_ema": W}, {"model": ZERO, "ema": {"module": W}},
    {"model": W, "net": {**W}}, {"state_dict": W, "discriminator": {"c.bias": W["tail.weight"]}},
    {"model": prefixed("model._orig_mod."), "config": "vdsr.yml"},
    {**prefixed("module."), "n_averaged": torch.tensor(3), "module.body.0.total_params": torch.zeros(1)},
    {"model": W, "config": {"arch": ["srcnn"]}, "best": np.float64(33.8), "args": Namespace(lr=1),
     "path": PurePosixPath("x"), "n": {PurePosixPath("k"): 1}, "history": collections.defaultdict(list, {"a": [1]})},
    collections.defaultdict(dict, {"model": W}), {name: tensor.double() for name, tensor in W.items()},
    {f"residual_layer.{name[5]}.conv.weight" if "body" in name else name.replace("head", "input").replace(
        "tail", "output"): tensor for name, tensor in W.items()},
    {"epoch": 50, "model": tiny()}, torch.optim.swa_utils.AveragedModel(tiny()), {"model": Namespace(net=tiny())}])
def test_one_dict_of_tensors_is_found(tmp_path, capsys, content):
    loaded = load(content, tmp_path)
    told = isinstance(content, dict) and "params_ema" in content
    assert ("'params_ema' is taken, not 'params'" in capsys.readouterr().out) == told
    assert loaded.config == {"arch": "vdsr", "n_resblocks": 2, "n_feats": 6}
    assert all(torch.equal(tensor, W[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("opcodes", [
    b"cos\nsystem\n(Vtouch {0}\ntR.", b"(Vtouch {0}\nios\nsystem\n.",
    b"c__builtin__\ngetattr\n(cos\nVsystem\ntR(Vtouch {0}\ntR.",
    b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93(Vtouch {0}\ntR.",
    b"cos\nsystem\n)\x81}}V__setstate__\ncos\nsystem\nsbVtouch {0}\nb.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(N}}V__name__\nV{0}\nstb.",
    b"ccollections\nOrderedDict\n(N}}V__init__\ncos\nsystem\nstb.",
    b"ctorch._utils\n_rebuild_parameter\n}}V__call__\ncos\nsystem\nsb.", b"\x82\xf0(Vtouch {0}\ntR.",
    b"(Vmodule\nctorch._utils\n_rebuild_tensor\nV{0}\nVanother\ntQ."], ids=range(10))
def test_a_hostile_pickle_does_nothing(tmp_path, opcodes):
    """Calls under several names, states that would replace methods, extension codes, dotted names."""
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    copyreg.add_extension("os", "system", 240)
    copyreg._extension_cache[240] = __import__("os").system
    try:
        opcodes = opcodes.replace(b"{0}", bytes(tmp_path / "made")).replace(b"}}", b"}")
        (tmp_path / "m.pth").write_bytes(header + opcodes + pickle.dumps([], 2))  # torch.save's legacy format
        refusal(tmp_path / "m.pth")
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert [*tmp_path.iterdir()] == [tmp_path / "m.pth"]
    torch.save(collections.OrderedDict(model=tiny()), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_model(tmp_path / "m.pth").head.weight, W["head.weight"])  # what is allowed is unchanged


def shift(offset):
    eye = torch.eye(len(offset))[..., None, None]
    return {"sub_mean.weight": eye, "sub_mean.bias": -offset, "add_mean.weight": eye, "add_mean.bias": offset}


@pytest.mark.parametrize("channels, offset, high, told", [
    (3, 255 * MEAN, 255, False), (3, MEAN, 1, False), (3, 127.5 * MEAN, 127.5, False),
    (3, 255 * torch.tensor([0.3, 0.35, 0.4]), 255, True), (3, torch.tensor([0.3, 0.35, 0.4]), 1, True),
    (3, torch.zeros(3), 255, True), (3, None, 1, True), (1, None, 255, True), (1, torch.tensor([100.0]), 255, True)])
def test_the_mean_shift_is_the_files_own(tmp_path, capsys, channels, offset, high, told):
    """Nor is the range of values: 0..255, 0..1 and others. None: super-image has EDSR-PyTorch's names and no shift."""
    model, x = tiny("edsr", channels=channels), torch.rand(1, channels, 7, 8)
    # A whole module has our shift in a buffer that the state_dict leaves out.
    loaded = load({"epoch": 50, "model": torch.nn.DataParallel(model)} if offset is None else
                  {**model.state_dict(), **shift(offset)}, tmp_path)
    mean = 0 if offset is None else offset[:, None, None]
    features = model.head(high * x - mean)  # in EDSR-PyTorch's order
    expected = (model.tail(features + model.body(features)) + mean) / high
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "res_scale 1.0" in said and (f"values in 0..{high}" in said) == told


@pytest.mark.parametrize("scale, up", [(2, r"upconv.\1"), (3, "upconv1"), (4, r"upsample.\1")])
def test_basicsr(tmp_path, scale, up):
    """Its mean shift is no part of its files, and is DIV2K's."""
    model, weights = tiny("edsr", scale=scale), {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in ((r"^head\.0", "conv_first"), (r"^body\.2", "conv_after_body"), (r"^tail\.0\.(.)", up),
                             (r"body\.0\.(?=\w+$)", "conv1."), (r"body\.2\.(?=\w+$)", "conv2."),
                             (r"^tail\.1", "conv_last")):
            name = re.sub(ours, theirs, name)
        weights[name] = tensor
    loaded, x = load({"params": weights}, tmp_path), torch.rand(1, 3, 5, 6)
    assert loaded.config == model.config and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("content, words", [
    ({k: v for k, v in W.items() if k != "body.0.weight"}, "'body.0.weight' is missing"),
    (W | {"tail.weight": torch.zeros(1, 7, 3, 3)}, "'tail.weight' is (1, 7, 3, 3), expected (1, 6, 3, 3)"),
    (W | {"extra.bias": torch.zeros(2)}, "'extra.bias' is unexpected"),
    ({"conv1.weight": torch.zeros(2)}, "begins with the tensor 'conv1.weight'; names known are"),
    (tiny("edsr").state_dict() | shift(MEAN) | {"sub_mean.weight": torch.eye(3)[..., None, None] / 2}, "sub_mean"),
    ({"model": W, "net": ZERO}, "under 'model' and 'net'"), ({"epoch": 3, "head.weight": 3}, "holds no weights"),
    (dict(enumerate(W.values())), "begins with the tensor '0'; names known are"),
    (W | {"head.weight": torch.tensor(1.0)}, "'head.weight' is (), expected (1, 1, 3, 3)"),
    (W | {"body.99999.weight": torch.zeros(6, 6, 3, 3)}, "'body.2.weight' is missing"),
    (W | {"head.weight": W["head.weight"] / 0}, "the tensor 'head.weight' is not finite"),
    (W | {"head.weight": W["head.weight"] * 1j}, "'head.weight' is torch.complex64, expected torch.float32"),
    (torch.zeros(3), "holds a Tensor, not a state dict"),
    (Namespace(lr=1), "holds a pickled 'argparse.Namespace', not weights"),
    ({"config": {"arch": "vdsr", "n_feats": 0}, "state_dict": W}, "no network can be made of its config"),
    ({"config": {"arch": "custom"}, "state_dict": W}, "--model")])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "m.pth")
    assert words in refusal(tmp_path / "m.pth")


def test_what_is_no_checkpoint_says_what_it_is(tmp_path):
    path = tmp_path / "m.pth"
    save_model(tiny(), path)
    whole = path.read_bytes()
    for content, words in ((b"\n<html>", r"begins with b'\n<html>'"), (b"", ")"), (whole[:9], ""), (whole[:-300], "")):
        path.write_bytes(content)
        message = refusal(path)
        assert message.startswith("cannot be read as a checkpoint (") and message.endswith(words)
    path.write_bytes(whole.replace(W["head.weight"].numpy().tobytes(), bytes(W["head.weight"].nbytes)))
    assert "is damaged at" in refusal(path)
    for names, words in ((["m.pth"], "zip archive; give"), (["m/constants.pkl", "m/data.pkl"], "TorchScript program")):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        assert words in refusal(path)
    for path in (tmp_path / "no.pth", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            load_model(path)


def test_safetensors(tmp_path):
    save_model(tiny(), tmp_path / "m.pth")  # whose weights are laid out channels last
    weights = torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"]
    pytest.importorskip("safetensors.torch").save_file(weights, tmp_path / "m.safetensors")
    assert torch.equal(load_model(tmp_path / "m.safetensors").head.weight, W["head.weight"])
