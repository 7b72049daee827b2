"""Save a student as one file that runs without this project: ONNX, or a program of torch.export.

    python -m tools.export student.pth student.onnx              # or student.pt2
    python -m tools.export student.pth --compare teacher.pth     # what the student saves, as a table

The file takes batches of any size of images of any size, float32 in [0, 1]: "lr", or "input" for networks that take the
upscaled image (VDSR). It returns "sr", not clipped. Its metadata (see describe) are an ONNX file's metadata_props, as
JSON unless they are text; in a .pt2 they are metadata.json.
"""

import io
import json
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.benchmark import Benchmarks, choose_validation
from data.table import markdown_table
from engine.options import Parser, positive, threads
from models.pair import load_network
from tools.benchmark import milliseconds
from utils import InputError, choose_device, device_name, refusing, run_script, write_atomically

TRIED = ((1, 37, 53), (2, 20, 31), (1, 12, 16), (3, 64, 80))  # (batch, height, width) of inputs a file is checked on
TIMED = (480, 320)  # width and height of the output image whose computing is timed


def describe(network, score):
    """What a user of the file has to know, as a dict that JSON can hold. score: {"set", "protocol", "psnr"}."""
    kind = "RGB (0 to 255)" if network.channels == 3 else "luma (BT.601, 16 to 235)"
    upscaled = ", upscaled by bicubic to the output's size" if network.upscaled_input else ""
    return {
        "project": "Data-free knowledge distillation for image super-resolution",
        "architecture": network.config,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "scales": list(network.scales),
        "channels": network.channels,
        "value_range": [0, 1],
        "input": f"{kind} / 255 of the LR image{upscaled}",
        "output": f"{kind} / 255 of the SR image, not clipped",
        "score": score,
        "torch": torch.__version__,
    }


def record(network):
    """The network, on the CPU, as a torch.export.ExportedProgram of any batch, height and width."""
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(network, (torch.zeros(2, network.channels, 24, 32),), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def need_onnx():
    """Raise InputError where a package that writes ONNX files is missing."""
    try:
        import onnx, onnxscript  # noqa: E401, F401
    except ImportError as error:
        raise InputError(f".onnx files need the package {error.name}; pip install onnx onnxscript "
                         "(and onnxruntime, to check the file), or export a .pt2") from None


def write_onnx(network, metadata):
    """The bytes of an ONNX file, weights included."""
    name, factor = ("input", "") if network.upscaled_input else ("lr", f"{network.scales[0]}*")
    proto = torch.onnx.export(record(network), dynamo=True, verbose=False, input_names=[name],
                              output_names=["sr"]).model_proto
    for value, factor in ((proto.graph.input[0], ""), (proto.graph.output[0], factor)):
        for i, length in ((0, "batch"), (2, f"{factor}height"), (3, f"{factor}width")):  # torch 2.6 calls them s0, s1
            value.type.tensor_type.shape.dim[i].dim_param = length
    del proto.graph.value_info[:]  # which has torch's names, and which nothing needs
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return proto.SerializeToString()


def read_onnx(content):
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


def write_pt2(network, metadata):
    """The bytes of a .pt2 file, which torch.export.load reads."""
    buffer = io.BytesIO()
    torch.export.save(record(network), buffer, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return buffer.getvalue()


# By the file's ending: what makes it, what reads it, and how far its outputs may be from torch's.
FORMATS = {".onnx": (write_onnx, read_onnx, 1e-4),
           ".pt2": (write_pt2, lambda content: torch.export.load(io.BytesIO(content)).module(), 1e-5)}


@torch.no_grad()
def make_file(network, suffix, score=None):
    """(bytes of the file, whether onnxruntime was there to check it). Raises InputError where it differs from torch."""
    write, read, tolerance = FORMATS[suffix]
    with refusing(f"the network fits no {suffix} file of any batch, height and width"):
        content = write(network, describe(network, score))
        function = read(content)
        for batch, *size in TRIED if function else ():
            x = torch.rand(batch, network.channels, *size)
            torch.testing.assert_close(function(x), network(x), atol=tolerance, rtol=0,
                                       msg=lambda text: " ".join(text.split()))
    return content, function is not None


def multiply_adds(network):
    """Multiply-adds of convolutions and matrix products for a megapixel (10^6 pixels) of output."""
    with FlopCounterMode(display=False) as counter:
        output = network(torch.rand(1, network.channels, 48, 48))
    return counter.get_total_flops() / 2 / output[0, 0].numel() * 1e6


def cost(network, path):
    """{column: number} of a network and the checkpoint it came from, without ONNX's where its packages are missing."""
    row = {"parameters": sum(weight.numel() for weight in network.parameters()),
           "multiply-adds per output megapixel, 10^9": multiply_adds(network) / 1e9,
           "checkpoint, MB": Path(path).stat().st_size / 1e6}
    content = None
    try:
        need_onnx()
        content, _ = make_file(network, ".onnx")
        row[".onnx, MB"] = len(content) / 1e6
    except InputError as error:
        print(error, file=sys.stderr)
    ratio, all_threads = 1 if network.upscaled_input else network.scales[0], torch.get_num_threads()
    x = torch.rand(1, network.channels, TIMED[1] // ratio, TIMED[0] // ratio)
    for count in sorted({1, all_threads}):
        torch.set_num_threads(count)
        for name, function in (("torch", network), ("onnxruntime", content and read_onnx(content))):
            if function is not None:
                row[f"{name}, {count} thread{'s' * (count > 1)}, ms"] = milliseconds(lambda: function(x), x.device)
    torch.set_num_threads(all_threads)
    return row


def load(args, path, role):
    return load_network(path, role, "cpu", args.model, args.res_scale).requires_grad_(False)


def compare(args):
    """Print the costs of teacher and student, and how many times less the student needs."""
    teacher, student = load(args, args.compare, "teacher"), load(args, args.student, "student")
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; times are "
          f"medians for one {TIMED[0]}x{TIMED[1]} output image" + ", without bicubic" * student.upscaled_input + "\n")
    teacher, student = cost(teacher, args.compare), cost(student, args.student)
    show = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    columns = [(name, show(number), show(student[name]), f"{number / student[name]:.1f}x")
               for name, number in teacher.items() if name in student]
    heads, *rows = zip(("", "teacher", "student", "less by"), *columns)
    print(markdown_table(heads, rows), end="")


def export(args):
    """Write the student to the file and print how good it is."""
    path = Path(args.file)
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    if path.resolve() == Path(args.student).resolve():
        raise InputError(f"{path}: is the student's own file")
    if path.suffix == ".onnx":
        need_onnx()  # before the scoring
    device, network = choose_device(args.device), load(args, args.student, "student")
    validation = Benchmarks(choose_validation(args.data_dir, args.val_dataset), network.scales, device)
    score = {"set": next(iter(validation.sets)), "protocol": validation.protocol({"student": network}),
             "psnr": validation.psnr(network.to(device))}
    content, checked = make_file(network.cpu(), path.suffix, score)
    write_atomically(path, content)
    print(f"{path}: {len(content) / 1e6:.2f} MB, {score['set']} "
          + ", ".join(f"x{scale} {dB:.2f} dB" for scale, dB in score["psnr"].items()))
    print(f"checked: within {FORMATS[path.suffix][2]:.0e} of torch on {len(TRIED)} batches of other sizes" if checked
          else "not checked: onnxruntime is not installed (pip install onnxruntime)")


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
    add("--threads", type=threads, default=0, help="CPU threads; 0: as many as cores")
    return parser.parse_args(argv)


def main(args):
    if (args.file is None) == (args.compare is None):
        raise InputError("say either which file to write, .onnx or .pt2, or with --compare which teacher to compare")
    if args.threads:
        torch.set_num_threads(args.threads)
    compare(args) if args.file is None else export(args)


if __name__ == "__main__":
    run_script(main, parse_arguments())
