"""Scores as a text table, beside those of the paper's Table 1."""

import csv
from pathlib import Path

PAPER_TABLE = Path(__file__).parent / "table1.csv"


def paper_table():
    """The paper's Table 1: {(set, scale): {column: (psnr, ssim)}}."""
    with open(PAPER_TABLE, newline="", encoding="utf-8") as file:
        return {(row["dataset"], int(row["scale"])): {
            column: (float(row[column + "_psnr"]), float(row[column + "_ssim"]))
            for column in ("bicubic", "teacher", "student", "noise", "ours")} for row in csv.DictReader(file)}


def paper_scores(model):
    """paper_table(); empty for networks it does not have."""
    config = model.config
    known = (config["arch"], config.get("n_resblocks")) == ("vdsr", 18) and config["n_feats"] in (64, 32)
    return paper_table() if known else {}


def format_table(results, protocol, paper=None):
    """Text table of `results` (see Benchmarks.scores): PSNR/SSIM, and the paper's where given; its protocol.

    paper: {(set, scale): {column: (psnr, ssim)}}; its columns are marked with a *.
    """
    paper = paper or {}
    cells = next(iter(next(iter(results.values())).values()))
    known = any((name, int(scale)) in paper for name, row in results.items() for scale in row)
    theirs = ("bicubic", "teacher", "student", "noise", "ours") if known else ()
    lines = [["set", "scale", *cells, *(f"{column}*" for column in theirs)]]
    for name, by_scale in results.items():
        for scale, row in by_scale.items():
            line = [name, f"x{scale}"] + [f"{s['psnr']:.2f}/{s['ssim']:.4f}" for s in row.values()]
            reference = paper.get((name, int(scale)), {})
            line += ["{:.2f}/{:.4f}".format(*reference[c]) if c in reference else "-" for c in theirs]
            lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
    return f"{text}\nscored: {protocol}" + ("\n* Table 1 of the paper" if theirs else "")
