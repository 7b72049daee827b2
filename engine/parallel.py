"""One run as several processes, a share of every batch each: torchrun --nproc_per_node=N train_teacher.py ...

All processes draw the same random numbers for the whole batch and keep their share of it, and losses are sums, so
that N processes make the same steps as one. The first of them, the leader, writes, prints and scores. Without
torchrun everything here does nothing.
"""

import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

# The others wait while the leader scores. A process that has died is noticed at once, not after this.
PATIENCE = timedelta(hours=4)


def join(device):
    """Find the other processes, where torchrun started any. Returns this one's device."""
    if world() == 1:
        return device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            from utils import InputError  # which imports this module
            raise InputError(f"--nproc_per_node: more processes than the {torch.cuda.device_count()} GPUs here")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def world():
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", 0))


def leader():
    """Whether this process is the one that writes, prints and scores."""
    return rank() == 0


def quiet():
    """tqdm's `disable`: None (on a terminal it shows) for the leader, True for the others."""
    return None if leader() else True


def share(size):
    """The slice of a batch of `size` that is this process's; shares differ by one at most."""
    return slice(size * rank() // world(), size * (rank() + 1) // world())


def total(tensor):
    """The sum of `tensor` over the processes, the same for all. Its gradient is that of this process's part."""
    if world() == 1:
        return tensor
    everywhere = tensor.detach().clone()
    dist.all_reduce(everywhere)
    return tensor + (everywhere - tensor.detach())


def largest(number):
    """The largest of the processes' integers."""
    if world() == 1:
        return number
    everywhere = torch.tensor(number)
    dist.all_reduce(everywhere, dist.ReduceOp.MAX)
    return everywhere.item()


def wait():
    """Until all processes are here."""
    largest(0)


def distributed(network):
    """`network` as one whose gradients are means over the processes; itself where there is one process."""
    if world() == 1:
        return network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions call broadcast_buffers something else
        return torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
