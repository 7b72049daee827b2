"""The paper's Table 1 beside our numbers: figure/table1.md and figure/Table1.png.

    python -m figure.table

figure/results/COLUMN.json is the results.json of the run that fills a column: teacher, student, student_from_teacher,
noise, ours or fast. COLUMN.NAME.json, of --test_only with the same network, has sets that the run did not score.
"""

import re
import textwrap
from pathlib import Path

from data.table import paper_table
from engine.options import Parser
from figure.plots import COLOURS, INK, PALE, new_figure, read_json, save_figure
from utils import InputError, run_script, write_atomically

COLUMNS = {  # heading, what it means, its name in results.json, the paper's column beside it, colour
    "bicubic": ("Bicubic", "", "bicubic", "bicubic", "bicubic"),
    "teacher": ("Teacher", "with data", "teacher", "teacher", "teacher"),
    "student": ("Student", "with data", "student", "student", "student"),
    "student_from_teacher": ("Student", "with data, starts from the teacher", "student", "student", "student"),
    "noise": ("Noise", "no data", "student", "noise", "noise"),
    "ours": ("Generator", "the paper's method", "student", "ours", "generator"),
    "fast": ("Dead leaves", "no data, starts from the teacher", "student", "student", "dead_leaves"),
}
FACTS = ("device", "steps", "images", "time", "teacher")  # of a run, below its column's heading
MISSING = "not measured"
CELLS = "PSNR (dB) / SSIM, on luma: in every cell ours, the paper's, the difference."
BESIDE = "No student of the paper starts from its teacher; ours that do stand beside its Student, trained with data."
NO_PLACES = r" --(data_dir|tmp_data_dir|save_dir|tmp_save_dir|output|resume)[= ]\S+"  # of a command


# ---- what was measured -----------------------------------------------------------------------------


def read_results(path):
    """({(set, scale): {name: (psnr, ssim)}}, the whole content) of a results.json. Raises InputError."""
    return read_json(path, lambda record: (
        {(name, int(scale)): {which: (float(s["psnr"]), float(s["ssim"])) for which, s in row.items()}
         for name, by_scale in record["results"].items() for scale, row in by_scale.items()},
        {"args": {}, "seconds": 0, **record, "steps": record.get("student_steps", record.get("steps", 0))}))


def collect(folder):
    """({(set, scale): {column: (psnr, ssim)}}, {column: [content of its files, the run's first]}) of a folder.

    The bicubic column is any file's. Raises InputError for a file without its column's scores, or with other ones than
    another file of the column.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of results")
    measured, records = {}, {}
    for column, (_, _, name, *_) in COLUMNS.items():
        for path in sorted([*Path(folder).glob(f"{column}.json"), *Path(folder).glob(f"{column}.*.json")]):
            scores, record = read_results(path)
            for row, reached in scores.items():
                if name not in reached:
                    raise InputError(f"{path}: has no scores of a {name}, but of {', '.join(reached)}")
                cells = measured.setdefault(row, {})
                if abs(cells.setdefault(column, reached[name])[0] - reached[name][0]) > 0.01:
                    raise InputError(f"{path}: scores {row[0]} x{row[1]} otherwise than another file of {column}")
                if "bicubic" in reached:
                    cells.setdefault("bicubic", reached["bicubic"])
            records.setdefault(column, []).append(record)
            records[column].sort(key=lambda record: not record["steps"])
    return measured, records


def duration(seconds):
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def facts(record):
    """{name in FACTS: text} of a results.json; those of training are missing where it was only scored."""
    teacher = {"teacher": Path(record["args"].get("pretrained") or "").name}
    if not record["steps"]:
        return teacher
    images = f"{record['images']:,}" if "images" in record else ""
    return {"device": str(record.get("device", "")), "steps": f"{record['steps']:,}", "images": images,
            "time": duration(record["seconds"]), **teacher}


def command(record):
    """The command of a results.json without its folders; of other paths the file's name."""
    return re.sub(r"[^\s=]*/", "", re.sub(NO_PLACES, "", record.get("command", "")))


def cell(ours, theirs):
    """[ours, the paper's, the difference of what is shown] as text, of (psnr, ssim) each; ours may be None."""
    if ours is None:
        return [MISSING, "{:.2f} / {:.4f}".format(*theirs)]
    psnr, ssim = round(ours[0], 2), round(ours[1], 4)
    return [f"{psnr:.2f} / {ssim:.4f}", "{:.2f} / {:.4f}".format(*theirs),
            f"{psnr - theirs[0]:+.2f} / {ssim - theirs[1]:+.4f}"]


# ---- as text and as a picture ----------------------------------------------------------------------


def lay_out(measured, records, bold, newline):
    """The whole table as rows of texts: headings, facts, the paper's twelve rows. bold(text): our scores."""
    about = [facts(records[column][0]) if column in records else {} for column in COLUMNS]
    rows = [["", ""] + [f"{bold(heading)}{newline}{meaning}" for heading, meaning, *_ in COLUMNS.values()]]
    rows += [[name, ""] + [column.get(name, "") for column in about] for name in FACTS]
    for (name, scale), paper in paper_table().items():
        ours = measured.get((name, scale), {})
        cells = [cell(ours.get(column), paper[theirs]) for column, (_, _, _, theirs, _) in COLUMNS.items()]
        rows.append([name, f"x{scale}"] + [
            newline.join([first if first == MISSING else bold(first), *others]) for first, *others in cells])
    return rows


def markdown(measured, records):
    """The table as Markdown, and below it the commands."""
    rows = [f"| {' | '.join(row)} |" for row in lay_out(measured, records, "**{}**".format, "<br>")]
    rows.insert(1, "|---" * (2 + len(COLUMNS)) + "|")
    lines = []
    for column, (heading, meaning, *_) in list(COLUMNS.items())[1:]:
        sources = [", ".join(filter(None, (r.get("date"), f"commit {r.get('git', 'unknown')}", f"`{command(r)}`")))
                   for r in records.get(column, ())]
        lines.append(f"- {heading}, {meaning}: {'; '.join(sources) or MISSING}")
    return "\n".join([f"{CELLS} {BESIDE}", "", *rows, "", "Where each column comes from:", "",
                      *lines, ""])


def picture(measured, records):
    """The same as a matplotlib Figure, 8 inches wide, without the commands."""
    rows = lay_out(measured, records, lambda text: "$\\mathbf{%s}$" % text.replace(" ", "~"), "\n")
    rows[:2] = [["\n".join(textwrap.fill(line, 20, break_long_words=False)  # headings and devices
                           for line in text.replace(" (", "\n(").split("\n")) for text in row] for row in rows[:2]]
    heights = [3.8] + [1.25 + 1.2 * max(text.count("\n") for text in row) for row in rows[1:]]  # in lines
    figure = new_figure(8, 0.13 * sum(heights) + 0.4, layout=None)
    margin = 0.2 / figure.get_figheight()
    axes = figure.add_axes((0, margin, 1, 1 - 2 * margin))
    axes.axis("off")
    grid = axes.table(rows, cellLoc="center", colWidths=[0.09, 0.035] + [0.125] * len(COLUMNS), bbox=(0, 0, 1, 1))
    grid.auto_set_font_size(False)
    colours = [INK, INK, *(COLOURS[about[-1]] for about in COLUMNS.values())]
    for (i, k), box in grid.get_celld().items():
        score = i - len(FACTS) - 1  # the row's number
        box.set(height=heights[i], linewidth=0, facecolor="#f3f5f7" if score >= 0 and score % 6 < 3 else "white")
        box.get_text().set(color=PALE if MISSING in rows[i][k] or k < 2 else INK if i else colours[k], linespacing=1.3,
                           fontsize=7 if score >= 0 else 6.4)
        if k == 0 and score >= 0 and score % 3 != 1:
            box.get_text().set_text("")
    axes.set_title(CELLS, fontsize=7, color=PALE, pad=3)
    figure.text(0.5, margin / 2, BESIDE, fontsize=6.5, color=PALE, ha="center", va="center")
    return figure


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
    missing = ", ".join(column for column in list(COLUMNS)[1:] if column not in records)
    print(f"{args.output}/table1.md and Table1.png; not measured: {missing or 'nothing'}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
