"""How fast the parts are on this machine, and how far from what the machine can do.

    python -m tools.benchmark                    # every part; the 291 images or scikit-image's pictures
    python -m tools.benchmark --against-plain    # the same in float32 without CUDA graphs, and the speed-up
    python -m tools.benchmark --sweep            # the student step as batch, patch, depth and width grow

The floor of a part: every convolution and matrix product at the machine's measured rate of matrix products, or
of copying where its operands take longer to read and write once; everything else counts as free.
"""

import argparse
import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bicubic import imresize
from data.benchmark import Benchmarks, choose_sets, prepare, upscale
from data.images import find_training_images
from data.patches import TrainingPatches
from data.sources import Generators
from distillation import generator_step, make_learner, parse_arguments, student_step
from models import VDSR, build_model, half_width
from engine.options import set_up_device
from engine.learner import DTYPES, distance, lowered, recorded
from utils import InputError, choose_device, device_name

# What --sweep varies. The batch as multiples of --batchSize: 32 to 1024 on CUDA.
SWEEP = {"batch": (1 / 4, 1 / 2, 1, 2, 4, 8), "patch": (24, 48, 96, 192), "depth": (2, 6, 10, 18),
         "width": (16, 32, 64, 128)}


def milliseconds(function, device, least=0.5):
    """Median time of a call, of at least 3 and `least` seconds of them, after a warm-up."""
    cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(5 if cuda else 1):  # graphs are recorded at the fourth call
        function()
    wait()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < least:
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def rates(device, precision):
    """(operations a second in a large matrix product, bytes a second in a large copy)."""
    dtype, matmul = DTYPES[precision], torch.backends.cuda.matmul
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    source = torch.randn(2**27 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    matmul.allow_tf32 = precision == "tf32"
    product = milliseconds(lambda: a @ b, device)
    matmul.allow_tf32 = False
    return 2 * n**3 / product * 1000, 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device) * 1000


class Floor(TorchDispatchMode):
    """While it lasts, adds up in `ms` what the matrix operations that are run would take at these rates.

    They are counted in float32 on the plain path; width: bytes of a value where it counts.
    """

    def __init__(self, operations, copying, width):
        super().__init__()
        self.operations, self.copying, self.width, self.ms = operations, copying, width, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if count:
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            values = sum(t.numel() for t in (*args, *outputs) if isinstance(t, torch.Tensor))
            flops = count(*args, **(kwargs or {}), out_val=output)
            self.ms += 1000 * max(flops / self.operations, self.width * values / self.copying)
        return output


class Parts:
    """The parts of a distillation at one size, as functions of nothing."""

    def __init__(self, args, depth=18, width=32):
        torch.manual_seed(0)
        dtype, D = DTYPES[args.precision], distance("MSE")
        teacher = VDSR(depth, 2 * width).to(args.device, memory_format=torch.channels_last).requires_grad_(False)
        self.student = make_learner(args, build_model(half_width(teacher.config)).to(args.device))
        self.student.set_rate(1e-3)
        generators = Generators(args, (2,), teacher)
        teacher, side = lowered(teacher, dtype), args.input_size
        generators.learn_by(lambda g, z, s: generator_step(g, self.student, teacher, z, s, D, 1.0, 1.0))
        x = torch.rand(args.batchSize, 1, side, side, device=args.device)
        small = torch.rand(args.batchSize, 1, side // 2, side // 2, device=args.device)
        take_step = recorded(lambda x: student_step(self.student, teacher, x, D), args)
        forward = recorded(torch.no_grad()(lambda x: teacher(x)), args)
        there_and_back = recorded(self._there_and_back, args)
        resized = recorded(lambda x: imresize(x, 2), args)
        self.functions = {
            "student step": lambda: take_step(x),
            "generator step": lambda: generators.step(2, 0, 1e-5),
            "teacher forward": lambda: forward(x),
            "student forward and backward": lambda: there_and_back(x),
            "generator": lambda: generators.draw(2, 0),
            "bicubic x2": lambda: resized(small),
        }

    def _there_and_back(self, x):
        self.student.network.zero_grad()
        self.student(x).square().sum().backward()
        return x


def settings(device, precision, plain, batch, patch=48):
    """The flags of a distillation with these, the paper's otherwise."""
    args = parse_arguments([f"--batchSize={batch}", f"--input_size={patch}"])
    args.device, args.plain, args.lr, args.weight_decay = device, plain, 0.1, 1e-4
    args.precision = precision
    set_up_device(args)
    return args


def measure(args, depth=18, width=32, only=None):
    """{part: ms}."""
    functions = Parts(args, depth, width).functions
    return {name: milliseconds(function, args.device) for name, function in functions.items()
            if only in (None, name)}


def floors(args, speed, depth=18, width=32, only=None):
    """{part: ms}, at speed = rates(...) of the precision in args."""
    functions = Parts(settings(args.device, "fp32", True, args.batchSize, args.input_size), depth, width).functions
    result = {}
    for name, function in functions.items():
        if only in (None, name):
            with Floor(*speed, DTYPES[args.precision].itemsize) as floor:
                function()
            result[name] = floor.ms
    set_up_device(args)
    return result


def print_parts(args, against_plain):
    speed = rates(args.device, args.precision)
    print(f"matrix products {speed[0] / 1e12:.2f} TFLOP/s in {args.precision}, copies {speed[1] / 1e9:.0f} GB/s")
    print(f"batch {args.batchSize}, {args.input_size}x{args.input_size}, depth 18, student of 32 channels")
    least, measured = floors(args, speed), measure(args)
    plain = {}
    if against_plain:
        plain = measure(settings(args.device, "fp32", True, args.batchSize, args.input_size))
    print(f"{'':30}{'ms':>9}{'images/s':>11}{'floor':>9}{'ratio':>8}" + f"{'plain':>10}{'faster':>8}" * bool(plain))
    for name, ms in measured.items():
        line = f"{name:30}{ms:9.3f}{1000 * args.batchSize / ms:11,.0f}{least[name]:9.3f}{ms / least[name]:8.1f}"
        print(line + (f"{plain[name]:10.3f}{plain[name] / ms:8.2f}" if plain else ""), flush=True)


def print_loader(args, data_dir):
    began = time.perf_counter()
    try:
        paths = find_training_images(data_dir)
    except InputError:
        paths = find_training_images("skimage")
    patches = TrainingPatches(paths, (2, 3, 4), args.input_size, seed=1, device=args.device)
    ready, steps = time.perf_counter() - began, iter(range(10**9))
    ms = milliseconds(lambda: patches.batch(next(steps), args.batchSize), args.device)
    print(f"{'patch loader':30}{ms:9.3f}{1000 * args.batchSize / ms:11,.0f}   "
          f"({len(paths)} images read in {ready:.1f} s)")


def print_scoring(args, data_dir):
    """Against the time of the network alone."""
    sets = choose_sets(data_dir)
    student = build_model(half_width({"arch": "vdsr", "n_resblocks": 18, "n_feats": 64})).to(args.device)
    sets = {name: paths[:8] for name, paths in sets.items()}
    benchmarks = Benchmarks(sets, (2, 3, 4), args.device)
    pairs = [prepare(rgb, s) for images in benchmarks.sets.values() for _, rgb in images for s in (2, 3, 4)]
    upscale(student, pairs[0], args.device)
    began = time.perf_counter()
    for pair in pairs:
        upscale(student, pair, args.device)
    alone = time.perf_counter() - began
    began = time.perf_counter()
    benchmarks.scores({"student": student}, bicubic=True)
    whole = time.perf_counter() - began
    print(f"{'scoring, an image':30}{1000 * whole / len(pairs):9.3f}{len(pairs) / whole:11,.1f}"
          f"{1000 * alone / len(pairs):9.3f}{whole / alone:8.2f}   (floor: the network alone, as it runs here)")


def print_sweep(args):
    """One size at a time varies from the paper's: patch 48, depth 18, width 32."""
    speed, base = rates(args.device, args.precision), {"depth": 18, "width": 32}
    print("| batch | patch | depth | width | ms a step | images/s | ratio to floor |")
    print("|---|---|---|---|---|---|---|")
    for name, values in SWEEP.items():
        for value in values:
            value = int(value * args.batchSize) if name == "batch" else value
            size = {"batch": args.batchSize, "patch": args.input_size, **base, name: value}
            chosen = settings(args.device, args.precision, args.plain, size["batch"], size["patch"])
            networks = {"depth": size["depth"], "width": size["width"], "only": "student step"}
            least = floors(chosen, speed, **networks)["student step"]
            ms = measure(chosen, **networks)["student step"]
            print(f"| {' | '.join(str(size[n]) for n in SWEEP)} | {ms:.2f} | {1000 * size['batch'] / ms:,.0f} "
                  f"| {ms / least:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="default: fp16 on CUDA, else fp32")
    parser.add_argument("--batchSize", type=int, help="default: 128 on CUDA, else 4")
    parser.add_argument("--data_dir", default="datasets")
    parser.add_argument("--against-plain", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    device = choose_device(given.device)
    cuda = device.type == "cuda"
    args = settings(device, given.precision or ("fp16" if cuda else "fp32"), False,
                    given.batchSize or (128 if cuda else 4))
    print(f"{device_name(device)}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}")
    if given.sweep:
        return print_sweep(args)
    print_parts(args, given.against_plain)
    print_loader(args, given.data_dir)
    print_scoring(args, given.data_dir)


if __name__ == "__main__":
    main()
