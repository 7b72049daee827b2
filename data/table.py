"""Scores as a text table, beside those of the paper's Table 1; Markdown tables."""

import csv
from pathlib import Path

PAPER_COLUMNS = ("bicubic", "teacher", "student", "noise", "ours")


def paper_table():
    """The paper's Table 1: {(set, scale): {column: (psnr, ssim)}}."""
    with open(Path(__file__).with_name("table1.csv"), newline="", encoding="utf-8") as file:
        return {(row["dataset"], int(row["scale"])): {
            column: (float(row[f"{column}_psnr"]), float(row[f"{column}_ssim"])) for column in PAPER_COLUMNS}
            for row in csv.DictReader(file)}


def paper_scores(model):
    """paper_table(); empty for networks it does not have."""
    config = model.config
    known = (config["arch"], config.get("n_resblocks")) == ("vdsr", 18) and config["n_feats"] in (64, 32)
    return paper_table() if known else {}


def format_table(results, protocol, paper):
    """Text table of `results` (see Benchmarks.scores): PSNR/SSIM, the paper's (see paper_table), marked with a *."""
    places = [(name, scale, row) for name, by_scale in results.items() for scale, row in by_scale.items()]
    theirs = PAPER_COLUMNS if any((name, int(scale)) in paper for name, scale, _ in places) else ()
    lines = [["set", "scale", *places[0][2], *(f"{column}*" for column in theirs)]]
    for name, scale, row in places:
        reference = paper.get((name, int(scale)), {})
        lines.append([name, f"x{scale}", *(f"{s['psnr']:.2f}/{s['ssim']:.4f}" for s in row.values()),
                      *("{:.2f}/{:.4f}".format(*reference[c]) if reference else "-" for c in theirs)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return f"{text}\nscored: {protocol}" + "\n* Table 1 of the paper" * bool(theirs)


def markdown_table(heads, rows):
    """Markdown of rows of texts under their heads."""
    lines = [f"| {' | '.join(row)} |\n" for row in (heads, *rows)]
    return "".join([lines[0], "|---" * len(heads), "|\n", *lines[1:]])
