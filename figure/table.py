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
from figure.plots import markdown_table, new_figure, open_json, save_png
from utils import InputError, run_script, write_atomically

COLUMNS = {  # heading, what it means, its name in results.json, the paper's column beside it, colour
    "bicubic": ("Bicubic", "", "bicubic", "bicubic", "C7"),
    "teacher": ("Teacher", "with data", "teacher", "teacher", "C0"),
    "student": ("Student", "with data", "student", "student", "C1"),
    "student_from_teacher": ("Student", "with data, starts from the teacher", "student", "student", "C1"),
    "noise": ("Noise", "no data", "student", "noise", "C4"),
    "ours": ("Generator", "the paper's method", "student", "ours", "C3"),
    "fast": ("Dead leaves", "no data, starts from the teacher", "student", "student", "C2"),
}
FACTS = ("device", "steps", "images", "time", "teacher")  # of a run, below its column's heading
MISSING = "not measured"
CELLS = "PSNR (dB) / SSIM, on luma: in every cell ours, the paper's, the difference."
BESIDE = "No student of the paper starts from its teacher; ours that do stand beside its Student, trained with data."
FOLDERS = r" --(data_dir|tmp_data_dir|save_dir|tmp_save_dir|output|resume)[= ]\S+"  # in a command


def read_results(path):
    """({(set, scale): {name: (psnr, ssim)}}, all that it says of the run) of a results.json. Raises InputError."""
    with open_json(path) as record:
        scores = {(name, int(scale)): {which: (float(s["psnr"]), float(s["ssim"])) for which, s in row.items()}
                  for name, by_scale in record["results"].items() for scale, row in by_scale.items()}
        steps = int(record.get("student_steps", record.get("steps", 0)))
        return scores, {"args": {}, "seconds": 0, "images": 0, "date": "undated", "git": "unknown", "device": "",
                        "command": "", **record, "steps": steps}


def collect(folder):
    """({(set, scale): {column: (psnr, ssim)}}, {column: [content of its files, the run's first]}) of a folder.

    Where files score the same, the first counts. Raises InputError for a file without its column's scores.
    """
    measured, records = {}, {}
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.stem):
        column = path.name.partition(".")[0]
        if path.suffix != ".json" or column not in COLUMNS:
            continue
        scores, record = read_results(path)
        records.setdefault(column, []).append(record)
        for place, reached in scores.items():
            for cell, name in ((column, COLUMNS[column][2]), ("bicubic", "bicubic")):
                if name not in reached:
                    raise InputError(f"{path}: has no scores of a {name}, but of {', '.join(reached)}")
                measured.setdefault(place, {}).setdefault(cell, reached[name])
    return measured, records


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def facts(record):
    """The texts of FACTS; those of training are empty where the network was only scored."""
    teacher = Path(record["args"].get("pretrained") or "").name
    if not record["steps"]:
        return [""] * 4 + [teacher]
    device = ", ".join(filter(None, (record["device"], record["args"].get("precision"))))
    return [device, f"{record['steps']:,}", f"{record['images']:,}", duration(record["seconds"]), teacher]


def command(record):
    """The command of a results.json, as code, without its folders; of other paths the file's name."""
    words = re.sub(r"[^\s=]*/", "", re.sub(FOLDERS, "", record["command"]))
    return words and f"`{words}`"


def cell(ours, paper):
    """Ours, the paper's and the difference of what is shown, of (psnr, ssim) each; ours may be None."""
    theirs = "{:.2f} / {:.4f}".format(*paper)
    if ours is None:
        return f"{MISSING}<br>{theirs}"
    psnr, ssim = round(ours[0], 2), round(ours[1], 4)
    return f"**{psnr:.2f} / {ssim:.4f}**<br>{theirs}<br>{psnr - paper[0]:+.2f} / {ssim - paper[1]:+.4f}"


def table_rows(measured, records):
    """The whole table as rows of Markdown: headings, facts, the paper's twelve rows."""
    rows = [["", ""] + [f"**{heading}**<br>{meaning}" for heading, meaning, *_ in COLUMNS.values()]]
    about = [facts(records[column][0]) if column in records else [""] * len(FACTS) for column in COLUMNS]
    rows += [[name, "", *texts] for name, texts in zip(FACTS, zip(*about))]
    for (name, scale), paper in paper_table().items():
        ours = measured.get((name, scale), {})
        rows.append([name, f"x{scale}"] + [cell(ours.get(column), paper[theirs])
                                           for column, (_, _, _, theirs, _) in COLUMNS.items()])
    return rows


def markdown(rows, records):
    """The table of table_rows's rows, and below it the commands."""
    text = f"{CELLS} {BESIDE}\n\n{markdown_table(rows[0], rows[1:])}\nWhere each column comes from:\n\n"
    for column, (heading, meaning, *_) in list(COLUMNS.items())[1:]:
        sources = [f"{record['date']}, commit {record['git']}, {command(record)}" for record in records.get(column, ())]
        text += f"- {heading}, {meaning}: {'; '.join(sources) or MISSING}\n"
    return text


def picture(rows):
    """The same as a matplotlib Figure, 8 inches wide, without the commands."""
    rows = [["\n".join(textwrap.fill(line, 19) for line in text.split("<br>")) for text in row] for row in rows]
    rows = [[re.sub(r"\*\*(.*)\*\*", lambda bold: "$\\mathbf{%s}$" % bold[1].replace(" ", "~"), text) for text in row]
            for row in rows]
    heights = [1.25 + 1.2 * max(text.count("\n") for text in row) for row in rows]  # in lines
    figure = new_figure(8, 0.13 * sum(heights) + 0.4)
    figure.get_layout_engine().set(w_pad=0)  # columns of whole pixels: text is sharper, the file smaller
    axes = figure.add_subplot()
    axes.axis("off")
    grid = axes.table(rows, cellLoc="center", colWidths=[0.09, 0.035] + [0.125] * len(COLUMNS), bbox=(0, 0, 1, 1))
    grid.auto_set_font_size(False)
    colours = [colour for *_, colour in COLUMNS.values()]
    for (i, k), box in grid.get_celld().items():
        score, text = i - len(FACTS) - 1, box.get_text()  # the number among the rows of scores
        box.set(height=heights[i], linewidth=0, facecolor="#f3f5f7" if score >= 0 and score % 6 < 3 else "white")
        text.set(color="gray" if MISSING in rows[i][k] or k < 2 else "black" if i else colours[k - 2],
                 linespacing=1.3, fontsize=6.8)
        if k == 0 and score >= 0 and score % 3 != 1:
            text.set_text("")  # a set is named once
    figure.suptitle(CELLS, fontsize=7, color="gray")
    figure.supxlabel(BESIDE, fontsize=7, color="gray")
    return figure


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--results", default="figure/results", help="folder of the runs' results")
    parser.add_argument("--output", default="figure", help="folder for table1.md and Table1.png")
    return parser.parse_args(argv)


def main(args):
    measured, records = collect(args.results)
    rows = table_rows(measured, records)
    save_png(picture(rows).savefig, Path(args.output) / "Table1.png")
    write_atomically(Path(args.output) / "table1.md", markdown(rows, records).encode())
    missing = ", ".join(column for column in list(COLUMNS)[1:] if column not in records)
    print(f"{args.output}/table1.md and Table1.png; not measured: {missing or 'nothing'}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
