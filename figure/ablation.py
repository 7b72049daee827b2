"""Tables of the smaller experiments: figure/demo.md, ablation.md and edsr.md, of results in figure/results.

    python -m figure.ablation

figure/results/demo/NAME_SEED.json (of a few minutes on a CPU), ablation/NAME_SEED.json and edsr/NAME_xSCALE.json
are the results.json of runs; those that differ in their seed or scale alone are a row.
"""

import re
from pathlib import Path

from figure.table import command, duration, read_results
from engine.options import Parser
from utils import run_script, write_atomically

TABLES = {"demo": "skimage", "ablation": "Set5", "edsr": "Set5"}  # and the set whose scores they show


def read_rows(folder):
    """{name: [(scores, content) of each run]} of the results in `folder`, sorted by name."""
    rows = {}
    for path in sorted(Path(folder).glob("*.json")):
        rows.setdefault(re.sub(r"_x?\d+$", "", path.stem), []).append(read_results(path))
    return rows


def trained(scores):
    """What a run trained: the student, or the teacher where that is what its scores are of."""
    return scores.get("student") or scores["teacher"]


def row(name, runs, on):
    """A line: the trained network's mean PSNR on a set at x2, x3 and x4, and half of how far runs are apart."""
    cells = []
    for scale in (2, 3, 4):
        psnr = [trained(scores[on, scale])[0] for scores, _ in runs if (on, scale) in scores]
        spread = f" ± {(max(psnr) - min(psnr)) / 2:.2f}" if len(psnr) > 1 else ""
        cells.append(f"{sum(psnr) / len(psnr):.2f}{spread}" if psnr else "not measured")
    content = runs[0][1]
    steps = content.get("student_steps", content.get("steps", 0))
    seconds = sum(content["seconds"] for _, content in runs) / len(runs)
    typed = re.sub(r" --(seed|scale)=\d+", "", command(content["args"]))
    return f"| {name} | {' | '.join(cells)} | {len(runs)} | {steps:,} | {duration(seconds)} | `{typed}` |"


def markdown(rows, on):
    """The table of scores on the set `on`, or that there is none yet."""
    if not rows:
        return "Not measured yet: `figure/reproduce.sh` runs these experiments.\n"
    devices = sorted({str(content.get("device")) for runs in rows.values() for _, content in runs})
    lines = [f"PSNR in dB on {on}, mean over seeds; time and steps of a run; measured on {', '.join(devices)}.", "",
             "| run | x2 | x3 | x4 | runs | steps | time | command |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join(lines + [row(name, runs, on) for name, runs in rows.items()]) + "\n"


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--results", default="figure/results", help="folder of the runs' results")
    parser.add_argument("--output", default="figure", help="folder for the tables")
    return parser.parse_args(argv)


def main(args):
    for name, on in TABLES.items():
        rows = read_rows(Path(args.results) / name)
        write_atomically(Path(args.output) / f"{name}.md", markdown(rows, on).encode())
        print(f"{args.output}/{name}.md: {len(rows)} rows")


if __name__ == "__main__":
    run_script(main, parse_arguments())
