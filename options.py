"""The flags both scripts have, and what they say about loss, optimiser and schedule."""

import math

import torch
from torch.nn.utils import clip_grad_norm_

from utils import InputError, NotFinite, choose_device, set_up_cpu


def add_shared_flags(parser, output):
    """The flags both scripts have, the reference's and ours. output: default of --output."""
    add = parser.add_argument
    add("--model_type", choices=("origin", "half"), help="full width, or half of it")
    add("--batchSize", type=int, default=128, help="images a step")
    add("--nEpochs", type=int, help="epochs in all")
    add("--iter", type=int, help="rounds an epoch")
    add("--optimizer", choices=("sgd", "adam"), default="sgd")
    add("--lr", type=float, help="learning rate (default 0.1 for sgd, 1e-3 for adam)")
    add("--schedule", choices=("step", "cosine"), default="step", help="how learning rates fall")
    add("--step", type=int, default=10, help="step schedule: a tenth of the rate every so many epochs")
    add("--clip", type=float, default=0.4, help="largest norm of the gradient")
    add("--momentum", type=float, default=0.9, help="of sgd")
    add("--weight-decay", "--wd", type=float, help="default 1e-4 for sgd, 0 for adam")
    add("--loss_type", choices=("MSE", "L1"), help="summed squared or absolute error")
    add("--scale", type=int, choices=(0, 2, 3, 4), default=0, help="0: 2, 3 and 4 at random")
    add("--start-epoch", type=int, default=1, help="begin at this epoch of the schedules")
    add("--resume", metavar="CHECKPOINT",
        help="go on from this checkpoint.pth; auto: from the newest in --save_dir, if any")
    add("--checkpoint_every", type=float, default=5, metavar="MINUTES", help="besides after every epoch")
    add("--threads", type=int, default=0, help="CPU threads (0: as many as cores)")
    add("--val_dataset", help="set scored after each epoch (default Set5)")
    add("--data_test", metavar="A+B", help="sets scored at the end (default: all found)")
    add("--data_dir", "--tmp_data_dir", default="datasets", help="folder of the image sets")
    add("--save_dir", "--tmp_save_dir",
        help="folder for all that the run leaves (default runs/<script>, with --test_only runs/<script>_test)")
    add("--output", default=output, help="where the trained network goes besides")
    add("--test_only", action="store_true", help="score, do not train")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def settle_shared_flags(args, script):
    """Fill in the defaults that depend on other flags, and apply --device and --threads."""
    args.save_dir = args.save_dir or f"runs/{script}" + ("_test" if args.test_only else "")
    sgd = args.optimizer == "sgd"
    args.lr = args.lr if args.lr is not None else (0.1 if sgd else 1e-3)
    args.weight_decay = args.weight_decay if args.weight_decay is not None else (1e-4 if sgd else 0.0)
    args.device = choose_device(args.device)
    set_up_cpu(args.threads)


def make_optimizer(args, parameters):
    """The optimiser of --optimizer, --lr, --momentum and --weight-decay."""
    if args.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=args.lr, weight_decay=args.weight_decay)
    return torch.optim.SGD(parameters, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)


def decay(args, epochs_done, epochs):
    """The factor on a learning rate after `epochs_done` (a fraction, too) of `epochs` epochs."""
    if args.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epochs_done / epochs, 1)))
    return 0.1 ** (int(epochs_done) // args.step)


def set_learning_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def distance(loss_type):
    """D of the paper: "MSE" is the summed squared error, "L1" the summed absolute error."""
    if loss_type == "MSE":
        return lambda a, b: (a - b).square().sum()
    return lambda a, b: (a - b).abs().sum()


def descend(loss, optimizer, clip, name):
    """One step of `optimizer` down `loss`, its gradient's norm clipped at `clip`.

    Raises NotFinite before the update where the loss (called `name`) or its gradient is not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    norm = clip_grad_norm_(parameters, clip)
    if not torch.isfinite(loss + norm):
        raise NotFinite(f"{name} is {loss.item():g}, its gradient's norm {norm.item():g}")
    optimizer.step()
