"""Curves of what runs log: one run's losses and validation PSNR; several runs' PSNR against minutes.

    python -m figure.plots runs/generator runs/noise runs/dead_leaves --output=figure/psnr_minutes.png

All figures need matplotlib (pip install matplotlib), which nothing else here does.
"""

import importlib
import io
import json
import math
from pathlib import Path

from engine.options import Parser
from utils import InputError, run_script, write_atomically

INK = "#2b2f36"  # text, and what has no colour of its own
COLOURS = {  # the same for the same thing in every figure
    "HR": INK, "bicubic": "#8d99a6", "teacher": "#1f6392", "student": "#e0762f",  # the student and its loss
    "L_R": "#20908a", "L_adv": "#7a52a8",
    "generator": "#bb3b5e", "noise": "#c79c1e", "folder": INK, "dead_leaves": "#4c8f3c",
    "dead_leaves+generator": "#9db53a",
    "2": "#22384f", "3": "#5f7f9b", "4": "#a3b7c9",  # scales
}
LOSSES = {  # of metrics.jsonl, with their units
    "student": "$D(S(x), T(x))$\nper pixel", "L_R": "$L_R$\nper LR pixel", "L_adv": "$L_{adv} = -\\log(1 + D)$",
    "loss": "$D(output, HR)$\nper pixel",
}
STYLES = ("-", "--", ":", "-.")


def new_figure(width, height):
    """An empty matplotlib Figure of that size in inches, 100 pixels each at README width. Raises InputError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height))


def save_figure(figure, path, dpi=150):
    """Write the figure as a PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def tidy(axes, xlabel=None, ylabel=None):
    """A plain frame, a faint grid, small labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.set_xlabel(xlabel or "", fontsize=9, color=INK)
    axes.set_ylabel(ylabel or "", fontsize=9, color=INK)


# ---- what runs logged ------------------------------------------------------------------------------


def read_metrics(folder):
    """The lines of folder/metrics.jsonl, {"epoch", losses, "psnr": {scale: dB}, "seconds"} each.

    Raises InputError where there are none.
    """
    path, epochs = Path(folder) / "metrics.jsonl", []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}); "
                         "give the --save_dir of a run") from None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # half a line, of a run that was killed as it wrote
        if isinstance(entry, dict) and "epoch" in entry:
            epochs.append(entry)
    if not epochs:
        raise InputError(f"{path}: holds no epoch yet")
    return epochs


def series(epochs, value):
    """([epoch], [value(entry)]) of the entries for which it is a finite number."""
    pairs = [(entry["epoch"], value(entry)) for entry in epochs]
    pairs = [(x, y) for x, y in pairs if isinstance(y, (int, float)) and math.isfinite(y)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def mean_psnr(entry):
    """An epoch's validation PSNR in dB, the mean over the scales; None where there is none."""
    psnr = entry.get("psnr")
    return sum(psnr.values()) / len(psnr) if psnr else None


# ---- one run ---------------------------------------------------------------------------------------


def curves(epochs):
    """Figure of read_metrics's epochs: a panel for every loss term at the left, validation PSNR at the right.

    Loss axes are logarithmic where all values are positive. What an epoch lacks is left out.
    """
    figure = new_figure(8, 4)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    terms = {name: series(epochs, lambda entry: entry.get(name)) for name in LOSSES}
    terms = {name: term for name, term in terms.items() if term[0]}
    grid = figure.add_gridspec(max(len(terms), 1), 2 if terms else 1)
    for i, (name, (x, y)) in enumerate(terms.items()):
        axes = figure.add_subplot(grid[i, 0])
        axes.plot(x, y, color=COLOURS.get(name, INK), **_line(x))
        if min(y) > 0:
            axes.set_yscale("log")
        tidy(axes, "epoch", LOSSES[name])
        axes.label_outer()
    axes = figure.add_subplot(grid[:, -1])
    for scale in sorted({scale for entry in epochs for scale in entry.get("psnr") or ()}):
        x, y = series(epochs, lambda entry: (entry.get("psnr") or {}).get(scale))
        if x:
            axes.plot(x, y, color=COLOURS.get(scale, INK), label=f"x{scale}  {y[-1]:.2f} dB", **_line(x))
    tidy(axes, "epoch", "validation PSNR (dB)")
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    first, last = epochs[0]["epoch"], epochs[-1]["epoch"]
    margin = max(0.04 * (last - first), 0.25)
    for axes in figure.axes:
        axes.set_xlim(first - margin, last + margin)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.align_ylabels()
    return figure


def _line(x):
    """How a line through so many points is drawn."""
    return {"linewidth": 1.6, "marker": "o" if len(x) <= 20 else None, "markersize": 3.5}


def save_curves(folder):
    """Draw `folder`/metrics.jsonl as `folder`/curves.png. Returns False where matplotlib is not installed.

    Raises InputError where there are no metrics or the file cannot be written.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    save_figure(curves(read_metrics(folder)), Path(folder) / "curves.png", dpi=120)
    return True


# ---- several runs ----------------------------------------------------------------------------------


def read_run(folder):
    """(source, what its PSNR was measured on, [minutes], [mean validation PSNR]) of a run of distillation.py."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        source, validation = config["source"], config.get("val_dataset")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: names no source; give the --save_dir of a run of distillation.py") from None
    epochs = [entry for entry in read_metrics(folder) if entry.get("psnr") and "seconds" in entry]
    _, minutes = series(epochs, lambda entry: max(entry["seconds"], 0.1) / 60)  # which is rounded to 0.1 s
    _, psnr = series(epochs, mean_psnr)
    if not epochs or len(minutes) != len(psnr):
        raise InputError(f"{folder}: its metrics.jsonl lacks finite PSNR or seconds")
    return source, (validation, *sorted(epochs[-1]["psnr"])), minutes, psnr


def psnr_minutes(folders):
    """Figure of the mean validation PSNR against minutes, a line for every run, coloured by its source.

    Raises InputError where runs were validated on other images or scales than the first.
    """
    runs = [read_run(folder) for folder in folders]
    figure = new_figure(8, 4)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    sources = [source for source, *_ in runs]
    for i, (folder, (source, measured, minutes, psnr)) in enumerate(zip(folders, runs)):
        if measured != runs[0][1]:
            raise InputError(f"{folder}: was validated on another set or other scales than {folders[0]}")
        label = "folder (real images)" if source == "folder" else source
        if sources.count(source) > 1:
            label += f", {Path(folder).name}"
        axes.plot(minutes, psnr, color=COLOURS.get(source, INK), linestyle=STYLES[sources[:i].count(source) % 4],
                  label=f"{label}: {psnr[-1]:.2f} dB", **_line(minutes))
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(lambda minutes, _: f"{minutes:g}" if f"{minutes:e}"[0] in "125" else "")
    scales = ", ".join(f"x{scale}" for scale in runs[0][1][1:])
    where = f"on {runs[0][1][0]}" if runs[0][1][0] else "on the validation set"
    tidy(axes, "minutes of training", f"mean PSNR {where}, {scales} (dB)")
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="SAVE_DIR", help="of a run of distillation.py")
    parser.add_argument("--output", default="figure/psnr_minutes.png", help="the figure")
    return parser.parse_args(argv)


def main(args):
    save_figure(psnr_minutes(args.folders), args.output)
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
