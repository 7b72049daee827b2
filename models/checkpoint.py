"""Read a checkpoint file without running code from it."""

import pickle
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import torch

from utils import InputError, refusing


def read_checkpoint(path):
    """What torch.save or safetensors wrote to `path`, on the CPU. Never runs code from the file.

    Raises InputError where it is another file, OSError where there is none.

    Objects other than dense tensors and plain containers come as StandIn.
    """
    with open(path, "rb") as file:
        head = file.read(40)
    begins = f"; it begins with {head!r}" if head[:2] not in (b"", b"PK") else ""  # a web page is known by that
    with refusing(f"{path}: cannot be read as a checkpoint", begins):
        if head[8:9] == b"{":  # safetensors: a header in JSON after its length
            from safetensors.torch import load_file
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_zip(path)
        load = lambda file, **options: _InertUnpickler(file, **options).load()
        inert = SimpleNamespace(__name__="inert", Unpickler=_InertUnpickler, load=load)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)


def _check_zip(path):
    """Raise InputError where a zip archive is not torch.save's, or damaged, which torch.load does not see."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise InputError(f"{path}: is a TorchScript program; save the state_dict() of its network")
        if "data.pkl" not in names:
            raise InputError(f"{path}: is a zip archive; give the checkpoint in it")
        if damaged := archive.testzip():
            raise InputError(f"{path}: is damaged at {damaged}")


class StandIn(dict):
    """In place of an object, it does nothing: the items of a dict and the attributes; of a module, its state_dict()."""

    stands_for = ""
    dump_patches = False  # else torch.load may write how a module's source code has changed to a file
    __hash__, __eq__ = object.__hash__, object.__eq__
    __init__ = append = lambda self, *args, **kwargs: None  # what it is called with, and a list's items, are not kept


class _InertUnpickler(pickle._Unpickler):
    """Calls nothing but StandIn and what is KNOWN, and sets the state of StandIns alone.

    Python's unpickler, not C's, so that load_build can be replaced.
    """

    get_extension = None  # it would call what is registered with copyreg
    KNOWN = {
        "__builtin__.set": set,
        "collections.OrderedDict": OrderedDict,  # Python 2 gives its items to the constructor
        "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": lambda *args: torch._utils._rebuild_tensor(*args[:4]),
        "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
        **dict.fromkeys(("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
                         "torch.nn.parameter.Parameter", "torch.autograd.variable.Variable"),  # the last: before 0.4
                        lambda tensor, *_: tensor),
    }

    def find_class(self, module, name):
        return self.KNOWN.get(f"{module}.{name}") or type("StandIn", (StandIn,), {"stands_for": f"{module}.{name}"})

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, StandIn) and isinstance(state, dict):
            if state.keys() >= {"_parameters", "_buffers", "_modules"}:
                made.update(state["_parameters"] | state["_buffers"])
                for name in state.get("_non_persistent_buffers_set", ()):
                    made.pop(name, None)
                for name, inner in state["_modules"].items():  # they are built before what they are in
                    made.update({f"{name}.{key}": value for key, value in (inner or {}).items()})
            else:
                made.update(state)

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}
