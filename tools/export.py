"""A student as one file that runs without this project: ONNX, or a program of torch.export.

    python distillation.py --test_only --student=student.pth --export=student.onnx         # or student.pt2
    python -m tools.export --pretrained=teacher.pth --student=student.pth        # what the student saves, as a table

The file takes batches of any size of images of any size, float32 in [0, 1], and gives "sr", not clipped. Its input is
called "lr", or "input" for networks that take the upscaled image (VDSR). What else is to be known of it is in its
metadata (see describe): an ONNX file's metadata_props, as JSON where they are no text; a .pt2's metadata.json.
"""

import importlib
import io
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.benchmark import Benchmarks, choose_scales, choose_validation
from models.load import load_model
from models.custom import custom_network
from models.pair import load_networks
from engine.options import Parser
from utils import InputError, device_name, run_script, write_atomically

PROJECT = "Data-free knowledge distillation for image super-resolution"
# Sizes (batch, height, width) of inputs: of the one a network is recorded with, and of those a file is tried on.
EXAMPLE = (2, 24, 32)
TRIED = ((1, 37, 53), (2, 20, 31), (1, 12, 16), (3, 64, 80))
# The largest difference from torch that a file may have there, of outputs in [0, 1].
TOLERANCE = {".onnx": 1e-4, ".pt2": 1e-5}
# Of the image whose computing is timed: width and height of the output.
TIMED = (480, 320)


# ---- the file --------------------------------------------------------------------------------------


def describe(network, score=None):
    """What a user of the file has to know, as a dict that JSON can hold. score: of score_now."""
    kind = {1: "luma (BT.601, 16 to 235)", 3: "RGB (0 to 255)"}[network.channels]
    upscaled = ", upscaled by bicubic to the output's size" if network.upscaled_input else ""
    return {
        "project": PROJECT,
        "architecture": network.config,
        "parameters": sum(p.numel() for p in network.parameters()),
        "scales": list(network.scales),
        "channels": network.channels,
        "value_range": [0, 1],
        "input": f"{kind} / 255 of the LR image{upscaled}",
        "output": f"{kind} / 255 of the SR image, not clipped",
        **({"score": score} if score else {}),
        "torch": torch.__version__,
    }


def score_now(network, args):
    """The network's PSNR on the set of --val_dataset: {"set", "protocol", "psnr": {scale: dB}}."""
    sets = choose_validation(args.data_dir, args.val_dataset)
    validation = Benchmarks(sets, choose_scales(args.scale, network, args.student), args.device)
    psnr = validation.psnr(network.to(args.device))
    network.cpu()
    return {"set": next(iter(sets)), "protocol": validation.protocol({"student": network}), "psnr": psnr}


def as_program(network):
    """The network, on the CPU, as a torch.export.ExportedProgram of any batch, height and width.

    Returns (program, names of what is free). Raises InputError for a network whose code allows no such program.
    """
    free = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)
    batch, *size = EXAMPLE
    example = torch.zeros(batch, network.channels, *size)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=free)
    except Exception as error:  # whatever the code of a network of one's own makes it stumble over
        raise InputError(f"--export: torch.export cannot record this network for any batch, height and width "
                         f"({_first_line(error)})") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program, free


def need_packages(suffix):
    """Raise InputError where a package that writes such files is missing."""
    for package in ("onnx", "onnxscript") if suffix == ".onnx" else ():
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(f"--export: .onnx files need the package {package}; pip install onnx onnxscript "
                             "(and onnxruntime, to check the file), or export a .pt2") from None


def onnx_content(network, metadata):
    """The bytes of an ONNX file, weights included. Raises InputError where it cannot be made."""
    need_packages(".onnx")
    program, free = as_program(network)
    names = {"input_names": ["input" if network.upscaled_input else "lr"], "output_names": ["sr"]}
    try:
        proto = torch.onnx.export(program, dynamo=True, dynamic_shapes=free, verbose=False, **names).model_proto
    except Exception as error:  # an operation of a network of one's own that ONNX has not
        raise InputError(f"--export: ONNX cannot hold this network ({_first_line(error)})") from None
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return proto.SerializeToString()


def pt2_content(network, metadata):
    """The bytes of a .pt2 file, which torch.export.load reads. Raises InputError where it cannot be made."""
    buffer = io.BytesIO()
    torch.export.save(as_program(network)[0], buffer, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return buffer.getvalue()


def onnx_function(content):
    """The ONNX file as a function of a tensor, on torch's number of CPU threads; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(["sr"], {name: x.numpy()})[0])


def pt2_function(content):
    """The .pt2 file as a function of a tensor."""
    return torch.export.load(io.BytesIO(content)).module()


FORMATS = {".onnx": (onnx_content, onnx_function), ".pt2": (pt2_content, pt2_function)}


@torch.no_grad()
def largest_difference(function, network):
    """Of function(x) from network(x) on random images x of the sizes TRIED; infinite where a shape differs."""
    random, worst = torch.Generator().manual_seed(0), 0.0
    for batch, *size in TRIED:
        x = torch.rand(batch, network.channels, *size, generator=random)
        output, expected = function(x), network(x)
        if output.shape != expected.shape or not output.isfinite().all():
            return float("inf")
        worst = max(worst, (output - expected).abs().max().item())
    return worst


def make_file(network, metadata, suffix):
    """(bytes of the file, its largest difference from torch). The latter is None where it could not be tried.

    Raises InputError where there is no such file of the network, or where it differs by more than TOLERANCE.
    """
    write, read = FORMATS[suffix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layouts, say; the comparison tells what matters
        content = write(network, metadata)
        try:
            function = read(content)
            difference = largest_difference(function, network) if function else None
        except Exception as error:
            raise InputError(f"--export: the {suffix} file made does not run ({_first_line(error)})") from None
    if difference is not None and not difference <= TOLERANCE[suffix]:
        raise InputError(f"--export: the {suffix} file made differs from torch by {difference:.1e}, "
                         f"more than {TOLERANCE[suffix]:.0e}")
    return content, difference


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def export_student(args):
    """distillation.py --test_only --student=... --export=...: write the file and say how good it is.

    Raises InputError, with nothing written.
    """
    path = Path(args.export)
    if path.suffix not in FORMATS:
        raise InputError(f"--export {args.export}: the name must end in {' or '.join(FORMATS)}")
    if not (args.test_only and args.student):
        raise InputError(f"--export {args.export}: goes with --test_only and --student, the network to export")
    if path.resolve() == Path(args.student).resolve():
        raise InputError(f"--export {args.export}: is the student's own file")
    need_packages(path.suffix)
    network = (custom_network(args.model, "student", args.student) if args.model
               else load_model(args.student, res_scale=args.res_scale)).requires_grad_(False)
    score = score_now(network, args)
    content, difference = make_file(network, describe(network, score), path.suffix)
    write_atomically(path, content)
    psnr = ", ".join(f"x{scale} {dB:.2f} dB" for scale, dB in score["psnr"].items())
    print(f"{path}: {len(content) / 1e6:.2f} MB, {score['set']} {psnr}")
    if difference is None:
        print("not checked: onnxruntime is not installed (pip install onnxruntime)")
    else:
        print(f"checked: within {difference:.1e} of torch on {len(TRIED)} batches of other sizes")


# ---- what a student saves --------------------------------------------------------------------------


def _input(network, width, height):
    """A random input (1, C, h, w) whose output is width x height, or a little smaller at x3."""
    ratio = 1 if network.upscaled_input else network.scales[0]
    return torch.rand(1, network.channels, height // ratio, width // ratio)


@torch.no_grad()
def multiply_adds(network):
    """Multiply-adds of convolutions and matrix products for a megapixel (10^6 pixels) of output."""
    with FlopCounterMode(display=False) as counter:
        output = network(_input(network, 48, 48))
    return counter.get_total_flops() / 2 / output[0, 0].numel() * 1e6


@torch.no_grad()
def latency(function, x, calls=7):
    """Median milliseconds of function(x), after two calls to warm up."""
    times = []
    for _ in range(2 + calls):
        began = time.perf_counter()
        function(x)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def cost(network, path):
    """{column: number} of a network and the checkpoint it came from; sizes in MB (10^6 bytes), times in ms.

    ONNX's columns are missing where its packages are not installed.
    """
    row = {"parameters": sum(p.numel() for p in network.parameters()),
           "multiply-adds per output megapixel, 10^9": multiply_adds(network) / 1e9,
           "checkpoint, MB": Path(path).stat().st_size / 1e6}
    try:
        content = make_file(network, describe(network), ".onnx")[0]
        row[".onnx, MB"] = len(content) / 1e6
    except InputError as error:
        print(error, file=sys.stderr)
        content = None
    x, all_threads = _input(network, *TIMED), torch.get_num_threads()
    for threads in sorted({1, all_threads}):
        torch.set_num_threads(threads)
        row[f"torch, {threads} thread{'s' * (threads > 1)}, ms"] = latency(network, x)
        if content and (function := onnx_function(content)):
            row[f"onnxruntime, {threads} thread{'s' * (threads > 1)}, ms"] = latency(function, x)
    torch.set_num_threads(all_threads)
    return row


def cost_table(rows):
    """Markdown of {name of a network: cost(...)}, teacher first, then how many times less the second needs."""
    columns = [name for name in next(iter(rows.values())) if all(name in row for row in rows.values())]
    show = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(show(row[column]) for column in columns)} |")
    teacher, student = rows.values()
    ratios = (f"{teacher[column] / student[column]:.1f}x" for column in columns)
    return "\n".join([*lines, f"| less by | {' | '.join(ratios)} |"])


def main(args):
    teacher, student = load_networks(args)
    width, height = TIMED
    print(f"{device_name(args.device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; times are medians for "
          f"one {width}x{height} output image" + ", without bicubic" * teacher.upscaled_input + "\n")
    print(cost_table({"teacher": cost(teacher, args.pretrained), "student": cost(student, args.student)}))


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--pretrained", metavar="CHECKPOINT", default="teacher.pth", help="the teacher")
    parser.add_argument("--student", metavar="CHECKPOINT", default="student.pth", help="the student")
    parser.add_argument("--model", metavar="FILE.py", help="a file that defines both, of one's own")
    parser.set_defaults(device=torch.device("cpu"), res_scale=None, arch=None, test_only=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, parse_arguments())
