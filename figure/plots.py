"""Figures: one run's curves, several runs' PSNR against minutes, and what a student's width costs and brings.

    python -m figure.plots runs/a runs/b --output=psnr.png --labels "run a" "run b"
    python -m figure.plots --width                  # figure/results/width.json as figure/width.png and width.md

They need matplotlib (pip install matplotlib), which nothing else here does.
"""

import io
import json
import math
from importlib.util import find_spec
from pathlib import Path

from data.table import paper_table
from engine.options import Parser
from utils import InputError, run_script, write_atomically

INK, PALE = "#2b2f36", "#6d747e"
COLOURS = {  # the same for the same thing in every figure
    "bicubic": "#8d99a6", "teacher": "#1f6392", "student": "#e0762f", "generator": "#bb3b5e", "noise": "#c79c1e",
    "dead_leaves": "#4c8f3c", "loss": INK, "L_R": "#20908a", "L_adv": "#7a52a8",
    "2": "#22384f", "3": "#5f7f9b", "4": "#a3b7c9",
}
LINES = ("#4c8f3c", "#1f6392", "#e0762f", "#bb3b5e", "#c79c1e", "#7a52a8", "#20908a", "#8d99a6")  # of several runs
LOSSES = {  # of metrics.jsonl, with their units
    "student": "$D(S(x), T(x))$\nper pixel", "L_R": "$L_R$\nper LR pixel", "L_adv": "$L_{adv} = -\\log(1 + D)$",
    "loss": "$D(output, HR)$\nper pixel",
}


def read_json(path, build):
    """build(content) of a JSON file. Raises InputError where it cannot be read, or is not what `build` takes."""
    try:
        return build(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not what was looked for ({type(error).__name__}: {error})") from None


def new_figure(width, height, layout="constrained"):
    """An empty matplotlib Figure of that size in inches. Raises InputError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure, path, dpi=150):
    """Write the figure as a PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def tidy(axes, xlabel, ylabel):
    """A plain frame, a faint grid, small labels; 1, 2, 5, 10 ... where the x axis is logarithmic."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    if axes.get_xscale() == "log":
        for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            set_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "125" else "")


def draw(axes, x, y, colour, **more):
    """A line, with its points where they are few."""
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) <= 20 else None, markersize=3.5, **more)


def add_legend(axes, **more):
    """One without a frame."""
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, **more)


# ---- one run ---------------------------------------------------------------------------------------


def read_metrics(folder):
    """The lines of folder/metrics.jsonl: {"epoch", losses, "psnr": {scale: dB}, "seconds", ...} each.

    A line cut short, of a run that was killed, is left out. Raises InputError where no line is whole.
    """
    path, epochs = Path(folder) / "metrics.jsonl", []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the --save_dir of a run") from None
    for line in lines:
        try:
            epochs.append({"psnr": {}, **json.loads(line)})
        except (ValueError, TypeError):
            pass
    if not any("epoch" in entry for entry in epochs):
        raise InputError(f"{path}: holds no epoch yet")
    return [entry for entry in epochs if "epoch" in entry]


def curves(epochs):
    """Figure of read_metrics's epochs: a panel for every loss at the left, validation PSNR at the right.

    Loss axes are logarithmic where all values are positive. What an epoch lacks, or is not finite, is left out.
    """
    terms = {name: [entry.get(name, math.nan) for entry in epochs] for name in LOSSES}
    terms = {name: values for name, values in terms.items() if any(map(math.isfinite, values))}
    figure, numbers = new_figure(8, 4), [entry["epoch"] for entry in epochs]
    panels = figure.subplot_mosaic([[name, "psnr"] for name in terms] or [["psnr"]], sharex=True)
    for name, values in terms.items():
        draw(panels[name], numbers, values, COLOURS[name])
        panels[name].set_yscale("linear" if any(value <= 0 for value in values) else "log")
        tidy(panels[name], "epoch", LOSSES[name])
        panels[name].label_outer()
    for scale in sorted({scale for entry in epochs for scale in entry["psnr"]}):
        values = [entry["psnr"].get(scale, math.nan) for entry in epochs]
        draw(panels["psnr"], numbers, values, COLOURS.get(scale, INK), label=f"x{scale}  {values[-1]:.2f} dB")
    tidy(panels["psnr"], "epoch", "validation PSNR (dB)")
    if panels["psnr"].lines:
        add_legend(panels["psnr"])
    panels["psnr"].set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    panels["psnr"].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.align_ylabels()
    return figure


def save_curves(folder):
    """Draw `folder`/metrics.jsonl as `folder`/curves.png. Returns False where matplotlib is not installed.

    Raises InputError where there are no metrics or the file cannot be written.
    """
    if not find_spec("matplotlib"):
        return False
    save_figure(curves(read_metrics(folder)), Path(folder) / "curves.png", dpi=120)
    return True


# ---- several runs, several widths ------------------------------------------------------------------


def read_run(folder):
    """(source, start, what PSNR was measured on, [minutes], [mean PSNR over the scales]) of a run."""
    source, start, on = read_json(Path(folder) / "config.json", lambda config: (
        config.get("source", "folder"), config.get("student_init", "random"), config.get("val_dataset")))
    epochs = [entry for entry in read_metrics(folder) if entry["psnr"] and "seconds" in entry]
    psnr = [sum(entry["psnr"].values()) / len(entry["psnr"]) for entry in epochs]
    if not psnr or not all(map(math.isfinite, psnr)):
        raise InputError(f"{folder}: its metrics.jsonl lacks finite PSNR or seconds")
    on = f"{on or 'the validation set'}, {', '.join(f'x{scale}' for scale in sorted(epochs[-1]['psnr']))}"
    return source, start, on, [max(entry["seconds"], 0.1) / 60 for entry in epochs], psnr


def psnr_minutes(folders, labels=None):
    """Figure of the mean validation PSNR against minutes: a line for every run, dashed where it starts at random.

    labels: one for each run (default: its start and images). Raises InputError where runs were validated on other
    images or scales than the first.
    """
    runs = [read_run(folder) for folder in folders]
    images = {"folder": "real images", "generator": "generated", "dead_leaves": "dead leaves"}
    names = [f"{'from the teacher' if start == 'teacher' else 'random start'}, {images.get(source, source)}"
             for source, start, *_ in runs]
    names = labels or [name if names.count(name) == 1 else f"{name} ({Path(folder).name})"
                       for name, folder in zip(names, folders)]
    if len(names) != len(runs):
        raise InputError(f"--labels: {len(names)} for {len(runs)} runs")
    axes = new_figure(8, 4).add_subplot(xscale="log")
    for i, (folder, name, (_, start, on, minutes, psnr)) in enumerate(zip(folders, names, runs)):
        if on != runs[0][2]:
            raise InputError(f"{folder}: was validated on {on}, {folders[0]} on {runs[0][2]}")
        draw(axes, minutes, psnr, LINES[i % len(LINES)], linestyle="-" if start == "teacher" else "--",
             label=f"{psnr[-1]:.2f} dB  {name}")
    tidy(axes, "minutes", f"mean PSNR on {runs[0][2]} (dB)")
    add_legend(axes, handles=sorted(axes.lines, key=lambda line: -line.get_ydata()[-1]))
    return axes.figure


def read_widths(path):
    """[{"width", "parameters", "gmacs_per_megapixel", "latency_ms", "psnr": {scale: dB}}] of students, by width.

    A megapixel is the output's. "set" (default Set5) and "device" may say where they were measured. Raises InputError.
    """
    names = ("width", "parameters", "gmacs_per_megapixel", "latency_ms")
    rows = read_json(path, lambda rows: sorted(
        ({"set": "Set5", "device": "CPU", "mean": sum(row["psnr"].values()) / len(row["psnr"]), **row} for row in rows),
        key=lambda row: [float(row[name]) for name in names]))
    if not rows:
        raise InputError(f"{path}: holds no student")
    return rows


def width_figure(rows):
    """Mean PSNR against multiply-adds and against latency, and the level of the paper's half-width students."""
    figure, paper, first = new_figure(8, 3.6), paper_table(), rows[0]
    keys = [(first["set"], int(scale)) for scale in first["psnr"]]
    costs = {"gmacs_per_megapixel": "$10^9$ multiply-adds a megapixel of output",
             "latency_ms": f"latency (ms), {first['device']}"}
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True, subplot_kw={"xscale": "log"}), costs.items()):
        x, y = [row[cost] for row in rows], [row["mean"] for row in rows]
        draw(axes, x, y, COLOURS["student"], label="ours, by channels")
        for row, place in zip(rows, zip(x, y)):
            axes.annotate(row["width"], place, (-3, 5), textcoords="offset points", fontsize=8, ha="right")
        if all(key in paper for key in keys):
            for column, words, style in (("student", "with data", "--"), ("ours", "without data", ":")):
                axes.axhline(sum(paper[key][column][0] for key in keys) / len(keys), color=PALE, linestyle=style,
                             linewidth=1.2, label=f"the paper's, 32 channels, {words}")
        tidy(axes, label, f"mean PSNR on {first['set']}, {', '.join(f'x{scale}' for _, scale in keys)} (dB)")
        axes.label_outer()
    add_legend(axes, loc="lower right")
    return figure


def width_table(rows):
    """The same as Markdown."""
    scales = list(rows[0]["psnr"])
    lines = ["PSNR in dB on {set}; multiply-adds a megapixel of output; latency on {device}.".format(**rows[0]), "",
             f"| channels | parameters | 10^9 multiply-adds | latency (ms) | {' | '.join(f'x{s}' for s in scales)} |",
             "|---" * (4 + len(scales)) + "|"]
    lines += ["| {width} | {parameters:,} | {gmacs_per_megapixel:.1f} | {latency_ms:.1f} | ".format(**row)
              + " | ".join(f"{row['psnr'][s]:.2f}" for s in scales) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="*", metavar="SAVE_DIR", help="of a run")
    parser.add_argument("--labels", nargs="+", help="of the runs (default: their start and source)")
    parser.add_argument("--width", nargs="?", const="figure/results/width.json", metavar="FILE",
                        help="instead of runs: students of several widths")
    parser.add_argument("--output", help="the figure (default: figure/psnr_minutes.png or figure/width.png)")
    return parser.parse_args(argv)


def main(args):
    if bool(args.width) == bool(args.folders):
        raise InputError("give the folders of runs, or --width")
    output = Path(args.output or f"figure/{'width' if args.width else 'psnr_minutes'}.png")
    if args.width:
        rows = read_widths(args.width)
        save_figure(width_figure(rows), output)
        write_atomically(output.with_suffix(".md"), width_table(rows).encode())
    else:
        save_figure(psnr_minutes(args.folders, args.labels), output)
    print(output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
