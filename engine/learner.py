"""A network that learns: distances, learning rates, Muon, and a step of descent in any precision.

A step can be recorded as a CUDA graph: rates, the loss's scale and what was not finite are tensors on the device.
"""

import math
import warnings

import torch

from engine import parallel
from utils import NotFinite

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LR = {"sgd": 0.1, "adam": 1e-3, "muon": 3e-3}  # each optimizer's usual learning rate
WEIGHT_DECAY = {"sgd": 1e-4, "adam": 0.0, "muon": 0.0}


def distance(loss_type):
    """D of the paper: "MSE" is the summed squared error, "L1" the summed absolute error, of float32."""
    size = {"MSE": torch.square, "L1": torch.abs}[loss_type]
    return lambda a, b: size(a.float() - b.float()).sum()


def decay(schedule, epochs_done, epochs, step=10):
    """The factor on a learning rate after `epochs_done` (a fraction, too) of `epochs` epochs.

    schedule: "step" divides by 10 every `step` epochs; "cosine" falls to 0; "trapezoid" does from half way, in a line.
    """
    done = min(epochs_done / epochs, 1)
    return {"step": 0.1 ** (int(epochs_done) // step), "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "trapezoid": min(1, 2 * (1 - done))}[schedule]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for the kernels `hidden`, Adam for the tensors `others`; torch.optim.Muon takes matrices only.

    The direction of a kernel (O, I, h, w) is its Nesterov momentum, made orthogonal as a matrix (O, I h w). lr is
    Muon's, with no factor by the matrix's shape; Adam's is a third of it. weight_decay is decoupled, as in AdamW.
    """

    _step_supports_amp_scaling = True  # GradScaler then leaves it to `found_inf` to skip a step, and waits for nothing

    def __init__(self, hidden, others, lr=LR["muon"], momentum=0.95, weight_decay=0.0):
        groups = [dict(params=[kernel for kernel in hidden if kernel.shape == shape], muon=True)  # one batched product
                  for shape in dict.fromkeys(kernel.shape for kernel in hidden)]
        groups += [dict(params=others, muon=False, lr=lr / 3)] if others else []
        # capturable: with the weights on a GPU, torch loads Adam's count of steps to there as well.
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, capturable=True))
        for weight in hidden:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        for weight in others:
            self.state[weight].update(step=weight.new_zeros(()), exp_avg=torch.zeros_like(weight),
                                      exp_avg_sq=torch.zeros_like(weight))

    @torch.no_grad()
    def step(self):
        go = 1 - getattr(self, "found_inf", 0)  # 0 where the gradient is not finite: then everything stays as it is
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad.nan_to_num(0, 0, 0) for weight in weights]
            if group["muon"]:
                buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
                nesterov = [gradient.lerp(buffer.lerp_(gradient, (1 - group["momentum"]) * go), group["momentum"])
                            for gradient, buffer in zip(gradients, buffers)]
                updates = orthogonalize(torch.stack(nesterov).flatten(2)).view(-1, *weights[0].shape)
            else:
                updates = [self._adam(self.state[weight], gradient, go) for weight, gradient in zip(weights, gradients)]
            for weight, update in zip(weights, updates):
                weight.sub_(group["lr"] * go * (update + group["weight_decay"] * weight))

    def _adam(self, state, gradient, go):
        state["step"] += go
        steps = state["step"].clamp(min=1)
        mean = state["exp_avg"].lerp_(gradient, 0.1 * go) / (1 - 0.9**steps)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 0.001 * go) / (1 - 0.999**steps)
        return mean / (square.sqrt() + 1e-8)


def orthogonalize(matrices, steps=5):
    """About the nearest matrices with orthonormal rows, (count, rows, columns), by Newton-Schulz (Jordan 2024)."""
    x = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-12)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):  # which bring singular values from 0.003 to 1 to between 0.7 and 1.2
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.mT if tall else x


def make_optimizer(network, name, lr=None, momentum=0.9, weight_decay=None):
    """The optimizer `name` ("sgd", "adam", "muon") of the network's parameters that learn.

    lr, weight_decay: by default LR[name] and WEIGHT_DECAY[name].
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    lr = LR[name] if lr is None else lr
    weight_decay = WEIGHT_DECAY[name] if weight_decay is None else weight_decay
    if name == "muon":  # for every convolution kernel but the first and the last
        kernels = [weight for weight in weights if weight.dim() == 4][1:-1]
        among = set(kernels)
        return Muon(kernels, [weight for weight in weights if weight not in among], lr, weight_decay=weight_decay)
    fused = weights[0].device.type in ("cpu", "cuda")
    if name == "adam":
        # Its first steps run unrecorded, of which PyTorch warns.
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        return torch.optim.Adam(weights, lr, weight_decay=weight_decay, fused=fused, capturable=weights[0].is_cuda)
    optimizer = torch.optim.SGD(weights, lr, momentum, weight_decay=weight_decay, fused=fused)
    if momentum:  # or the fused step takes the buffers' memory as it is where the first update is skipped
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def autocast(device, precision):
    """The context in which networks on that device compute in that precision (see DTYPES)."""
    return torch.autocast(device.type, DTYPES[precision], enabled=DTYPES[precision] != torch.float32)


class Learner:
    """A network of float32 weights and its optimizer. clip: the gradient's largest norm. loss: its name in errors."""

    def __init__(self, network, optimizer, precision="fp32", clip=math.inf, loss="the loss"):
        self.network, self.optimizer, self.precision, self.clip, self.loss = network, optimizer, precision, clip, loss
        parallel.broadcast(network)
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.device = self.weights[0].device
        self.failure = torch.zeros(2, device=self.device)  # the first loss and gradient's norm that are not both finite
        # Summed losses have large gradients, which overflow fp16 in the first steps unless the scale begins small. In
        # other precisions it stays 1, and the scaler only keeps what is not finite from the weights.
        scale, steps, least = (2.0**-8, 100, 2.0**-24) if precision == "fp16" else (1.0, 2**31 - 1, 1.0)
        self.least_scale = least  # at and below, an overflow is not put down to the scale
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale, growth_interval=steps,
                                           enabled=self.device.type in ("cpu", "cuda"))
        for group in optimizer.param_groups:  # tensors, which a recorded step reads anew every time
            group["initial_lr"], group["lr"] = group["lr"], torch.tensor(group["lr"], device=self.device)

    def set_rate(self, factor):
        """Make the learning rates `factor` times those that the optimizer was made with."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(factor * group["initial_lr"])

    def step(self, loss):
        """One step to lower `loss`; none where loss or gradient is not finite. Returns its sum over the processes."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward(inputs=self.weights)  # no other network's, through which the loss may go
        loss = parallel.all_reduce_gradients(self.weights, loss.detach())
        # A loss that is not finite makes a gradient not finite, of L1 too, so that the step is left out.
        next(weight.grad for weight in self.weights if weight.grad is not None).add_(0 * loss)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        # Remembered is the first loss or gradient that is not finite; of an fp16 gradient, once its scale is no excuse.
        small = self.scaler.scale(torch.ones((), device=self.device)) <= self.least_scale
        failed = ~torch.isfinite(loss) | (~torch.isfinite(norm) & small)
        first = failed & self.failure.isfinite().all()
        self.failure.copy_(torch.where(first, torch.stack((loss, norm)), self.failure))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not loss.is_cuda:
            self.check()
        return loss

    def check(self):
        """Raise NotFinite where a loss or gradient was not finite. Waits for the GPU."""
        loss, norm = self.failure.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(f"{self.loss} is {loss:g}, its gradient's norm {norm:g}")

    def state_dict(self):
        """What load_state_dict needs. Raises NotFinite as check() does: such a state is not to be saved."""
        self.check()
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()["state"],
                "lr": [group["lr"] for group in self.optimizer.param_groups], "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state):
        """The state_dict of a learner of such a network. Raises RuntimeError, KeyError, ValueError on another's."""
        self.network.load_state_dict(state["network"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for group, lr in zip(self.optimizer.param_groups, state["lr"]):
            group["lr"].fill_(lr)
        if state["scaler"].get("growth_interval") == self.scaler.state_dict().get("growth_interval"):
            self.scaler.load_state_dict(state["scaler"])  # else it is of another precision


def train_step(learner, inputs, target, D):
    """One step of a learner to lower D(network(inputs), target). Returns the loss per element of the target."""
    learner.network.train()
    with autocast(inputs.device, learner.precision):
        output = learner.network(inputs)
    return learner.step(D(output, target)) / (target.numel() * parallel.world_size())
