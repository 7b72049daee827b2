"""Tables of groups of runs: the paper's Table 2, and any folder of results.

    python -m figure.ablation                             # figure/results/table2 as figure/table2.md
    python -m figure.ablation figure/results/demo ...     # as figure/demo.md ...

FOLDER/NAME_SEED.json (or NAME_xSCALE.json) is the results.json of a run; those of one NAME are a row. table2 has all
rows of TABLE2, measured or not.
"""

import re
from pathlib import Path
from statistics import fmean

from engine.options import Parser
from figure.plots import markdown_table
from figure.table import MISSING, command, duration, read_results
from utils import run_script, write_atomically

TABLE2 = {  # what the row has, the paper's PSNR on Set5 x2
    "m1": ("M1: noise", "34.38"), "m2": ("M2: reconstruction loss", "37.05"),
    "dfad": ("DFAD: adversarial loss", "36.23"), "m3": ("M3: both losses", "37.09"),
    "m4": ("M4: adversarial loss, in stages", "36.12"), "ours": ("Ours: both losses, in stages", "37.20"),
    "untrained": ("a generator that does not learn", ""),
}


def read_rows(folder):
    """{name: [(scores, content) of each run]} of the results in `folder`, by name; of table2 in TABLE2's order."""
    rows = {name: [] for name in TABLE2} if Path(folder).name == "table2" else {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix == ".json":
            rows.setdefault(re.sub(r"_x?\d+$", "", path.stem), []).append(read_results(path))
    return rows


def mean(psnr):
    """The mean of PSNRs in dB, and half of how far they are apart, as text."""
    spread = f" ± {(max(psnr) - min(psnr)) / 2:.2f}" if len(psnr) > 1 else ""
    return f"{fmean(psnr):.2f}{spread}" if psnr else MISSING


def markdown(rows):
    """The table: of every row and set the trained network's PSNR at every scale, over the row's seeds."""
    everything = [run for runs in rows.values() for run in runs]
    if not everything:
        return "Not measured yet: `figure/reproduce.sh` runs these experiments.\n"
    places = list(dict.fromkeys(place for scores, _ in everything for place in scores))
    sets, scales = dict.fromkeys(name for name, _ in places), sorted({scale for _, scale in places})
    paper = ["the paper's"] if "m1" in rows else []
    heads = ["run", "set", *(f"x{scale}" for scale in scales), *paper, "runs", "steps", "time", "command"]
    devices = ", ".join(sorted({content["device"] for _, content in everything}))
    lines = []
    for name, runs in rows.items():
        label, theirs = TABLE2.get(name, (name, ""))
        about = [""] * 4
        if runs:
            time = duration(fmean(content["seconds"] for _, content in runs))
            about = [str(len(runs)), f"{runs[0][1]['steps']:,}", time, command(runs[0][1])]
        for on in sets:
            psnr = [mean([(scores[on, scale].get("student") or scores[on, scale]["teacher"])[0]
                          for scores, _ in runs if (on, scale) in scores]) for scale in scales]
            shown = [theirs if on == "Set5" else ""] * len(paper)
            lines.append([label, on, *psnr, *shown, *about])
    return ("PSNR in dB, mean over the runs ± half of how far they are apart; their mean time; steps and command of "
            f"the first. Measured on {devices}.\n\n{markdown_table(heads, lines)}")


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="*", default=["figure/results/table2"], help="of a group of results each")
    parser.add_argument("--output", default="figure", help="folder for the tables")
    return parser.parse_args(argv)


def main(args):
    for folder in args.folders:
        rows, path = read_rows(folder), Path(args.output) / f"{Path(folder).name}.md"
        write_atomically(path, markdown(rows).encode())
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    run_script(main, parse_arguments())
