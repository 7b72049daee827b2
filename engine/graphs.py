"""Functions on the GPU, recorded once as CUDA graphs and replayed."""

import torch

from engine import parallel
from utils import InputError

WARM_UP = 3  # calls that run as they are: libraries choose their kernels and optimizers make their state in them


def eager(function, *arguments):
    """In the place of a Recorder where nothing is recorded: on the CPU, with --plain, in several processes."""
    return function(*arguments)


def recorder(device, plain=False):
    """How steps run fastest on the device: by a Recorder on one GPU, else by eager."""
    return Recorder(device) if device.type == "cuda" and parallel.world() == 1 and not plain else eager


class Recorder:
    """recorder(function, *arguments) is function(*arguments), from its fourth call on replayed as a CUDA graph.

    Tensors and Python floats among the arguments are inputs, which may change with every call; a torch.Generator goes
    on drawing from the seed it has. Everything else (networks, integers, names) belongs to the function: another value
    is another graph, so no number is frozen in one unnoticed. Give every number that changes as an argument, not by a
    closure. A result is a tensor or a tuple of tensors, copied out of the one pool of memory that all graphs share, since
    the next replay of any of them may write there. Raises InputError where a function cannot be recorded.
    """

    def __init__(self, device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.calls, self.graphs = {}, {}

    def __call__(self, function, *arguments):
        key = (function, *(_kind(argument) for argument in arguments))
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = function(*arguments)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if key not in self.graphs:
            self.graphs[key] = self._record(function, arguments)
        graph, places, outputs = self.graphs[key]
        for place, argument in zip(places, arguments):
            if isinstance(argument, torch.Tensor):
                place.copy_(argument)
            elif isinstance(argument, float):
                place.fill_(argument)
        graph.replay()
        return outputs.clone() if isinstance(outputs, torch.Tensor) else tuple(output.clone() for output in outputs)

    def _record(self, function, arguments):
        places, graph = [self._place(argument) for argument in arguments], torch.cuda.CUDAGraph()
        for argument in arguments:
            if isinstance(argument, torch.Generator):
                graph.register_generator_state(argument)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                outputs = function(*places)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a broken recording raises once more
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause
            raise InputError(f"{function.__name__} cannot be recorded as a CUDA graph ({str(cause).splitlines()[0]}); "
                             "--plain runs it unrecorded") from error
        return graph, places, outputs

    def _place(self, argument):
        """Where a graph reads the argument from."""
        if isinstance(argument, torch.Tensor):
            return argument.clone()
        return torch.tensor(argument, device=self.device) if isinstance(argument, float) else argument


def _kind(argument):
    """What of an argument a graph holds for good."""
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype
    return float if isinstance(argument, float) else argument
