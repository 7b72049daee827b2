"""One run as several processes, a shard of every batch each: torchrun --nproc_per_node=N train_teacher.py ...

All draw the same random numbers for the whole batch and keep their shard of it, and losses are sums, so that they make
the same steps as one process. The main process, of rank 0, writes, prints and scores. Without torchrun it is alone.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

WAIT_TIMEOUT = timedelta(hours=24)  # of those that wait while the main one scores; one that has died is noticed at once
STEP_TIMEOUT = timedelta(minutes=10)  # of a step on GPUs, where another process that is gone is noticed only so
_waiting_group = None  # the process group, of gloo, in which processes wait for one another


def init_process_group(device):
    """Find the other processes, where torchrun started any. device: this process's."""
    global _waiting_group
    if world_size() > 1:
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=STEP_TIMEOUT if on_gpu else WAIT_TIMEOUT)
        _waiting_group = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT) if on_gpu else None


def world_size():
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main():
    """Whether this process is the one that writes, prints and scores."""
    return rank() == 0


def quiet():
    """tqdm's `disable`: None (on a terminal it shows) for the main process, True for the others."""
    return None if is_main() else True


def shard(size):
    """The slice of a batch of `size` that is this process's, as large as any other's."""
    return slice(size * rank() // world_size(), size * (rank() + 1) // world_size())


def all_reduce(tensor):
    """The sum of `tensor` over the processes, the same for all. Its gradient is that of this process's part."""
    if world_size() == 1:
        return tensor
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return tensor + (summed - tensor.detach())


def all_reduce_gradients(weights, loss):
    """Sum the weights' gradients, in place, and `loss` over the processes, in one message. Returns the losses' sum."""
    if world_size() == 1:
        return loss
    parts = [loss.clone(), *(weight.grad for weight in weights if weight.grad is not None)]
    message = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(message)
    for part, summed in zip(parts, message.split([part.numel() for part in parts])):
        part.copy_(summed.view_as(part))
    return parts[0]


def broadcast(network):
    """Give the network of every process the main one's weights and buffers."""
    for tensor in network.state_dict().values() if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def all_reduce_max(number):
    """The largest of the processes' integers."""
    maximum = torch.tensor(number)
    if world_size() > 1:
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=_waiting_group)
    return maximum.item()


def barrier():
    """Until all processes are here."""
    all_reduce_max(0)
