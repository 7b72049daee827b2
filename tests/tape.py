"""A stand-in for CUDA graphs on the CPU: what a step does is written down once and done again and again."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.learner import Learner


class Tape(TorchDispatchMode):
    """In the place of torch.cuda.CUDAGraph and, as a context manager, torch.cuda.graph: operations on given memory.

    Numbers of Python stay what they were, only tensors and registered generators change; what is written or drawn
    meanwhile is taken back; a step that reads a value is refused.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.generators = [], {}, {}

    def register_generator_state(self, generator):
        self.generators[generator] = generator.get_state()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the step waits for the device")
        drawn = kwargs.get("generator")
        if drawn and drawn.initial_seed() not in map(torch.Generator.initial_seed, self.generators):
            raise RuntimeError("the step draws from a generator that is none of its arguments")
        for argument, given in zip(function._schema.arguments, args):
            if argument.is_write:
                for tensor in tree_leaves(given):
                    storage = tensor.untyped_storage()
                    self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        outputs = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, outputs))
        return outputs

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for storage, content in self.before.values():
            storage.copy_(content)
        for generator, state in self.generators.items():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, outputs in self.calls:
            for place, value in zip(tree_leaves(outputs), tree_leaves(function(*args, **kwargs))):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():  # no view, not in place
                    place.copy_(value)


@contextlib.contextmanager
def tapes_for_graphs():
    """While it lasts, a Recorder works on the CPU, by tapes. Yields a list of all the tapes."""
    tapes = []
    fakes = dict(CUDAGraph=lambda: tapes.append(Tape()) or tapes[-1],
                 graph=lambda tape, pool, stream: tape, graph_pool_handle=mock.MagicMock,
                 Stream=mock.MagicMock, current_stream=mock.MagicMock, stream=contextlib.nullcontext)
    # On the CPU a step looks at once for what is not finite.
    with mock.patch.multiple(torch.cuda, **fakes), mock.patch.object(Learner, "check"):
        yield tapes
