"""What the method's parts bring: figure/ablation.md, of the results in figure/results/ablation.

    python -m figure.ablation

A file NAME_SEED.json there is the results.json of a run; runs that differ in their seed alone are a row.
"""

import re
from pathlib import Path

from figure.table import command, duration, read_results
from options import Parser
from utils import run_script, write_atomically


def read_rows(folder):
    """{name: [(scores, content) of a seed]} of the results in `folder`, sorted by name."""
    rows = {}
    for path in sorted(Path(folder).glob("*.json")):
        rows.setdefault(re.sub(r"_\d+$", "", path.stem), []).append(read_results(path))
    return rows


def row(name, runs):
    """A line: the network's mean PSNR on Set5 at x2, x3 and x4, and half of how far the seeds are apart."""
    cells = []
    for scale in (2, 3, 4):
        found = [scores.get(("Set5", scale), {}) for scores, _ in runs]
        psnr = [(scores.get("student") or scores.get("teacher"))[0] for scores in found if scores]
        spread = f" ± {(max(psnr) - min(psnr)) / 2:.2f}" if len(psnr) > 1 else ""
        cells.append(f"{sum(psnr) / len(psnr):.2f}{spread}" if psnr else "not measured")
    content = runs[0][1]
    steps = content.get("student_steps", content.get("steps", 0))
    seconds = sum(content["seconds"] for _, content in runs) / len(runs)
    typed = re.sub(r" --seed=\d+", "", command(content["args"]))
    return f"| {name} | {' | '.join(cells)} | {len(runs)} | {steps:,} | {duration(seconds)} | `{typed}` |"


def markdown(rows):
    """The table, or that there is none yet."""
    if not rows:
        return "No ablation has been measured yet: `figure/reproduce.sh` runs them.\n"
    devices = sorted({str(content.get("device")) for runs in rows.values() for _, content in runs})
    lines = [f"PSNR in dB on Set5, mean over seeds; measured on {', '.join(devices)}.", "",
             "| run | x2 | x3 | x4 | seeds | steps | time | command |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join(lines + [row(name, runs) for name, runs in rows.items()]) + "\n"


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--results", default="figure/results", help="folder of the runs' results")
    parser.add_argument("--output", default="figure", help="folder for ablation.md")
    return parser.parse_args(argv)


def main(args):
    rows = read_rows(Path(args.results) / "ablation")
    write_atomically(Path(args.output) / "ablation.md", markdown(rows).encode())
    print(f"{args.output}/ablation.md: {len(rows)} rows")


if __name__ == "__main__":
    run_script(main, parse_arguments())
