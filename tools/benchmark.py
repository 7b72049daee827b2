"""How fast the parts are on this machine.

    python -m tools.benchmark                    # every part
    python -m tools.benchmark --against-plain    # the same in float32 without CUDA graphs, and the speed-up
    python -m tools.benchmark --sweep            # a student step as batch, patch, depth and width grow
"""

from statistics import median
from timeit import Timer

import torch

from bicubic import imresize
from engine.graphs import eager, recorder
from engine.learner import Learner, autocast, distance, make_optimizer, train_step
from engine.options import Parser, best_precision, count, threads
from models import PRESETS, Generator, build_model
from utils import choose_device, device_name, run_script, set_up_device

SWEEP = {"batch": (4, 8, 16, 32, 64, 128), "patch": (24, 48, 96, 192), "depth": (2, 6, 10, 18),
         "width": (16, 32, 64, 128)}


def milliseconds(function, device, least=0.5):
    """Median time of a call, of at least 3 and about `least` seconds of them, after a warm-up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timer = Timer(lambda: (function(), wait()))
    timer.timeit(5 if device.type == "cuda" else 1)  # graphs are recorded at the fourth call
    calls = max(3, round(least / timer.timeit(1)))
    return 1000 * median(timer.repeat(calls, 1))


def student_step(call, device, precision, batch, patch=48, depth=18, width=32):
    """A function of nothing that trains a student of that depth and width for one step."""
    student = build_model({"arch": "vdsr", "n_resblocks": depth, "n_feats": width}).to(device)
    learner = Learner(student, make_optimizer(student, "sgd", lr=0.0), precision)  # on noise it might diverge
    x, D = torch.rand(batch, 1, patch, patch, device=device), distance("MSE")
    return lambda: call(train_step, learner, x, x, D)


def parts(call, device, precision, batch):
    """{part: a function of nothing that does it once}. call: of engine.graphs, eager or a recorder."""
    teacher, generator = build_model(PRESETS["vdsr"]).to(device), Generator(256, 24).to(device)
    x, z = torch.rand(batch, 1, 48, 48, device=device), torch.randn(batch, 256, device=device)

    @torch.no_grad()
    def label(x):
        with autocast(device, precision):
            return teacher(x)

    @torch.no_grad()
    def draw(z):
        return imresize(generator(z), 2)

    return {"teacher forward": lambda: call(label, x),
            "student step, inputs and targets given": student_step(call, device, precision, batch),
            "generator and bicubic x2": lambda: call(draw, z)}


def main(args):
    device, batch = choose_device(args.device), args.batchSize
    set_up_device(device, args.threads)
    precision = best_precision(device)
    print(f"{device_name(device)}, {precision}, batch {batch} of 48x48")
    if args.sweep:
        for name, sizes in SWEEP.items():
            steps = (student_step(recorder(device), device, precision, **{"batch": batch, name: n}) for n in sizes)
            print(name, "; ".join(f"{n}: {milliseconds(step, device):.1f} ms" for n, step in zip(sizes, steps)))
        return
    plain = args.against_plain and parts(eager, device, "fp32", batch)
    for name, function in parts(recorder(device), device, precision, batch).items():
        ms = milliseconds(function, device)
        line = f"{name:40} {ms:9.2f} ms {1000 * batch / ms:9.0f} images/s"
        if args.against_plain:
            plain_ms = milliseconds(plain[name], device)
            line += f"   plain {plain_ms:9.2f} ms, {plain_ms / ms:.1f} times"
        print(line, flush=True)


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--against-plain", action="store_true", help="beside float32 without CUDA graphs")
    add("--sweep", action="store_true", help="one size at a time")
    add("--batchSize", type=count, default=16, help="images a step")
    add("--threads", type=threads, default=0, help="CPU threads; 0: as many as cores")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, parse_arguments())
