"""A student as one file that runs without this project: ONNX, or a program of torch.export.

    python -m tools.export student.pth student.onnx              # or student.pt2
    python -m tools.export student.pth --compare teacher.pth     # what the student saves, as a table

The file takes batches of any size of images of any size, float32 in [0, 1], and gives "sr", not clipped. Its input is
called "lr", or "input" for networks that take the upscaled image (VDSR). What else is to be known of it is in its
metadata (see describe): an ONNX file's metadata_props, as JSON where they are no text; a .pt2's metadata.json.
"""

import io
import json
import statistics
import sys
import time
import timeit
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.benchmark import Benchmarks, choose_validation
from engine.options import Parser, positive, whole
from models.custom import custom_network
from models.load import load_model
from utils import InputError, choose_device, device_name, run_script, write_atomically

# Sizes (batch, height, width) of inputs: of the one a network is recorded with, and of those a file is tried on.
EXAMPLE = (2, 24, 32)
TRIED = ((1, 37, 53), (2, 20, 31), (1, 12, 16), (3, 64, 80))
TIMED = (480, 320)  # width and height of the output image whose computing is timed


# ---- the file --------------------------------------------------------------------------------------


def describe(network, score=None):
    """What a user of the file has to know, as a dict that JSON can hold. score: of score_network."""
    kind = {1: "luma (BT.601, 16 to 235)", 3: "RGB (0 to 255)"}[network.channels]
    upscaled = ", upscaled by bicubic to the output's size" if network.upscaled_input else ""
    return {
        "project": "Data-free knowledge distillation for image super-resolution",
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


def record(network):
    """The network, on the CPU, as a torch.export.ExportedProgram of any batch, height and width.

    Returns (program, names of these three). Raises InputError for a network whose code allows no such program.
    """
    free = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)
    batch, *size = EXAMPLE
    try:
        with torch.no_grad():
            program = torch.export.export(network, (torch.zeros(batch, network.channels, *size),), dynamic_shapes=free)
    except Exception as error:  # whatever the code of a network of one's own makes it stumble over
        raise InputError("torch.export cannot record this network for any batch, height and width "
                         f"({first_line(error)})") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program, free


def need_onnx():
    """Raise InputError where a package that writes ONNX files is missing."""
    try:
        import onnx, onnxscript  # noqa: E401, F401
    except ImportError as error:
        raise InputError(f".onnx files need the package {error.name}; pip install onnx onnxscript "
                         "(and onnxruntime, to check the file), or export a .pt2") from None


def onnx_content(network, metadata):
    """The bytes of an ONNX file, weights included. Raises InputError where it cannot be made."""
    need_onnx()
    program, free = record(network)
    names = {"input_names": ["input" if network.upscaled_input else "lr"], "output_names": ["sr"]}
    try:
        proto = torch.onnx.export(program, dynamo=True, dynamic_shapes=free, verbose=False, **names).model_proto
    except Exception as error:  # an operation of a network of one's own that ONNX has not
        raise InputError(f"ONNX cannot hold this network ({first_line(error)})") from None
    ratio = "" if network.upscaled_input else f"{network.scales[0]}*"
    for value, ratio in ((proto.graph.input[0], ""), (proto.graph.output[0], ratio)):
        for i, name in ((0, "batch"), (2, f"{ratio}height"), (3, f"{ratio}width")):  # torch 2.6 calls them s0, s1
            value.type.tensor_type.shape.dim[i].dim_param = name
    del proto.graph.value_info[:]  # which has torch's names, and which nothing needs
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return proto.SerializeToString()


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


def pt2_content(network, metadata):
    """The bytes of a .pt2 file, which torch.export.load reads. Raises InputError where it cannot be made."""
    buffer = io.BytesIO()
    torch.export.save(record(network)[0], buffer, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return buffer.getvalue()


def pt2_function(content):
    """The .pt2 file as a function of a tensor."""
    return torch.export.load(io.BytesIO(content)).module()


# By the file's ending: what makes it, what reads it, and how far its outputs may be from torch's.
FORMATS = {".onnx": (onnx_content, onnx_function, 1e-4), ".pt2": (pt2_content, pt2_function, 1e-5)}


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


def make_file(network, suffix, score=None):
    """(bytes of the file, its largest difference from torch). The latter is None where it could not be tried.

    Raises InputError where there is no such file of the network, or where it differs by too much.
    """
    write, read, tolerance = FORMATS[suffix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layouts, say; the comparison tells what matters
        content = write(network, describe(network, score))
        try:
            function = read(content)
            difference = largest_difference(function, network) if function else None
        except Exception as error:
            raise InputError(f"the {suffix} file made does not run ({first_line(error)})") from None
    if difference is not None and not difference <= tolerance:
        raise InputError(f"the {suffix} file made differs from torch by {difference:.1e}, more than {tolerance:.0e}")
    return content, difference


def first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---- what a student saves --------------------------------------------------------------------------


def random_input(network, width, height):
    """(1, C, h, w) whose output is width x height, or a little smaller at x3."""
    ratio = 1 if network.upscaled_input else network.scales[0]
    return torch.rand(1, network.channels, height // ratio, width // ratio)


@torch.no_grad()
def multiply_adds(network):
    """Multiply-adds of convolutions and matrix products for a megapixel (10^6 pixels) of output."""
    with FlopCounterMode(display=False) as counter:
        output = network(random_input(network, 48, 48))
    return counter.get_total_flops() / 2 / output[0, 0].numel() * 1e6


@torch.no_grad()
def cost(network, path):
    """{column: number} of a network and the checkpoint it came from; sizes in MB (10^6 bytes), times in ms.

    ONNX's columns are missing where its packages are not installed.
    """
    row = {"parameters": sum(p.numel() for p in network.parameters()),
           "multiply-adds per output megapixel, 10^9": multiply_adds(network) / 1e9,
           "checkpoint, MB": Path(path).stat().st_size / 1e6}
    make = {"torch": lambda: network}
    try:
        content = make_file(network, ".onnx")[0]
        row[".onnx, MB"] = len(content) / 1e6
        make["onnxruntime"] = lambda: onnx_function(content)
    except InputError as error:
        print(error, file=sys.stderr)
    x, all_threads = random_input(network, *TIMED), torch.get_num_threads()
    for threads in sorted({1, all_threads}):
        torch.set_num_threads(threads)
        for name in make:
            if function := make[name]():
                times = timeit.repeat(lambda: function(x), number=1, repeat=9)[2:]  # two to warm up
                row[f"{name}, {threads} thread{'s' * (threads > 1)}, ms"] = 1000 * statistics.median(times)
    torch.set_num_threads(all_threads)
    return row


def cost_table(rows):
    """Markdown of {name of a network: cost(...)}, teacher first, then how many times less the second needs."""
    columns = [name for name in next(iter(rows.values())) if all(name in row for row in rows.values())]
    show = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    cells = [["", *columns], ["---"] * (1 + len(columns))]
    cells += [[name, *(show(row[column]) for column in columns)] for name, row in rows.items()]
    teacher, student = rows.values()
    cells.append(["less by", *(f"{teacher[column] / student[column]:.1f}x" for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


# ---- the command -----------------------------------------------------------------------------------


def export(network, path, data_dir, val_dataset, device):
    """Write the network to the file `path` and say how good it is. Raises InputError, with nothing written."""
    sets = choose_validation(data_dir, val_dataset)
    validation = Benchmarks(sets, network.scales, device)
    score = {"set": next(iter(sets)), "protocol": validation.protocol({"student": network}),
             "psnr": validation.psnr(network.to(device))}
    try:
        content, difference = make_file(network.cpu(), path.suffix, score)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    write_atomically(path, content)
    print(f"{path}: {len(content) / 1e6:.2f} MB, {score['set']} "
          + ", ".join(f"x{scale} {dB:.2f} dB" for scale, dB in score["psnr"].items()))
    print("not checked: onnxruntime is not installed (pip install onnxruntime)" if difference is None else
          f"checked: within {difference:.1e} of torch on {len(TRIED)} batches of other sizes")


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("student", metavar="STUDENT", help="checkpoint of the network")
    add("file", metavar="FILE", nargs="?", help="what to write, .onnx or .pt2")
    add("--compare", metavar="TEACHER", help="instead: a table of what the student saves")
    add("--model", metavar="FILE.py", help="a file that defines student() of one's own, and teacher()")
    add("--res_scale", type=positive, help="of an EDSR whose file does not say")
    add("--data_dir", default="datasets", help="folder of the image sets")
    add("--val_dataset", help="set whose PSNR goes into the file (default: Set5)")
    add("--device", default="auto", help="which computes that: auto, cpu, cuda, cuda:1, ...")
    add("--threads", type=whole, default=0, help="CPU threads; 0: as many as cores")
    return parser.parse_args(argv)


def main(args):
    if (args.file is None) == (args.compare is None):
        raise InputError("say either which file to write, .onnx or .pt2, or with --compare which teacher to compare")
    if args.threads:
        torch.set_num_threads(args.threads)
    load = lambda path, role: (custom_network(args.model, role, path) if args.model
                               else load_model(path, res_scale=args.res_scale)).requires_grad_(False)
    if args.compare is not None:
        networks = {"teacher": load(args.compare, "teacher"), "student": load(args.student, "student")}
        print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; times are "
              f"medians for one {TIMED[0]}x{TIMED[1]} output image"
              + ", without bicubic" * networks["student"].upscaled_input + "\n")
        paths = {"teacher": args.compare, "student": args.student}
        return print(cost_table({role: cost(network, paths[role]) for role, network in networks.items()}))
    path = Path(args.file)
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    if path.resolve() == Path(args.student).resolve():
        raise InputError(f"{path}: is the student's own file")
    if path.suffix == ".onnx":
        need_onnx()  # before the scoring
    export(load(args.student, "student"), path, args.data_dir, args.val_dataset, choose_device(args.device))


if __name__ == "__main__":
    run_script(main, parse_arguments())
