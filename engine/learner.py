"""What training steps are made of: the distance D, learning rates, descent, half precision, CUDA graphs.

On a GPU a step is some hundreds of short kernels. Recorded once as a CUDA graph they run back to back, which
takes that nothing in a step waits for the GPU or depends on the host: learning rates, the scale of the loss and
what was not finite are tensors on the device. The same steps, unrecorded, serve the CPU and `--plain`.
"""

import contextlib
import copy
import math
import warnings

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from engine import parallel
from utils import NotFinite

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Of the loss in fp16. Summed losses have large gradients, which overflow in the first steps unless they are
# scaled down; then the scale grows back to 1, doubling in a hundred steps, lest the small gradients of a student
# that is nearly right are rounded off.
_FIRST_SCALE, _LEAST_SCALE, _GROWTH = 2.0**-8, 2.0**-24, 2.0 ** (1 / 100)


def distance(loss_type):
    """D of the paper: "MSE" is the summed squared error, "L1" the summed absolute error."""
    if loss_type == "MSE":
        return lambda a, b: (a - b).square().sum()
    return lambda a, b: (a - b).abs().sum()


def decay(args, epochs_done, epochs):
    """The factor on a learning rate after `epochs_done` (a fraction, too) of `epochs` epochs."""
    if args.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epochs_done / epochs, 1)))
    return 0.1 ** (int(epochs_done) // args.step)


def lowered(network, dtype):
    """A copy of `network` whose convolutions and linear layers are of `dtype`; itself for float32."""
    if dtype == torch.float32:
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    return network


@contextlib.contextmanager
def frozen(network):
    """While it lasts, no gradient goes to the network's weights; through the network it does."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def make_optimizer(args, parameters):
    """The optimiser of --optimizer, --momentum and --weight-decay. Learner sets its learning rate."""
    if args.optimizer == "adam":
        return adam(parameters, args.weight_decay)
    optimizer = torch.optim.SGD(parameters, momentum=args.momentum, weight_decay=args.weight_decay, fused=True)
    if args.momentum:  # or the fused step takes the buffers' memory as it is where the first update is skipped
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def adam(parameters, weight_decay=0.0):
    """Adam that can be recorded in a CUDA graph."""
    parameters = list(parameters)
    # Its first steps run unrecorded, of which PyTorch warns.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    return torch.optim.Adam(parameters, weight_decay=weight_decay, fused=True, capturable=parameters[0].is_cuda)


class Learner:
    """A network that learns: `master`, its weights in float32, `network`, what computes, and the optimiser.

    For bf16 and fp16 `network` is a copy in that precision, made again from the master after each update; for
    float32 it is the master. loss: the loss's name, for NotFinite. clip: the largest norm of the gradient.
    Called, a learner computes what its network does.
    """

    def __init__(self, master, optimizer, dtype=torch.float32, clip=math.inf, loss="the loss"):
        self.master, self.optimizer, self.clip, self.loss = master, optimizer, clip, loss
        self.network = lowered(master, dtype)
        self.everywhere = parallel.distributed(self.network)
        self.scaled = dtype == torch.float16
        self.weights, self.computing = list(master.parameters()), list(self.network.parameters())
        # Pairs by the type they compute in, all of one list for the fused copy.
        self.pairs = [[pair for pair in zip(self.computing, self.weights) if pair[0].dtype == kind]
                      for kind in {weight.dtype for weight in self.computing}]
        device = self.weights[0].device
        self.rate = torch.zeros((), device=device)
        self.scale = torch.full((), _FIRST_SCALE if self.scaled else 1.0, device=device)
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.found = torch.zeros(2, device=device)
        self._own_rate()

    def _own_rate(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def __call__(self, inputs):
        return self.everywhere(inputs)

    def set_rate(self, rate):
        """The learning rate of the steps to come."""
        self.rate.fill_(rate)

    def descend(self, loss):
        """One step down `loss`, the gradient's norm clipped; none where loss or gradient is not finite.

        Returns the loss, detached, the sum over the processes where there are several.
        """
        self.network.zero_grad()
        (self.scale * parallel.world() * loss).backward()  # of which the processes take the mean
        loss = parallel.total(loss.detach())
        if self.network is not self.master:
            for weight, computing in zip(self.weights, self.computing):
                weight.grad = computing.grad.to(weight.dtype)
        norm = get_total_norm([weight.grad for weight in self.weights]) / self.scale
        self._judge(loss, norm)
        self.optimizer.step()
        if self.network is not self.master:
            self._lower()
        if not loss.is_cuda:
            self.check()
        return loss

    @torch.no_grad()
    def _judge(self, loss, norm):
        """Tell the fused optimiser what to divide the gradient by, and whether to skip this update."""
        overflow, lost = ~torch.isfinite(norm), ~torch.isfinite(loss)
        # Divided by the loss's scale and, where the norm is above `clip`, by how far it is.
        self.optimizer.grad_scale = self.scale * ((norm + 1e-6) / self.clip).clamp(min=1)
        self.optimizer.found_inf = (overflow | lost).float()
        self.found.copy_(torch.where(self.failed, self.found, torch.stack((loss, norm))))
        if self.scaled:  # fp16: an overflow is no failure while a smaller scale may cure it
            self.failed |= lost | (overflow & (self.scale <= _LEAST_SCALE))
            self.scale.copy_(torch.where(overflow, self.scale / 2, (self.scale * _GROWTH).clamp(max=1)))
        else:
            self.failed |= lost | overflow

    @torch.no_grad()
    def _lower(self):
        for pairs in self.pairs:
            torch._foreach_copy_(*zip(*pairs))

    def check(self):
        """Raise NotFinite where a loss or gradient was not finite. Waits for the GPU."""
        if self.failed:
            loss, norm = self.found.tolist()
            raise NotFinite(f"{self.loss} is {loss:g}, its gradient's norm {norm:g}")

    def state_dict(self):
        """What besides the master's weights a resumed run needs."""
        return {"state": self.optimizer.state_dict()["state"], "scale": self.scale}

    def load_state_dict(self, state):
        """The state_dict of a learner of the same network; the master's weights are in their place already."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        self._own_rate()
        if self.scaled:
            self.scale.copy_(state["scale"])
        if self.network is not self.master:
            self._lower()


class Recorded:
    """`step`, a function of tensors that returns tensors, as CUDA graphs, one for each shape of its inputs.

    The first calls run it as it is, since libraries choose their kernels and optimisers make their state in
    them; then it is recorded, and from there on replayed. What it returns is overwritten by the next call.
    """

    WARM_UP = 3

    def __init__(self, step):
        self.step, self.stream = step, torch.cuda.Stream()
        self.calls, self.graphs = {}, {}

    def __call__(self, *inputs):
        shape = tuple(tensor.shape for tensor in inputs)
        self.calls[shape] = self.calls.get(shape, 0) + 1
        if self.calls[shape] <= self.WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.step(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if shape not in self.graphs:
            self.graphs[shape] = self._record(inputs)
        graph, places, outputs = self.graphs[shape]
        for place, tensor in zip(places, inputs):
            place.copy_(tensor)
        graph.replay()
        return outputs

    def _record(self, inputs):
        places, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            outputs = self.step(*places)
        return graph, places, outputs


def recorded(step, args):
    """`step` as it runs fastest on the run's device: Recorded on one GPU, unless --plain; else itself."""
    alone = args.device.type == "cuda" and parallel.world() == 1
    return Recorded(step) if alone and not args.plain else step
