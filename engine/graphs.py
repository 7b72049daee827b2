"""Functions on the GPU, recorded once as CUDA graphs and replayed."""

from collections import Counter

import torch

from engine import parallel
from utils import InputError

WARM_UP = 3  # calls that run as they are: libraries choose their kernels and optimizers make their state in them


def eager(function, *arguments):
    """In the place of a Recorder where nothing is recorded: on the CPU, with --plain, in several processes."""
    return function(*arguments)


def recorder(device, plain=False):
    """How steps run fastest on the device: by a Recorder on one GPU, else by eager."""
    return Recorder(device) if device.type == "cuda" and parallel.world_size() == 1 and not plain else eager


class Recorder:
    """recorder(function, *arguments) is function(*arguments), from its fourth call on replayed as a CUDA graph.

    Inputs, which may change with every call, are tensors, floats (made tensors) and torch.Generators, drawn from by the
    seeds they have. All else (networks, integers, names) belongs to the function: another value is another graph. Give
    every number that changes as an argument: one of a closure stays what it was. Returns a tensor, a copy, since all
    graphs share one pool of memory. Raises InputError where a function cannot be recorded.
    """

    def __init__(self, device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.calls, self.graphs = Counter(), {}

    def __call__(self, function, *arguments):
        arguments = [torch.full((), argument, device=self.device) if isinstance(argument, float) else argument
                     for argument in arguments]
        key = (function, *((argument.shape, argument.dtype) if isinstance(argument, torch.Tensor) else argument
                           for argument in arguments))
        self.calls[key] += 1
        if self.calls[key] <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                output = function(*arguments)
            torch.cuda.current_stream().wait_stream(self.stream)
            return output
        if key not in self.graphs:
            self.graphs[key] = self._record(function, arguments)
        graph, places, output = self.graphs[key]
        for place, argument in zip(places, arguments):
            if isinstance(argument, torch.Tensor):
                place.copy_(argument)
        graph.replay()
        return output.clone()

    def _record(self, function, arguments):
        graph = torch.cuda.CUDAGraph()
        places = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        for argument in arguments:
            if isinstance(argument, torch.Generator):
                graph.register_generator_state(argument)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                output = function(*places)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a broken recording raises once more
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause
            raise InputError(f"{function.__name__} cannot be recorded as a CUDA graph ({str(cause).splitlines()[0]}); "
                             "--plain runs it unrecorded") from error
        return graph, places, output
