"""Tables beside the paper's, curves and pictures; figures through matplotlib's objects."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from figure import pictures, plots, table
from tests.helpers import ROOT
from utils import InputError

pytest.importorskip("matplotlib")
LOSSES = {"student": 1e-2, "L_R": 1e-3, "L_adv": -5.0}


def call(module, *flags):
    module.main(module.parse_arguments([*map(str, flags)]))


def leave(folder, epochs, **config):
    """A run's folder: in each epoch LOSSES divided by its number, PSNR of 30 + epoch at x2, 3 dB less at x4."""
    folder.mkdir(exist_ok=True)
    lines = [{"epoch": n, **{name: value / n for name, value in LOSSES.items()}, "psnr": {"2": 30.0 + n, "4": 27.0 + n},
              "seconds": 90.0 * n} for n in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def results(path, key, *psnr, sets=("Set5",), **trained):
    """A results.json with `key` at that PSNR at x2, x3, ..., and bicubic a little off the paper's."""
    rows = {str(i + 2): {"bicubic": {"psnr": 33.6864, "ssim": 0.93079}, key: {"psnr": p, "ssim": 0.95786}}
            for i, p in enumerate(psnr)}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({
        "results": dict.fromkeys(sets, rows), "date": "2026-11-26", "device": "a CPU", "git": "abc1234",
        "args": {"pretrained": "/some/where/vdsr_public.pth"}, **trained,
        "command": "python distillation.py --nEpochs=60 --data_dir /d --pretrained=/some/vdsr.pth --seed=2"}))


@pytest.mark.parametrize("epochs", [1, 80])
def test_curves_show_every_loss_and_scale(tmp_path, epochs):
    panels = {axes.get_label(): axes for axes in plots.curves(plots.read_metrics(leave(tmp_path, epochs))).axes}
    for name, value in LOSSES.items():
        (line,) = panels[name].lines
        assert panels[name].get_yscale() == ("linear" if value < 0 else "log")
        assert list(line.get_xdata()) == list(range(1, epochs + 1)) and line.get_ydata()[-1] == value / epochs
    assert legend(panels["psnr"]) == [f"x2  {30 + epochs:.2f} dB", f"x4  {27 + epochs:.2f} dB"]
    assert all(x == int(x) for x in panels["psnr"].get_xticks())


def test_curves_leave_out_what_is_missing(monkeypatch, tmp_path, capsys):
    """Without matplotlib there are none."""
    lines = tmp_path / "metrics.jsonl"
    lines.write_bytes(b'{"epoch": 1, "loss": 1e-3}\n{"epoch": 2, "psnr": {"2": 31.0}}\n{}\n[1]\n\xff\n{"epoch": 3, "l')
    loss, psnr = (axes.lines[0].get_ydata() for axes in plots.curves(plots.read_metrics(tmp_path)).axes)
    np.testing.assert_equal([*loss, *psnr], [1e-3, np.nan, np.nan, 31])
    plots.save_curves(tmp_path)
    assert Image.open(tmp_path / "curves.png").size == (1200, 600)
    lines.write_text("{}\nhalf a li")
    with pytest.raises(InputError, match="metrics.jsonl: holds no epoch"):
        plots.save_curves(tmp_path)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    plots.save_curves(leave(tmp_path, 2))
    assert "pip install matplotlib" in capsys.readouterr().out
    for module, flag in ((plots, tmp_path), (table, f"--results={tmp_path}")):
        with pytest.raises(InputError, match="pip install matplotlib"):
            call(module, flag, "--output", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table1.md"]  # which needs none


def test_runs_by_minutes(tmp_path):
    a = leave(tmp_path / "a", 2, source="dead_leaves", student_init="teacher", val_dataset="held_out")
    b = leave(tmp_path / "b", 4, source="generator", val_dataset="held_out")
    c = leave(tmp_path / "c", 1, val_dataset="held_out")  # of train_teacher.py
    axes = plots.psnr_minutes([a, b, c]).axes[0]
    assert axes.get_xscale() == "log" and "held_out, x2, x4" in axes.get_ylabel()
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.5, 3], [1.5, 3, 4.5, 6], [1.5]]
    assert list(axes.lines[0].get_ydata()) == [29.5, 30.5]  # means of 31 and 28, 32 and 29
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "--"]
    assert legend(axes) == ["32.50 dB  b (generator, random start)", "30.50 dB  a (dead_leaves, teacher start)",
                            "29.50 dB  c (folder, random start)"]  # the best first
    call(plots, a, b, "--labels", "one", "two", "--output", tmp_path / "psnr.png")
    assert Image.open(tmp_path / "psnr.png").size == (1200, 600)
    silent = leave(tmp_path / "f", 1, val_dataset="held_out")
    (silent / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1.0}')
    for folder, labels, reason in ((silent, None, "f: its metrics.jsonl lacks PSNR"),
                                   (leave(tmp_path / "d", 1), None, "was validated on the validation set, x2, x4"),
                                   (tmp_path / "e", None, "No such .*e/config.json"), (b, ["one"], "1 for 2 runs")):
        with pytest.raises((InputError, OSError), match=reason):
            plots.psnr_minutes([a, folder], labels)


def test_widths(tmp_path):
    for width, psnr in ((32, 37.0), (4, 36.5)):
        config = {"arch": "vdsr", "n_resblocks": 1, "n_feats": width}
        scores = {"2": {"student": {"psnr": psnr}}, "3": {"student": {"psnr": 33.0}}}
        record = {"results": {"Set5": scores}, "networks": {"student": config}}
        (tmp_path / f"{width}.json").write_text(json.dumps(record))
    ours, *levels = plots.widths([tmp_path / "32.json", tmp_path / "4.json"]).axes[0].lines
    assert list(ours.get_xdata()) == [0.216, 9.792] and list(ours.get_ydata()) == [34.75, 35.0]
    assert [line.get_ydata()[0] for line in levels] == pytest.approx([34.01, 101.04 / 3])  # the paper's
    call(plots, "--width", tmp_path / "32.json", tmp_path / "4.json", "--output", tmp_path / "width.png")
    assert Image.open(tmp_path / "width.png").width == 1200


def test_table_1(tmp_path):
    """Files of a column complete one another; what was trained, on what and how long is said."""
    results(tmp_path / "fast.json", "student", 37.204, seconds=11160.0, student_steps=9600, images=153600)
    results(tmp_path / "fast.more.json", "student", 31.9, sets=["Set5", "B100"])  # the run's score stays
    results(tmp_path / "teacher.json", "teacher", 37.66)
    (tmp_path / "width.json").write_text("[]")  # of no column
    call(table, f"--results={tmp_path}", f"--output={tmp_path}")
    lines = (tmp_path / "table1.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines if line.startswith("| ")][1:]
    assert [row[1] for row in cells[:5]] == ["", "", "", "", "vdsr_public.pth"]  # a teacher that was only scored
    assert [row[6] for row in cells[:5]] == ["a CPU", "9,600", "153,600", "3.1 h", "vdsr_public.pth"]
    assert cells[5] == ["**33.69 / 0.9308**<br>33.69 / 0.9308<br>+0.00 / +0.0000",
                        "**37.66 / 0.9579**<br>37.59 / 0.9597<br>+0.07 / -0.0018",
                        *(f"not measured<br>{psnr}" for psnr in ("37.36 / 0.9588", "37.36 / 0.9588", "34.38 / 0.9376",
                                                                 "37.20 / 0.9582")),
                        "**37.20 / 0.9579**<br>37.36 / 0.9588<br>-0.16 / -0.0009"]  # of what is shown
    assert cells[11][6].startswith("**31.90") and str(cells).count("not measured") == 7 * 12 - 5
    typed = "2026-11-26, commit abc1234, `python distillation.py --nEpochs=60 --pretrained=vdsr.pth --seed=2`"
    assert lines[-1] == f"- Dead leaves, no data, starts from the teacher: {typed}; {typed}"
    assert Image.open(tmp_path / "Table1.png").width == 1200


@pytest.mark.parametrize("module, flag, name, content", [
    (table, "--results=", "ours.json", "{"), (table, "--results=", "ours.json", '{"results": {}}'),
    (table, "--results=", "ours.json", '{"results": {"Set5": {"2": {"student": {"psnr": 1}}}}}'),
    (table, "", "m1_1.json", "[]"), (plots, "", "config.json", "[]"), (plots, "--width ", "", '{"results": {}}')])
def test_results_that_cannot_be_used_are_named(tmp_path, module, flag, name, content):
    path = tmp_path / "table2" / name
    command = (module, *f"{flag}{tmp_path / 'table2'}".split(), "--output", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="table2"):
        call(*command)
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path.name}: is not what"):
        call(*command)
    assert not (tmp_path / "new").exists()


def test_groups_are_means_over_seeds(tmp_path):
    for group, name, *psnr in (("table2", "m3_1", 36.0), ("table2", "m3_2", 36.4), ("table2", "m5_1", 37.0),
                               ("edsr", "student_x2", 36.0, 33.0)):
        results(tmp_path / group / f"{name}.json", "student", *psnr, sets=["Set5", "held_out"], seconds=90,
                student_steps=2000)
    call(table, tmp_path / "table2", tmp_path / "edsr", f"--output={tmp_path}")
    text = (tmp_path / "table2.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-2]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[7:10] + rows[-2:-1] == [
        ["M3: both losses", "Set5", "36.20 ± 0.20", "37.09", "2", "2,000", "1.5 min"],
        ["M3: both losses", "held_out", "36.20 ± 0.20", "", "2", "2,000", "1.5 min"],
        ["M4: adversarial loss, in stages", "Set5", "not measured", "36.12", "", "", ""],
        ["m5", "Set5", "37.00", "", "1", "2,000", "1.5 min"]]
    assert "Measured on a CPU." in text and "| `python distillation.py --nEpochs=60 --pretrained=vdsr.pth " in text
    assert "| student | held_out | 36.00 | 33.00 | 1 | 2,000 |" in (tmp_path / "edsr.md").read_text(encoding="utf-8")
    assert table.group_markdown({}).startswith("Not measured yet")


@pytest.mark.skipif(not shutil.which("timeout"), reason="figure/reproduce.sh needs bash and GNU timeout")
def test_reproduce_goes_on_where_it_stopped(images, tiny_teacher, tmp_path):
    flags = "--nEpochs=1 --iter=1 --stu_step=1 --batchSize=2 --data_test=Set5 --device=cpu --threads=1"
    environment = {**os.environ, "DATA": str(images), "TEACHER": str(tiny_teacher), "FLAGS": flags,
                   **{name: str(tmp_path / name.lower()) for name in ("OUT", "RESULTS", "TABLES")},
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = ROOT / "figure/reproduce.sh"
    reproduce = lambda *names: subprocess.run([script, *names], env=environment, capture_output=True, text=True,
                                              check=True).stdout
    process = subprocess.Popen([script, "5", "ours", "noise"], env=environment | {"FLAGS": f"{flags} --nEpochs=9999"},
                               stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "out/ours/checkpoint.pth").exists():
        time.sleep(0.05)
    process.terminate()  # as Ctrl-C: the experiment leaves a checkpoint, and the next does not begin
    assert "== noise" not in process.communicate(timeout=120)[0] and process.returncode == 130
    assert torch.load(tmp_path / "out/ours/checkpoint.pth", weights_only=True)["steps"] > 0
    assert "== noise" in reproduce("5", "noise")
    args = json.loads((tmp_path / "results/noise.json").read_text())["args"]
    assert (args["source"], args["lr_G"], args["nEpochs"]) == ("noise", 1e-5, 1)
    assert (tmp_path / "out/noise/curves.png").exists()  # which runs in the tests' own process do not draw
    assert "- Noise, no data: not measured" not in (tmp_path / "tables/table1.md").read_text()
    again = reproduce("0", "noise", "table2/m1_1")
    assert "== noise" not in again and "out of time before table2/m1_1" in again


def test_sheets(tmp_path):
    strips = tmp_path / "run/samples"
    for epoch in range(1, 13):
        pictures.save_epoch_samples(strips / f"epoch_{epoch:04d}.png", [torch.full((6, 1, 24, 24), 0.2),
                                                                       torch.full((3, 1, 20, 20), epoch / 12)])
    strip = np.asarray(Image.open(strips / "epoch_0012.png"))  # four and three, enlarged twice; gaps of 4
    assert strip.shape == (56, 4 + 7 * 52, 3) and (strip[9, 9, 0], strip[9, 340, 0]) == (51, 255)
    pictures.save_sample_sheet(strips, tmp_path / "sheet.png", (2, 3))
    assert Image.open(tmp_path / "sheet.png").size == (80 + strip.shape[1], 18 + 10 * 56)
    call(pictures, "--runs", tmp_path / "run", tmp_path / "run", f"--output={tmp_path / 'runs.png'}")
    runs = np.asarray(Image.open(tmp_path / "runs.png"))[18:, 200:]
    assert np.array_equal(runs, np.concatenate([strip, strip]))
    for wrong, words in ((["--labels", "one"], "--labels: 1 for 2 runs"), ([], "none: has no samples/epoch_*.png")):
        with pytest.raises(InputError, match=re.escape(words)):
            call(pictures, "--runs", tmp_path / "run", tmp_path / "none", *wrong, f"--output={tmp_path / 'no.png'}")
    call(pictures, f"--output={tmp_path / 'leaves.png'}")  # four rows of grey ones, four of coloured
    leaves = np.asarray(Image.open(tmp_path / "leaves.png"))
    assert leaves.shape == (4 + 8 * 100, 4 + 12 * 100, 3)
    assert np.ptp(leaves[:400], axis=2).max() == 0 and np.ptp(leaves[404:], axis=2).max() > 50
    hr, score = np.zeros((144, 192), np.float32), {"psnr": 30.0, "ssim": 0.9}
    bicubic = np.pad(np.full((64, 64), 255, np.float32), ((40, 40), (80, 48)))  # most wrong there
    outputs = {"HR": (hr, None), "bicubic": (bicubic, score), "student": (hr, score)}
    small = {name: (image[:50, :60], score) for name, (image, score) in outputs.items()}
    pictures.save_comparison(tmp_path / "c.png", [("Set5", 2, "baby", outputs), ("Set5", 3, "bird", small)])
    sheet = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert sheet.shape == (2 * (264 + 36), 4 + 3 * 260)
    assert sheet[4:260, 264:520].min() == 255 and sheet[4:260, 4:260].max() == 0
