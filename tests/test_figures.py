"""Curves, the table beside the paper's, and the picture of the method, through matplotlib's figure objects."""

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

import distillation
import train_teacher
from figure import ablation, framework, plots, table
from figure.plots import COLOURS
from engine.run import MAY_CHANGE
from utils import InputError


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def metrics(epochs, **losses):
    """Lines of metrics.jsonl: `losses` divided by the epoch, PSNR of 30 + epoch at x2 and 3 dB less at x4."""
    return [{"epoch": n, **{name: value / n for name, value in losses.items()},
             "psnr": {"2": 30.0 + n, "4": 27.0 + n}, "seconds": 90.0 * n} for n in range(1, epochs + 1)]


def leave(folder, epochs, **config):
    """A run's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in epochs))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_legible(figure):
    """All texts lie within the figure and none upon another (by more than a pixel)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), *text.get_window_extent().extents) for text in figure.axes[0].texts if text.get_text()]
    for text, left, bottom, right, top in boxes:
        assert min(left, bottom) >= 0 and right <= figure.bbox.x1 and top <= figure.bbox.y1, text
    for (a, left, bottom, right, top), (b, left_b, bottom_b, right_b, top_b) in combinations(boxes, 2):
        width, height = min(right, right_b) - max(left, left_b), min(top, top_b) - max(bottom, bottom_b)
        assert width <= 1 or height <= 1, (a, b)


# ---- curves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 80])
def test_curves_show_every_loss_and_scale(matplotlib, epochs):
    student, L_R, L_adv, psnr = plots.curves(metrics(epochs, student=1e-2, L_R=1e-3, L_adv=-5.0)).axes
    for axes, scale, value in ((student, "log", 1e-2), (L_R, "log", 1e-3), (L_adv, "linear", -5.0)):
        (line,) = axes.lines
        assert axes.get_yscale() == scale
        assert list(line.get_xdata()) == list(range(1, epochs + 1))
        assert line.get_ydata()[-1] == value / epochs
    assert [line.get_color() for axes in (student, L_R, L_adv) for line in axes.lines] == \
        [COLOURS["student"], COLOURS["L_R"], COLOURS["L_adv"]]
    assert [line.get_ydata()[-1] for line in psnr.lines] == [30 + epochs, 27 + epochs]
    assert [text.get_text() for text in psnr.get_legend().get_texts()] == \
        [f"x2  {30 + epochs:.2f} dB", f"x4  {27 + epochs:.2f} dB"]
    low, high = psnr.get_xlim()
    assert low < 1 and high > epochs and all(x == int(x) for x in psnr.get_xticks())


def test_curves_of_a_teacher_have_one_loss(matplotlib):
    loss, psnr = plots.curves(metrics(3, loss=0.6)).axes
    assert list(loss.lines[0].get_ydata()) == pytest.approx([0.6, 0.3, 0.2])
    assert len(psnr.lines) == 2


def test_curves_leave_out_what_is_missing(matplotlib):
    epochs = [{"epoch": 1, "student": 1e-3}, {"epoch": 2, "psnr": {"2": 31.0}},
              {"epoch": 3, "student": 2e-3, "psnr": {"2": float("inf"), "3": 29.0}}]
    student, psnr = plots.curves(epochs).axes
    assert list(student.lines[0].get_xdata()) == [1, 3]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in psnr.lines] == [([2], [31]), ([3], [29])]
    (psnr,) = plots.curves([{"epoch": 1}]).axes
    assert not psnr.lines


def test_curves_are_saved_beside_the_metrics(matplotlib, tmp_path):
    leave(tmp_path, metrics(2, student=1e-3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "stu')  # of a run that was killed as it wrote
    assert plots.save_curves(tmp_path) is True
    assert Image.open(tmp_path / "curves.png").size == (960, 480)
    assert len(plots.read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("content", [None, b"", b"half a li", b"\xff\xfe"])
def test_curves_need_an_epoch(matplotlib, tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="metrics.jsonl: (cannot be read|holds no epoch)"):
        plots.save_curves(tmp_path)


def test_without_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    leave(tmp_path, metrics(2, student=1e-3), source="noise")
    (tmp_path / "results").mkdir()
    assert plots.save_curves(tmp_path) is False
    output = ["--output", str(tmp_path / "new")]
    for script, flags in ((plots, [str(tmp_path)]), (table, ["--results", str(tmp_path / "results")]), (framework, [])):
        with pytest.raises(InputError, match="pip install matplotlib"):
            script.main(script.parse_arguments([*flags, *output]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", "results"]


def test_runs_by_minutes(matplotlib, tmp_path):
    a = leave(tmp_path / "a", metrics(2), source="generator", val_dataset="Set5")
    b = leave(tmp_path / "b", metrics(4), source="dead_leaves", val_dataset="Set5")
    c = leave(tmp_path / "c", metrics(1), source="generator", val_dataset="Set5")
    (axes,) = plots.psnr_minutes([a, b, c]).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.5, 3], [1.5, 3, 4.5, 6], [1.5]]
    assert list(axes.lines[0].get_ydata()) == [29.5, 30.5]  # means of 31 and 28, 32 and 29
    assert [line.get_color() for line in axes.lines] == \
        [COLOURS["generator"], COLOURS["dead_leaves"], COLOURS["generator"]]
    assert axes.lines[0].get_linestyle() != axes.lines[2].get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == \
        ["generator, a: 30.50 dB", "dead_leaves: 32.50 dB", "generator, c: 29.50 dB"]
    assert "Set5, x2, x4" in axes.get_ylabel()

    other = [{"epoch": 1, "psnr": {"2": 31.0}, "seconds": 9}]
    other = leave(tmp_path / "other", other, source="noise", val_dataset="Set5")
    with pytest.raises(InputError, match="other: was validated on another set or other scales"):
        plots.psnr_minutes([a, other])
    with pytest.raises(InputError, match="config.json: names no source"):
        plots.psnr_minutes([leave(tmp_path / "teacher", metrics(1))])
    with pytest.raises(InputError, match="mute: its metrics.jsonl lacks"):
        plots.psnr_minutes([leave(tmp_path / "mute", [{"epoch": 1}], source="noise")])


# ---- the table -------------------------------------------------------------------------------------


def arguments(script, *flags):
    """As results.json has them: with what settle_shared_flags fills in."""
    return vars(script.parse_arguments(list(flags))) | {"lr": 0.1, "weight_decay": 1e-4, "save_dir": "runs/x"}


def results(key, *scores, args, **more):
    """A results.json of Set5, x2 and up: scores (psnr, ssim) of `key`, bicubic a little off the paper's."""
    row = [{"bicubic": {"psnr": 33.6864, "ssim": 0.93079}, key: {"psnr": p, "ssim": s}} for p, s in scores]
    return {"results": {"Set5": {str(i + 2): scores for i, scores in enumerate(row)}}, "seconds": 11160.0,
            "device": "a GPU", "git": "abc1234", "args": args, **more}


@pytest.fixture
def folder(tmp_path):
    """Results of the paper's command at x2 and x3, and of the dead leaves at x2."""
    ours = results("student", (37.204, 0.95786), (33.5, 0.92), args=arguments(distillation), student_steps=480000)
    fast = results("student", (37.41, 0.96), args=arguments(distillation, "--optimizer=adam"), student_steps=90000,
                   date="2026-11-30")
    for name, content in (("ours", ours), ("fast", fast)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_cells():
    assert table.cell((37.204, 0.95786), (37.36, 0.9588)) == ["37.20 / 0.9579", "37.36 / 0.9588", "-0.16 / -0.0009"]
    assert table.cell((33.6864, 0.93079), (33.69, 0.9308)) == ["33.69 / 0.9308", "33.69 / 0.9308", "+0.00 / +0.0000"]
    assert table.cell(None, (25.2, 0.7533)) == ["not measured", "25.20 / 0.7533", ""]


def test_rows_hold_ours_and_the_papers(folder):
    rows = table.make_rows(table.collect(folder)[0])
    assert [row[:2] for row in rows] == [(name, s) for name in ("Set5", "Set14", "B100", "Urban100") for s in (2, 3, 4)]
    cells = dict(zip(table.COLUMNS, rows[0][2]))
    assert cells["bicubic"] == ["33.69 / 0.9308", "33.69 / 0.9308", "+0.00 / +0.0000"]
    assert cells["teacher"] == ["not measured", "37.59 / 0.9597", ""]
    assert cells["student"] == ["not measured", "37.36 / 0.9588", ""]
    assert cells["noise"] == ["not measured", "34.38 / 0.9376", ""]
    assert cells["ours"] == ["37.20 / 0.9579", "37.20 / 0.9582", "+0.00 / -0.0003"]
    assert cells["fast"] == ["37.41 / 0.9600", "37.36 / 0.9588", "+0.05 / +0.0012"]  # beside the paper's Student
    measured = [cell for *_, cells in rows for cell in cells if cell[0] != "not measured"]
    assert len(measured) == 5  # bicubic and ours at x2 and x3, fast at x2


def test_markdown(folder):
    lines = table.markdown(*table.collect(folder)).splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| ")]
    assert len(rows) == 13 and {len(row) for row in rows} == {10}
    assert rows[1][7] == " **37.20 / 0.9579**<br>37.20 / 0.9582<br>+0.00 / -0.0003 "
    assert "- Noise: not measured" in lines
    (fast,) = [line for line in lines if line.startswith("- Dead leaves")]
    assert "3.1 h, a GPU, 90,000 student steps, 2026-11-30, commit abc1234: `python distillation.py" in fast


@pytest.mark.parametrize("script, flags", [
    (distillation, ["--source=noise", "--deterministic", "--start-epoch=3", "--wd=0.5", "--pretrained=a/b.pth"]),
    (distillation, ["--recipe=fast", "--demo", "--iter=3"]),
    (train_teacher, ["--model_type=half", "--n_feats=32", "--lr=0.2"])])
def test_the_command_gives_the_settings_back(script, flags):
    args = vars(script.parse_arguments([*flags, "--save_dir=x", "--threads=1"]))
    python, name, *shown = shlex.split(table.command(args))
    assert (python, name, len(shown)) == ("python", f"{script.__name__}.py", len(flags))
    again = vars(script.parse_arguments(shown))
    assert all(again[name] == value for name, value in args.items() if name not in MAY_CHANGE)


def test_seconds_are_shown_in_a_fitting_unit():
    assert [table.duration(s) for s in (42.3, 90, 11160)] == ["42 s", "1.5 min", "3.1 h"]


@pytest.mark.parametrize("name, content, reason", [
    ("ours", "{", "is no results.json"), ("ours", "[]", "is no results.json"), ("ours", "{}", "is no results.json"),
    ("noise", '{"results": {"Set5": {"2": {"student": {"psnr": 1}}}}}', "is no results.json"),
    ("teacher", json.dumps(results("student", (30, 0.9), args={})), "has no scores of a teacher"),
    ("best", "{}", "names no column")])
def test_results_that_cannot_be_used_are_named(tmp_path, name, content, reason):
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{name}.json: {reason}")):
        table.collect(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        table.collect(tmp_path / "nowhere")


def test_the_picture_of_the_table(matplotlib, folder):
    figure = table.picture(*table.collect(folder))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("not measured") == 72 - 5
    assert {"37.20 / 0.9579", "+0.05 / +0.0012", "Noise: not measured"} <= set(texts)
    assert_legible(figure)


def test_the_table_is_written(matplotlib, tmp_path):
    (tmp_path / "results").mkdir()
    table.main(table.parse_arguments(["--results", str(tmp_path / "results"), "--output", str(tmp_path)]))
    assert (tmp_path / "table1.md").read_text().count("not measured<br>") == 72
    assert Image.open(tmp_path / "Table1.png").width == 1200


# ---- the tables of smaller experiments, and the script that fills all of them ----------------------


def test_rows_are_means_over_seeds(tmp_path):
    (tmp_path / "ablation").mkdir()
    for name, *psnr in (("both_1", 36.0, 33.0), ("both_2", 36.4, 33.0), ("inc_num_3_1", 35.0)):
        seed = f"--seed={name[-1]}"
        content = results("student", *((p, 0.9) for p in psnr), args=arguments(distillation, seed), student_steps=2000)
        (tmp_path / "ablation" / f"{name}.json").write_text(json.dumps(content))
    ablation.main(ablation.parse_arguments(["--results", str(tmp_path), "--output", str(tmp_path)]))
    text = (tmp_path / "ablation.md").read_text()
    assert text.startswith("PSNR in dB on Set5,") and "measured on a GPU." in text
    assert [line.split(" | ")[:7] for line in text.splitlines()[4:]] == [
        ["| both", "36.20 ± 0.20", "33.00 ± 0.00", "not measured", "2", "2,000", "3.1 h"],
        ["| inc_num_3", "35.00", "not measured", "not measured", "1", "2,000", "3.1 h"]]
    assert "--seed" not in text.split("both")[1].splitlines()[0]
    assert (tmp_path / "edsr.md").read_text().startswith("Not measured yet")


def test_reproduce_goes_on_where_it_stopped(images, tiny_teacher, tmp_path):
    """One experiment at tiny size; done, it is not run again; without time the next is not begun."""
    flags = "--nEpochs=1 --iter=1 --stu_step=1 --batchSize=2 --data_test=Set5 --device=cpu --threads=1"
    places = {name: str(tmp_path / name.lower()) for name in ("OUT", "RESULTS", "TABLES")}
    environment = os.environ | places | {"DATA": str(images), "TEACHER": str(tiny_teacher), "FLAGS": flags}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def reproduce(*arguments):
        done = subprocess.run([Path(table.__file__).parent / "reproduce.sh", *arguments], env=environment,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "== noise" in reproduce("5", "noise")
    args = json.loads((tmp_path / "results/noise.json").read_text())["args"]
    assert (args["source"], args["lr_G"], args["nEpochs"]) == ("noise", 1e-5, 1)
    assert "- Noise: not measured" not in (tmp_path / "tables/table1.md").read_text()
    again = reproduce("0", "noise", "ablation/both_1")
    assert "noise" not in again and "out of time before ablation/both_1" in again


# ---- the method's picture --------------------------------------------------------------------------


def test_the_framework_is_legible(matplotlib, tmp_path):
    figure = framework.framework()
    assert_legible(figure)
    assert sum(text.get_text().startswith(("$L_R = D", "$L_\\mathrm{adv} = -\\log", "$D(S(x), T(x))$"))
               for text in figure.axes[0].texts) == 3
    framework.main(framework.parse_arguments(["--output", str(tmp_path / "figure.png")]))
    assert Image.open(tmp_path / "figure.png").size == (1600, 895)
