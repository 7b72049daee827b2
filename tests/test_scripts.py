"""The two scripts as a user runs them, in an empty folder, on tiny settings."""

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

import distillation
import train_teacher
from models import EDSR
from models.load import load_model
from tests.helpers import PAPERS, ROOT, TINY, read, student_flags, teacher_flags, weights_equal
from utils import save_model


def test_the_papers_two_commands_one_after_the_other(done, images, tmp_path):
    done(train_teacher, "--model_type=origin", *teacher_flags(images))
    flags = (*PAPERS, *TINY, "--stu_step=2", "--nEpochs=2", "--data_dir", images)
    command = [*map(str, (sys.executable, ROOT / "distillation.py", *flags))]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    results, metrics = read(tmp_path / "runs/train_teacher")
    assert set(results["results"]["Set5"]["3"]) == {"bicubic", "teacher"}
    assert [m["epoch"] for m in metrics] == [1, 2] and metrics[0]["loss"] > 0
    assert load_model(tmp_path / "teacher.pth").config == {"arch": "vdsr", "n_resblocks": 2, "n_feats": 4}
    assert weights_equal(tmp_path / "teacher.pth", tmp_path / "runs/train_teacher/model_last.pth")
    folder = tmp_path / "runs/distillation"
    results, metrics = read(folder)
    assert set(results) == {"results", "protocol", "seconds", "student_steps", "images", "bank", "date", "device",
                            "git", "command", "networks", "args"}
    assert (results["student_steps"], results["images"], results["bank"]) == (2 * 2 * 2, 2 * 2 * 2 * 2, 0)
    assert results["args"]["latent"] == 256
    assert shlex.split(results["command"]) == ["python", "distillation.py", *map(str, flags)]
    assert set(results["results"]["Set5"]["2"]) == {"bicubic", "teacher", "student"}
    assert set(results["results"]["Set5"]["2"]["student"]) == {"psnr", "ssim"}
    assert set(metrics[1]) == {"epoch", "student", "L_R", "L_adv", "psnr", "seconds", "lr", "loss_scale",
                               "images_per_second"}
    assert (metrics[1]["lr"], metrics[1]["loss_scale"]) == (pytest.approx(0.1), 1)
    assert all((folder / name).stat().st_size > 0 for name in ("config.json", "log.txt", "model_best.pth"))
    assert load_model(tmp_path / "student.pth").config == {"arch": "vdsr", "n_resblocks": 2, "n_feats": 2}
    assert weights_equal(tmp_path / "student.pth", folder / "model_last.pth")
    assert Image.open(folder / "samples.png").width > 400
    assert Image.open(folder / "comparison.png").width == 4 + 4 * (256 + 4)
    assert "Set5  x2     " in second.stdout and "student: student.pth" in second.stdout
    drawn = (folder / "curves.png").exists()
    assert drawn == bool(find_spec("matplotlib")) != ("pip install matplotlib" in second.stdout)
    test = ("--test_only", "--pretrained=teacher.pth", "--data_dir", images, "--data_test=Set5", "--device=cpu")
    done(distillation, *test, "--student=student.pth")
    done(train_teacher, *test)
    for script, *more in (("distillation", "student"), ("train_teacher",)):
        again = json.loads((tmp_path / f"runs/{script}_test/results.json").read_text())
        for scale, scores in results["results"]["Set5"].items():
            assert again["results"]["Set5"][scale] == {name: scores[name] for name in ("bicubic", "teacher", *more)}
        assert "student_steps" not in again and not list((tmp_path / f"runs/{script}_test").glob("**/*.pth"))


def test_a_run_is_logged_for_tensorboard(done, images, tiny_teacher, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    done(distillation, *student_flags(images, tiny_teacher), "--tensorboard", "--scale=2")
    folder = tmp_path / "runs/distillation"
    log = EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    results, metrics = read(folder)
    expected = {name: [m[name] for m in metrics] for name in ("student", "L_adv", "lr")}
    expected |= {"PSNR/x2": [m["psnr"]["2"] for m in metrics],
                 "Set5/student x2": [results["results"]["Set5"]["2"]["student"]["psnr"]]}
    for tag, values in expected.items():
        assert [event.value for event in log.Scalars(tag)] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("flags", [
    "--source=noise --noise=normal --n_resblocks=1 --n_feats=3 --precision=bf16",
    "--source=folder --bank=9", "--source=dead_leaves --student_init=teacher --optimizer=muon --n_feats=3",
    "--source=generator --rounded --inc_num=2 --inc_step=1", "--inc_num=2 --inc_step=1"])
def test_edsr_is_distilled_from_every_source(done, few_places, images, tmp_path, flags):
    """That its teacher is worse than bicubic is said before any step."""
    save_model(EDSR(2, 4, scale=3), tmp_path / "teacher.pth")
    process = done(distillation, *student_flags(images, "teacher.pth"), *flags.split(), "--self_ensemble")
    assert load_model(tmp_path / "student.pth").config == EDSR(
        1 if "resblocks" in flags else 2, 3 if "n_feats" in flags else 2, scale=3).config
    results, metrics = read(tmp_path / "runs/distillation")
    assert list(results["results"]["Set5"]) == ["3"] and results["args"]["loss_type"] == "L1"
    assert "self-ensemble" in results["protocol"] and results["bank"] == (9 if "--bank" in flags else 0)
    assert ("L_adv" in metrics[0]) == ("--source" not in flags or "generator" in flags)
    assert "*" not in process.stdout and "EDSR's protocol" in process.stdout
    warning, epoch, *_ = process.stdout.splitlines()
    assert warning.startswith("warning: teacher.pth: gives ") and "where bicubic gives" in warning
    assert epoch.startswith("epoch 1: ")


def test_an_edsr_starts_from_one_of_another_scale(done, images, tmp_path):
    done(train_teacher, "--arch=edsr_baseline", "--scale=2", *teacher_flags(images))
    flags = [flag for flag in teacher_flags(images) if flag != "--n_resblocks=2"]
    first = load_model(tmp_path / "teacher.pth")
    for scale in (3, 4):
        done(train_teacher, *flags, "--pretrained=teacher.pth", "--arch=edsr_baseline", f"--scale={scale}",
             "--lr=1e-9", f"--save_dir=x{scale}", "--output=second.pth")
        second = load_model(tmp_path / "second.pth")
        assert second.scales == (scale,)
        torch.testing.assert_close(first.body[1].body[0].weight, second.body[1].body[0].weight, atol=1e-5, rtol=0)


def test_half_width_with_the_data_may_start_from_a_teacher(run, done, few_places, monkeypatch, tmp_path):
    """On scikit-image's pictures. Before any step it is near the teacher, as no random one is."""
    monkeypatch.setattr("data.images.BUNDLED_TRAIN", ("brick.png",))
    monkeypatch.setattr("data.benchmark.BUNDLED_TEST", ("chelsea.png",))
    flags = (*TINY, "--data_dir=skimage", "--patch_size=24", "--scale=4", "--model_type=half", "--iter=1", "--lr=1e-9")
    start = ("--student_init=teacher", "--pretrained", distillation.DEMO["pretrained"], "--resume=auto")
    psnr = {}
    for name, more in (("teacher", ["--test_only", *start[:3]]), ("random", ["--n_resblocks=6", "--n_feats=32"]),
                       ("fitted", start)):
        done(train_teacher, *flags, *more, "--nEpochs=1", f"--save_dir={name}")
        results = json.loads((tmp_path / name / "results.json").read_text())["results"]
        psnr[name] = results["skimage"]["4"]["student"]["psnr"]
    assert psnr["random"] + 10 < psnr["fitted"] < psnr["teacher"] < psnr["fitted"] + 5
    assert load_model(tmp_path / "half.pth").config == {"arch": "vdsr", "n_resblocks": 6, "n_feats": 16}
    again = run(train_teacher, *flags, *start, "--nEpochs=2", "--save_dir=fitted")
    assert again.returncode == 0 and [m["epoch"] for m in read(tmp_path / "fitted")[1]] == [1, 2], again.stderr


def test_demo(done, few_places, monkeypatch, tmp_path):
    """Cut short, on one photograph. Its teacher serves, and its student, which starts from it, is near it."""
    monkeypatch.setattr("data.benchmark.BUNDLED_TEST", ("chelsea.png",))
    process = done(distillation, "--demo", "--nEpochs=1", "--iter=1", "--stu_step=3", "--threads=1", "--device=cpu")
    assert "warning" not in process.stdout
    results, _ = read(tmp_path / "runs/demo")
    assert (results["bank"], results["images"], results["args"]["optimizer"]) == (12, 48, "muon")
    for row in results["results"]["skimage"].values():
        assert row["teacher"]["psnr"] > row["student"]["psnr"] > row["bicubic"]["psnr"] + 0.2
    assert (tmp_path / "runs/demo/student.pth").is_file() and (tmp_path / "runs/demo/comparison.png").is_file()


def test_a_run_that_starts_in_a_later_stage_has_its_depth(done, images, tiny_teacher, tmp_path):
    """And another seed makes another student. The same seed makes the same: test_interruption.py."""
    flags = (*student_flags(images, tiny_teacher), "--nEpochs=4", "--start-epoch=3", "--inc_num=2", "--inc_step=1")
    for seed in "12":
        done(distillation, *flags, "--source=dead_leaves+generator", f"--seed={seed}", f"--save_dir={seed}")
    assert load_model(tmp_path / "student.pth").config["n_resblocks"] == 6
    one, other = (read(tmp_path / seed)[1] for seed in "12")
    assert [m["epoch"] for m in one] == [3, 4]
    assert all(a[name] != b[name] for a, b in zip(one, other) for name in ("student", "L_R", "L_adv"))
