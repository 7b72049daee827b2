"""The paper's Table 1 beside our numbers: figure/table1.md and figure/Table1.png.

    python -m figure.table

figure/results/ holds the results.json of full runs, each named after the column it fills:

    teacher.json  train_teacher.py --model_type=origin     noise.json  distillation.py --source=noise
    student.json  train_teacher.py --model_type=half       ours.json   distillation.py, the paper's command
    fast.json     distillation.py with dead leaves, which the paper does not have
"""

import json
import textwrap
from pathlib import Path

import distillation
import train_teacher
from data.table import paper_scores
from figure.plots import COLOURS, INK, new_figure, save_figure
from models import VDSR
from engine.options import Parser
from engine.run import MAY_CHANGE
from utils import InputError, run_script, write_atomically

COLUMNS = {  # heading, what it means, its name in results.json, the paper's column beside it, colour
    "bicubic": ("Bicubic", "", "bicubic", "bicubic", "bicubic"),
    "teacher": ("Teacher", "with data", "teacher", "teacher", "teacher"),
    "student": ("Student", "with data", "student", "student", "student"),
    "noise": ("Noise", "no data", "student", "noise", "noise"),
    "ours": ("Data-free", "the paper's method", "student", "ours", "generator"),
    "fast": ("Dead leaves", "no data; vs. Student", "student", "student", "dead_leaves"),
}
MISSING = "not measured"
BESIDE = "The paper has no column Dead leaves: our numbers stand beside its Student, which was trained with the data."
COMMANDS = "How each column came about; flags not shown have their defaults:"


# ---- what was measured -----------------------------------------------------------------------------


def read_results(path):
    """(scores {(set, scale): {name: (psnr, ssim)}}, the whole content) of a results.json. Raises InputError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scores = {(name, int(scale)): {which: (float(s["psnr"]), float(s["ssim"])) for which, s in row.items()}
                  for name, by_scale in record["results"].items() for scale, row in by_scale.items()}
        record["seconds"], record["args"] = float(record["seconds"]), dict(record["args"])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no results.json of a run ({type(error).__name__}: {error})") from None
    return scores, record


def collect(folder):
    """What the runs in `folder` reached: ({(set, scale): {column: (psnr, ssim)}}, {column: results.json}).

    The bicubic column is any run's. Raises InputError for a file of no column or without its scores.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of results")
    measured, records = {}, {}
    for path in sorted(Path(folder).glob("*.json")):
        column = path.stem
        if column not in COLUMNS or column == "bicubic":
            raise InputError(f"{path}: names no column; those are {', '.join(list(COLUMNS)[1:])}")
        scores, records[column] = read_results(path)
        name = COLUMNS[column][2]
        for row, reached in scores.items():
            if name not in reached:
                raise InputError(f"{path}: has no scores of a {name}, but of {', '.join(reached)}")
            measured.setdefault(row, {})[column] = reached[name]
            if "bicubic" in reached:
                measured[row]["bicubic"] = reached["bicubic"]
    return measured, records


def cell(ours, theirs):
    """[ours, the paper's, the difference of what is shown] as text, of (psnr, ssim) each; ours may be None."""
    if ours is None:
        return [MISSING, "{:.2f} / {:.4f}".format(*theirs), ""]
    psnr, ssim = round(ours[0], 2), round(ours[1], 4)
    return [f"{psnr:.2f} / {ssim:.4f}", "{:.2f} / {:.4f}".format(*theirs),
            f"{psnr - theirs[0]:+.2f} / {ssim - theirs[1]:+.4f}"]


def make_rows(measured):
    """[(set, scale, [cell of every column])], the twelve rows of the paper's table."""
    return [(name, scale, [cell(measured.get((name, scale), {}).get(column), paper[theirs])
                           for column, (_, _, _, theirs, _) in COLUMNS.items()])
            for (name, scale), paper in paper_scores(VDSR()).items()]


def duration(seconds):
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def command(args):
    """The command of results.json's "args": flags other than the defaults, of paths the file's name alone."""
    script = distillation if "source" in args else train_teacher
    flags = ["--recipe=fast"] * (args.get("recipe") == "fast") + ["--demo"] * args.get("demo", False)
    defaults = vars(script.parse_arguments(flags))  # which the recipe and the demo change
    for name, value in args.items():
        if name in MAY_CHANGE - {"pretrained"} or value is None or value == defaults.get(name):
            continue
        if name in ("noise", "noise_at") and args.get("source") != "noise":
            continue
        flag = {"weight_decay": "wd", "start_epoch": "start-epoch"}.get(name, name)
        if name == "pretrained":
            value = Path(value).name
            if value == Path(str(defaults[name])).name:
                continue
        if value is not False:
            flags.append(f"--{flag}" if value is True else f"--{flag}={value}")
    return " ".join(["python", Path(script.__file__).name, *flags])


def describe(record):
    """(time, device, steps, date where there is one, commit; the command) of a run's results.json."""
    facts = [duration(record["seconds"]), record.get("device")]
    facts += [f"{record[name]:,} {name.replace('_', ' ')}" for name in ("student_steps", "steps") if name in record]
    facts += [record.get("date"), f"commit {record['git']}" if "git" in record else None]
    return ", ".join(fact for fact in facts if fact), command(record["args"])


# ---- as text and as a picture ----------------------------------------------------------------------


def markdown(measured, records):
    """The table as Markdown, and below it how every column came about."""
    headings = [f"{heading}<br>{meaning}" if meaning else heading for heading, meaning, *_ in COLUMNS.values()]
    lines = ["In every cell: **ours**, the paper's, the difference; PSNR in dB / SSIM, on luma. " + BESIDE, "",
             "| set | scale | " + " | ".join(headings) + " |", "|---|---|" + "---|" * len(headings)]
    for name, scale, cells in make_rows(measured):
        texts = [f"**{ours}**<br>{theirs}<br>{difference}" if difference else f"{ours}<br>{theirs}"
                 for ours, theirs, difference in cells]
        lines.append(f"| {name} | x{scale} | " + " | ".join(texts) + " |")
    lines += ["", COMMANDS, ""]
    for column, (heading, *_) in list(COLUMNS.items())[1:]:
        facts = "{}: `{}`".format(*describe(records[column])) if column in records else MISSING
        lines.append(f"- {heading}: {facts}")
    return "\n".join(lines) + "\n"


_TOP, _ROW, _LINE = 0.95, 0.5, 0.135  # inches: of what is above the rows, of a row, of a line of text
_COLUMN, _LEFT, _WIDTH = 1.16, 1.0, 8.0
PALE = "#6d747e"


def picture(measured, records):
    """The same as a matplotlib Figure, 8 inches wide."""
    rows = make_rows(measured)
    notes = _notes(records)
    bottom = _TOP + _ROW * len(rows)
    height = bottom + 0.3 + _LINE * len(notes)
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.axis("off")

    def write(x, y, text, size=7.5, colour=INK, **more):
        axes.text(x, y, text, fontsize=size, color=colour, va="center", **more)

    for i, (heading, meaning, _, _, colour) in enumerate(COLUMNS.values()):
        x = _LEFT + (i + 0.5) * _COLUMN
        write(x, 0.5, heading, 9.5, ha="center", weight="bold")
        write(x, 0.69, meaning, 7, PALE, ha="center")
        axes.plot((x - 0.47 * _COLUMN, x + 0.47 * _COLUMN), (_TOP - 0.1,) * 2, color=COLOURS[colour], linewidth=2.5)
    write(0.1, 0.17, "PSNR (dB) / SSIM:", 8)
    write(1.25, 0.17, "ours", 8, weight="bold")
    write(1.58, 0.17, "the paper's", 8, PALE)
    write(2.32, 0.17, "the difference", 8)
    for i, (name, scale, cells) in enumerate(rows):
        _draw_row(axes, write, _TOP + i * _ROW, name, scale, cells)
    for i, (text, style) in enumerate(notes):
        write(0.1, bottom + 0.22 + i * _LINE, text, **style)
    return figure


def _draw_row(axes, write, top, name, scale, cells):
    """One row, from `top` inches down; the sets take turns in their background."""
    if name in ("Set5", "B100"):
        axes.axhspan(top, top + _ROW, color="#f3f5f7", linewidth=0)
    middle = top + _ROW / 2
    if scale == 3:
        write(0.1, middle, name, 8, weight="bold")
    write(0.8, middle, f"x{scale}", 8)
    for k, (ours, theirs, difference) in enumerate(cells):
        x = _LEFT + (k + 0.5) * _COLUMN
        if difference:
            write(x, middle - _LINE, ours, ha="center", weight="bold")
            write(x, middle + _LINE, difference, 7, ha="center")
            write(x, middle, theirs, 7, PALE, ha="center")
        else:
            write(x, middle - _LINE / 2, ours, 7, PALE, ha="center", style="italic")
            write(x, middle + _LINE / 2, theirs, 7, PALE, ha="center")


def _notes(records):
    """[(line, its style)] below the table."""
    lines = [(BESIDE, {"colour": PALE}), ("", {}), (COMMANDS, {"colour": PALE})]
    for column, (heading, *_) in list(COLUMNS.items())[1:]:
        if column not in records:
            lines.append((f"{heading}: {MISSING}", {}))
            continue
        facts, typed = describe(records[column])
        lines.append((f"{heading}: {facts}", {}))
        lines += [(line, {"size": 6.5, "family": "monospace", "colour": INK})
                  for line in textwrap.wrap(typed, 120, break_on_hyphens=False, initial_indent="  ",
                                            subsequent_indent="    ")]
    return lines


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--results", default="figure/results", help="folder of the runs' results")
    parser.add_argument("--output", default="figure", help="folder for table1.md and Table1.png")
    return parser.parse_args(argv)


def main(args):
    measured, records = collect(args.results)
    figure, text = picture(measured, records), markdown(measured, records)
    save_figure(figure, Path(args.output) / "Table1.png")
    write_atomically(Path(args.output) / "table1.md", text.encode())
    print(f"{args.output}/table1.md and Table1.png: {len(records)} of {len(COLUMNS) - 1} runs")


if __name__ == "__main__":
    run_script(main, parse_arguments())
