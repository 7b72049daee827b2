"""Tables of results: the paper's Table 1 beside our numbers, and groups of runs, as the paper's Table 2.

    python -m figure.table                                # figure/table1.md and figure/Table1.png
    python -m figure.table figure/results/table2 ...      # figure/table2.md ...

figure/results/COLUMN.json is the results.json of the run that fills one of COLUMNS in Table 1; COLUMN.NAME.json, of
--test_only with the same network, has sets that the run did not score. GROUP/NAME_SEED.json (or NAME_xSCALE.json) is
that of a run; those of one NAME are a row. table2 has all rows of TABLE2, measured or not.
"""

import re
import textwrap
from itertools import chain
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from data.table import markdown_table, paper_table
from engine.options import Parser
from figure.plots import new_figure, open_json, save_png
from utils import run_script, write_atomically

COLUMNS = {  # of Table 1 after bicubic's: heading, what it means, the paper's column beside it, colour
    "teacher": ("Teacher", "with data", "teacher", "C0"),
    "student": ("Student", "with data", "student", "C1"),
    "student_from_teacher": ("Student", "with data, starts from the teacher", "student", "C1"),
    "noise": ("Noise", "no data", "noise", "C4"),
    "ours": ("Generator", "the paper's method", "ours", "C3"),
    "fast": ("Dead leaves", "no data, starts from the teacher", "student", "C2"),
}
FACTS = ("device", "steps", "images", "time", "teacher")  # of a run, below its column's heading
TABLE2 = {  # what the row has, the paper's PSNR on Set5 x2
    "m1": ("M1: noise", "34.38"), "m2": ("M2: reconstruction loss", "37.05"),
    "dfad": ("DFAD: adversarial loss", "36.23"), "m3": ("M3: both losses", "37.09"),
    "m4": ("M4: adversarial loss, in stages", "36.12"), "ours": ("Ours: both losses, in stages", "37.20"),
    "untrained": ("a generator that does not learn", ""), "untrained_stages": ("the same, in stages", ""),
}
MISSING = "not measured"
CELLS = "PSNR (dB) / SSIM, on luma: in every cell ours, the paper's, the difference."
BESIDE = "No student of the paper starts from its teacher; ours that do stand beside its Student, trained with data."
FOLDERS = r" --(data_dir|tmp_data_dir|save_dir|tmp_save_dir|output|resume)[= ]\S+"  # in a command


def read_rows(folder, end, known=None):
    """{row: [the content of each of its results.json]} of a folder, by name. Raises InputError.

    Each has "steps" and "scores" besides: {(set, scale): {"bicubic" and "trained", its student if any: (psnr, ssim)}}.
    end: pattern of what a file's name has after its row's. known: the only rows to read, where given.
    """
    rows, pair = {}, itemgetter("psnr", "ssim")
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.stem):
        row = re.sub(end, "", path.stem)
        if path.suffix == ".json" and row in (known or [row]):
            with open_json(path) as run:
                steps = run.get("student_steps", run.get("steps", 0))
                itemgetter("args", "command", "date", "device", "git")(run)  # which every run says
                scores = {(on, int(scale)): {"bicubic": pair(found["bicubic"]),
                                             "trained": pair(found.get("student") or found["teacher"])}
                          for on, by_scale in run["results"].items() for scale, found in by_scale.items()}
            rows.setdefault(row, []).append({"seconds": 0, "images": 0, **run, "steps": steps, "scores": scores})
    return rows


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def command(run):
    """The command of a results.json, as code, without its folders; of other paths the file's name."""
    return "`{}`".format(re.sub(r"[^\s=]*/", "", re.sub(FOLDERS, "", run["command"])))


def facts(runs):
    """The texts of FACTS, of a column's first run; those of training are empty where the network was only scored."""
    if not runs:
        return [""] * len(FACTS)
    run = runs[0]
    device = ", ".join(filter(None, (run["device"], run["args"].get("precision"))))
    training = [device, f"{run['steps']:,}", f"{run['images']:,}", duration(run["seconds"])]
    return (training if run["steps"] else [""] * 4) + [Path(run["args"].get("pretrained") or "").name]


def cell(runs, place, name, paper):
    """The first run's (psnr, ssim) that scored the place (set, scale), the paper's, the difference of what is shown."""
    theirs = "{:.2f} / {:.4f}".format(*paper)
    for run in runs:
        if place in run["scores"]:
            psnr, ssim = map(round, run["scores"][place][name], (2, 4))
            return f"**{psnr:.2f} / {ssim:.4f}**<br>{theirs}<br>{psnr - paper[0]:+.2f} / {ssim - paper[1]:+.4f}"
    return f"{MISSING}<br>{theirs}"


def table_rows(columns):
    """The whole table as rows of Markdown, of {column: its runs}: headings, facts, the paper's twelve rows."""
    paper, everything = paper_table(), [*chain(*columns.values())]  # every run scores bicubic
    bicubic = [cell(everything, place, "bicubic", theirs["bicubic"]) for place, theirs in paper.items()]
    nothing = facts(())
    table = [["", *FACTS, *(on for on, _ in paper)], ["", *nothing, *(f"x{scale}" for _, scale in paper)],
             ["**Bicubic**<br>", *nothing, *bicubic]]
    for column, (heading, meaning, beside, _) in COLUMNS.items():
        cells = [cell(columns[column], place, "trained", theirs[beside]) for place, theirs in paper.items()]
        table.append([f"**{heading}**<br>{meaning}", *facts(columns[column]), *cells])
    return [*zip(*table)]


def markdown(rows, columns):
    """The table of table_rows's rows, and below it the commands."""
    text = f"{CELLS} {BESIDE}\n\n{markdown_table(rows[0], rows[1:])}\nWhere each column comes from:\n\n"
    for column, (heading, meaning, *_) in COLUMNS.items():
        sources = [f"{run['date']}, commit {run['git']}, {command(run)}" for run in columns[column]]
        text += f"- {heading}, {meaning}: {'; '.join(sources) or MISSING}\n"
    return text


def picture(rows):
    """The table as a matplotlib Figure."""

    def shown(text):
        text = "\n".join(textwrap.fill(line, 19) for line in text.split("<br>"))
        return re.sub(r"\*\*(.*)\*\*", lambda bold: "$\\mathbf{%s}$" % bold[1].replace(" ", "~"), text)

    rows = [[shown(text) for text in row] for row in rows]
    heights = [1.25 + 1.2 * max(text.count("\n") for text in row) for row in rows]  # in lines
    figure = new_figure(0.13 * sum(heights) + 0.4)
    figure.get_layout_engine().set(w_pad=0)  # columns of whole pixels: text is sharper, the file smaller
    axes = figure.add_subplot()
    axes.axis("off")
    grid = axes.table(rows, cellLoc="center", colWidths=[0.09, 0.035] + [0.125] * len(rows[0][2:]), bbox=(0, 0, 1, 1))
    grid.auto_set_font_size(False)
    colours = ["C7", *(colour for *_, colour in COLUMNS.values())]
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


def mean(psnr):
    """The mean of PSNRs in dB, and half of how far they are apart, as text."""
    spread = f" ± {(max(psnr) - min(psnr)) / 2:.2f}" if len(psnr) > 1 else ""
    return f"{fmean(psnr):.2f}{spread}" if psnr else MISSING


def group_markdown(rows):
    """A group's table: of every row and set the trained network's PSNR at every scale, over the row's seeds."""
    everything = [*chain(*rows.values())]
    if not everything:
        return "Not measured yet: `figure/reproduce.sh` runs these experiments.\n"
    sets, scales = map(dict.fromkeys, zip(*(place for run in everything for place in run["scores"])))
    devices = ", ".join(sorted({run["device"] for run in everything}))
    paper = ["the paper's"] if "m1" in rows else []
    heads = ["run", "set", *(f"x{scale}" for scale in sorted(scales)), *paper, "runs", "steps", "time", "command"]
    lines = []
    for name, runs in rows.items():
        label, theirs = TABLE2.get(name, (name, ""))
        about = [""] * 4
        if runs:
            time = duration(fmean(run["seconds"] for run in runs))
            about = [str(len(runs)), f"{runs[0]['steps']:,}", time, command(runs[0])]
        for on in sets:
            psnr = [mean([run["scores"][on, scale]["trained"][0] for run in runs if (on, scale) in run["scores"]])
                    for scale in sorted(scales)]
            lines.append([label, on, *psnr, *([theirs if on == "Set5" else ""] if paper else []), *about])
    return ("PSNR in dB, mean over the runs ± half of how far they are apart; their mean time; steps and command of "
            f"the first. Measured on {devices}.\n\n{markdown_table(heads, lines)}")


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="instead of Table 1: folders of a group's results")
    parser.add_argument("--results", default="figure/results", help="folder of Table 1's results")
    parser.add_argument("--output", default="figure", help="folder for the tables")
    return parser.parse_args(argv)


def main(args):
    output = Path(args.output)
    for group in map(Path, args.groups):
        rows = dict.fromkeys(TABLE2, ()) if group.name == "table2" else {}
        rows |= read_rows(group, r"_x?\d+$")
        write_atomically(output / f"{group.name}.md", group_markdown(rows).encode())
        print(f"{output / group.name}.md: {len(rows)} rows")
    if not args.groups:
        columns = dict.fromkeys(COLUMNS, ()) | read_rows(args.results, r"\..*", COLUMNS)
        rows = table_rows(columns)
        write_atomically(output / "table1.md", markdown(rows, columns).encode())
        save_png(picture(rows).savefig, output / "Table1.png")  # last: it needs matplotlib
        missing = ", ".join(column for column, runs in columns.items() if not runs)
        print(f"{args.output}/table1.md and Table1.png; not measured: {missing or 'nothing'}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
