"""Figures, by matplotlib: one run's curves, several runs' PSNR against minutes, and students' against their width.

    python -m figure.plots runs/a runs/b --output=psnr.png --labels "run a" "run b"
    python -m figure.plots --width figure/results/width/*.json --output=figure/width.png
"""

import io
import json
import math
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from data.table import paper_table
from engine.options import Parser
from models import build_model
from utils import InputError, refusing, run_script, write_atomically

COLOURS = ["#1f6392", "#e0762f", "#4c8f3c", "#bb3b5e", "#c79c1e", "#7a52a8", "#20908a", "#8d99a6"]  # C0 to C7
STYLE = {  # of matplotlib.rcParams
    "axes.prop_cycle": f"cycler(color={COLOURS})", "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "grid.color": "#e6e8eb", "axes.labelsize": 9, "figure.labelsize": 9, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False, "lines.markersize": 5, "savefig.dpi": 150,
}
LOSSES = {  # of metrics.jsonl, with their units
    "student": "$D(S(x), T(x))$\nper pixel", "L_R": "$L_R$\nper LR pixel", "L_adv": "$L_{adv} = -\\log(1 + D)$",
    "loss": "$D(output, HR)$\nper pixel",
}


@contextmanager
def open_json(path):
    """The content of a JSON file. Raises InputError where it is broken, or lacks what the `with` block looks for."""
    content = Path(path).read_bytes()
    with refusing(f"{path}: is not what was looked for"):
        yield json.loads(content)


def new_figure(height=4):
    """An empty matplotlib Figure, 8 inches wide and `height` inches high; the process has STYLE from then on."""
    try:
        import matplotlib.figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.rcParams.update(STYLE)
    return matplotlib.figure.Figure(figsize=(8, height), layout="constrained")


def save_png(save, path):
    """Write a PNG atomically. save: a method that writes it to a file, as Figure.savefig or Image.save."""
    buffer = io.BytesIO()
    save(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def log_axes():
    """Axes of a new figure, the x axis logarithmic with numbers at 1, 2, 5, 10, 20, ..."""
    axes = new_figure().add_subplot()
    axes.set_xscale("log", subs=[2, 5])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    return axes


def read_metrics(folder):
    """The lines of folder/metrics.jsonl: {"epoch", losses, "psnr": {scale: dB}, "seconds", ...} each."""
    path, epochs = Path(folder) / "metrics.jsonl", []
    for line in path.read_bytes().splitlines():
        with suppress(LookupError, TypeError, ValueError):  # half a line, of a run that was killed as it wrote
            entry = json.loads(line)
            epochs.append({"psnr": {}, "seconds": 0, **entry, "epoch": entry["epoch"]})
    if not epochs:
        raise InputError(f"{path}: holds no epoch yet")
    return epochs


def curves(epochs):
    """Figure of read_metrics's epochs: a panel for every loss at the left, validation PSNR at the right."""
    numbers = [entry["epoch"] for entry in epochs]
    losses = [name for name in LOSSES if any(name in entry for entry in epochs)]
    figure = new_figure()
    panels = figure.subplot_mosaic([[name, "psnr"] for name in losses] or [["psnr"]], sharex=True)
    for name in losses:
        values = [entry.get(name, math.nan) for entry in epochs]
        panels[name].plot(numbers, values, ".-")
        panels[name].set(ylabel=LOSSES[name], yscale="linear" if any(value <= 0 for value in values) else "log")
    psnr = panels["psnr"]
    for scale in sorted({scale for entry in epochs for scale in entry["psnr"]}):
        values = [entry["psnr"].get(scale, math.nan) for entry in epochs]
        psnr.plot(numbers, values, ".-", label=f"x{scale}  {values[-1]:.2f} dB")
    if psnr.lines:
        psnr.legend()
    psnr.set_ylabel("validation PSNR (dB)")
    psnr.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.supxlabel("epoch")
    figure.align_ylabels()
    return figure


def save_curves(folder):
    """Draw `folder`/metrics.jsonl as `folder`/curves.png, or say that matplotlib is not installed."""
    if find_spec("matplotlib"):
        save_png(curves(read_metrics(folder)).savefig, Path(folder) / "curves.png")
    else:
        tqdm.write("curves.png was not drawn: it needs matplotlib (pip install matplotlib)")


def psnr_minutes(folders, labels=None):
    """Figure of the mean validation PSNR against minutes: a line for every run, dashed where it starts at random."""
    if labels and len(labels) != len(folders):
        raise InputError(f"--labels: {len(labels)} for {len(folders)} runs")
    axes, first = log_axes(), None
    for i, folder in enumerate(folders):
        with open_json(Path(folder) / "config.json") as config:
            source, start = config.get("source", "folder"), config.get("student_init", "random")
            place = config.get("val_dataset") or "the validation set"
        epochs = [entry for entry in read_metrics(folder) if entry["psnr"]]
        if not epochs:
            raise InputError(f"{folder}: its metrics.jsonl lacks PSNR")
        place = ", ".join([place, *(f"x{scale}" for scale in sorted(epochs[-1]["psnr"]))])
        first = first or place
        if place != first:
            raise InputError(f"{folder}: was validated on {place}, {folders[0]} on {first}")
        psnr = [fmean(entry["psnr"].values()) for entry in epochs]
        label = labels[i] if labels else f"{Path(folder).name} ({source}, {start} start)"
        axes.plot([entry["seconds"] / 60 for entry in epochs], psnr, ".-" if start == "teacher" else ".--",
                  label=f"{psnr[-1]:.2f} dB  {label}")
    axes.set(xlabel="minutes", ylabel=f"mean PSNR on {first} (dB)")
    axes.legend(handles=sorted(axes.lines, key=lambda line: -line.get_ydata()[-1]))
    return axes.figure


def widths(paths):
    """Figure of mean PSNR on Set5 against parameters, of students of several widths: their results.json."""
    points, axes = [], log_axes()
    for path in paths:
        with open_json(path) as record:
            psnr = fmean(row["student"]["psnr"] for row in record["results"]["Set5"].values())
            student = build_model(record["networks"]["student"])
        points.append((sum(weight.numel() for weight in student.parameters()) / 1000, psnr, student.n_feats))
    parameters, psnr, names = zip(*sorted(points))
    axes.plot(parameters, psnr, ".-C1", label="ours, by channels")
    for x, y, name in zip(parameters, psnr, names):
        axes.annotate(name, (x, y), (-3, 5), textcoords="offset points", fontsize=8, ha="right")
    for column, words, style in (("student", "with data", "--"), ("ours", "without data", ":")):
        paper = fmean(scores[column][0] for (on, _), scores in paper_table().items() if on == "Set5")
        axes.axhline(paper, color="gray", linestyle=style, label=f"the paper's, 32 channels, {words}")
    axes.set(xlabel="thousand parameters", ylabel="mean PSNR on Set5, x2, x3, x4 (dB)")
    axes.legend(loc="lower right")
    return axes.figure


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="SAVE_DIR", help="of a run; with --width a results.json")
    parser.add_argument("--labels", nargs="+", help="of the runs (default: their folders, sources and starts)")
    parser.add_argument("--width", action="store_true", help="PSNR against parameters, of students of several widths")
    parser.add_argument("--output", help="the figure (default: figure/psnr_minutes.png or figure/width.png)")
    return parser.parse_args(argv)


def main(args):
    output = args.output or f"figure/{'width' if args.width else 'psnr_minutes'}.png"
    figure = widths(args.paths) if args.width else psnr_minutes(args.paths, args.labels)
    save_png(figure.savefig, output)
    print(output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
