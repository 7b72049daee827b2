"""The two scripts as a user runs them, in an empty folder, on tiny settings."""

import json
from importlib.util import find_spec
from signal import SIGTERM

import pytest
import torch
from PIL import Image

import distillation
import train_teacher
from models import EDSR
from models.load import load_model
from engine.run import Run
from tests.helpers import TINY, assert_refused, read, student_flags, teacher_flags, weights_equal
from utils import save_model


def test_the_papers_two_commands_one_after_the_other(run_process, images, tmp_path):
    """As printed in the paper's repository, with lengths and sizes cut by flags added behind."""
    first = run_process("train_teacher.py", "--model_type=origin", *teacher_flags(images))
    assert first.returncode == 0, first.stderr
    papers = ("--stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 --latent=256 "
              "--lr_G=1e-5 --model_type=half --nEpochs=80 --pretrained=teacher.pth").split()
    second = run_process("distillation.py", *papers, *TINY, "--stu_step=2", "--nEpochs=2", "--data_dir", images)
    assert second.returncode == 0, second.stderr

    results, metrics = read(tmp_path / "runs/train_teacher")
    assert set(results["results"]["Set5"]["3"]) == {"bicubic", "teacher"}
    assert [m["epoch"] for m in metrics] == [1, 2] and metrics[0]["loss"] > 0
    assert load_model(tmp_path / "teacher.pth").config == {"arch": "vdsr", "n_resblocks": 2, "n_feats": 4}
    assert weights_equal(tmp_path / "teacher.pth", tmp_path / "runs/train_teacher/model_last.pth")

    folder = tmp_path / "runs/distillation"
    results, metrics = read(folder)
    assert {"results", "protocol", "seconds", "student_steps", "date", "device", "git", "args"} == set(results)
    assert results["student_steps"] == 2 * 2 * 2 and results["args"]["latent"] == 256
    assert set(results["results"]["Set5"]["2"]) == {"bicubic", "teacher", "student"}
    assert set(results["results"]["Set5"]["2"]["student"]) == {"psnr", "ssim"}
    assert {"epoch", "student", "L_R", "L_adv", "psnr", "seconds"} == set(metrics[1])
    for name in ("config.json", "log.txt", "checkpoint.pth", "model_best.pth", "model_last.pth"):
        assert (folder / name).stat().st_size > 0
    assert load_model(tmp_path / "student.pth").config == {"arch": "vdsr", "n_resblocks": 2, "n_feats": 2}
    assert weights_equal(tmp_path / "student.pth", folder / "model_last.pth")
    assert Image.open(folder / "samples.png").width > 400
    assert Image.open(folder / "comparison.png").size == (4 + 4 * (4 * 48 + 4), 4 * 48 + 8 + 2 * 18)
    assert "Set5  x2     " in second.stdout and "student: student.pth" in second.stdout
    drawn = (folder / "curves.png").exists()
    assert drawn == bool(find_spec("matplotlib")) != ("pip install matplotlib" in second.stdout)


def test_test_only_scores_and_writes_no_weights(run, images, tiny_teacher, tmp_path):
    process = run(distillation, "--test_only", "--pretrained", tiny_teacher, "--student", tiny_teacher,
                  "--data_dir", images, "--data_test=Set5", "--scale=2")
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "runs/distillation_test/results.json").read_text())
    row = results["results"]["Set5"]["2"]
    assert row["teacher"] == row["student"] != row["bicubic"] and results["student_steps"] == 0
    assert not list(tmp_path.glob("**/*.pth"))

    alone = run(train_teacher, "--test_only", "--pretrained", tiny_teacher, "--data_dir", images, "--scale=2")
    assert alone.returncode == 0, alone.stderr
    results = json.loads((tmp_path / "runs/train_teacher_test/results.json").read_text())
    assert results["results"]["Set5"]["2"]["teacher"] == row["teacher"]


@pytest.mark.parametrize("source", ["generator", "noise", "folder", "dead_leaves", "dead_leaves+generator"])
def test_same_seed_same_student(run, images, tiny_teacher, tmp_path, source):
    flags = (*student_flags(images, tiny_teacher), "--nEpochs=1", f"--source={source}", "--scale=2")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        process = run(distillation, *flags, f"--seed={seed}", f"--save_dir={name}", f"--output={name}.pth")
        assert process.returncode == 0, process.stderr
    assert weights_equal(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not weights_equal(tmp_path / "a.pth", tmp_path / "c.pth")
    assert ("L_adv" in read(tmp_path / "a")[1][0]) == ("generator" in source)


@pytest.mark.parametrize("script", [train_teacher, distillation], ids=["train_teacher", "distillation"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_after_an_epoch_equals_not_stopping(run, monkeypatch, tmp_path, images, tiny_teacher, script, stop):
    """Stages begin at epochs 1 and 3: the stop falls within the first, between the two, within the second."""
    flags = teacher_flags(images)
    if script is distillation:
        flags = (*student_flags(images, tiny_teacher), "--inc_num=2", "--inc_step=2")

    def run_here(name, *more):
        return run(script, *flags, "--nEpochs=4", "--optimizer=adam", "--schedule=cosine", "--scale=2",
                   f"--save_dir={name}", f"--output={name}.pth", *more)

    run_here("whole")
    end_epoch = Run.end_epoch

    def stopping(self, *rest):
        end_epoch(self, *rest)
        if self.epoch == stop + 1:
            self.signal = SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_epoch", stopping)
        stopped = run_here("part")
    assert stopped.returncode == 143 and "--resume=auto" in stopped.stderr
    assert run_here("part", "--resume=part/checkpoint.pth").returncode == 0
    assert weights_equal("whole.pth", "part.pth")
    assert weights_equal("whole/model_best.pth", "part/model_best.pth")
    whole, part = read(tmp_path / "whole")[1], read(tmp_path / "part")[1]
    assert [m["psnr"] for m in whole] == [m["psnr"] for m in part] and len(whole) == 4


def test_unknown_flags_and_missing_files_are_refused(run, run_process, images, tiny_teacher, tmp_path):
    assert_refused(run_process("distillation.py", "--align"), "unrecognized arguments: --align")
    assert_refused(run(distillation, "--inc_num=5"), "--inc_num", "invalid choice: 5")
    assert_refused(run(distillation), "teacher.pth", "train_teacher.py")
    assert_refused(run(distillation, "--test_only", "--pretrained", tiny_teacher), "--student")
    assert_refused(run(distillation, "--pretrained", tiny_teacher, "--data_test=Set14"), "datasets", "Set14/HR",
                   "python -m data.download benchmark --to datasets")
    assert_refused(run_process("train_teacher.py"), "datasets/train291", "python -m data.download train291")
    assert_refused(run(train_teacher, "--device=tpu"), "--device tpu")
    assert_refused(run(train_teacher, "--arch=edsr", "--data_dir", images), "--scale 0", "--scale 2")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_refused_before_training(run, images, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"not an image")
    assert_refused(run(train_teacher, "--data_dir", folder), "photos/broken.png", "cannot be read")
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_run_is_logged_for_tensorboard(run, images, tiny_teacher, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    process = run(distillation, *student_flags(images, tiny_teacher), "--tensorboard", "--scale=2")
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "runs/distillation"
    log = EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    results, metrics = read(folder)
    for tag, name in (("loss/student", "student"), ("loss/L_adv", "L_adv")):
        assert [e.value for e in log.Scalars(tag)] == pytest.approx([m[name] for m in metrics], rel=1e-6)
    assert [e.value for e in log.Scalars("PSNR/x2")] == pytest.approx([m["psnr"]["2"] for m in metrics], rel=1e-6)
    student = results["results"]["Set5"]["2"]["student"]["psnr"]
    assert log.Scalars("Set5 x2/student")[0].value == pytest.approx(student, rel=1e-6)
    assert {"samples", "comparison"} <= set(log.Tags()["images"])


@pytest.mark.parametrize("grow_init", ["random", "identity"])
def test_edsr_trains_and_is_distilled(run, images, tmp_path, grow_init):
    first = run(train_teacher, "--arch=edsr_baseline", "--scale=2", *teacher_flags(images))
    assert first.returncode == 0, first.stderr
    second = run(distillation, *student_flags(images, "teacher.pth"), "--inc_num=2", "--inc_step=1",
                 f"--grow_init={grow_init}")
    assert second.returncode == 0, second.stderr
    assert load_model(tmp_path / "student.pth").config == {
        "arch": "edsr", "n_resblocks": 2, "n_feats": 2, "scale": 2, "res_scale": 1.0}
    results, metrics = read(tmp_path / "runs/distillation")
    assert list(results["results"]["Set5"]) == ["2"] and results["args"]["loss_type"] == "L1"
    assert "*" not in second.stdout and "EDSR's protocol" in second.stdout


@pytest.mark.parametrize("source", ["noise", "noise --noise=normal --noise_at=lr", "folder", "dead_leaves",
                                    "dead_leaves+generator"])
def test_edsr_is_distilled_from_every_source(run, images, tmp_path, source):
    torch.manual_seed(0)
    save_model(EDSR(2, 4, scale=3), tmp_path / "teacher.pth")
    process = run(distillation, *student_flags(images, "teacher.pth"), *f"--source={source}".split(), "--nEpochs=1",
                  "--n_resblocks=1", "--n_feats=3", "--self_ensemble")
    assert process.returncode == 0, process.stderr
    assert load_model(tmp_path / "student.pth").config["n_feats"] == 3
    assert "self-ensemble" in read(tmp_path / "runs/distillation")[0]["protocol"]


def test_an_edsr_starts_from_one_of_another_scale(run, images, tmp_path):
    assert run(train_teacher, "--arch=edsr_baseline", "--scale=2", *teacher_flags(images)).returncode == 0
    flags = [flag for flag in teacher_flags(images) if not str(flag).startswith("--n_")]
    for scale in (3, 4):
        process = run(train_teacher, *flags, "--pretrained=teacher.pth", f"--scale={scale}", "--lr=1e-9",
                      f"--save_dir=x{scale}", f"--output=x{scale}.pth")
        assert process.returncode == 0, process.stderr
        first, second = load_model(tmp_path / "teacher.pth"), load_model(tmp_path / f"x{scale}.pth")
        assert second.scales == (scale,)
        torch.testing.assert_close(first.body[1].body[0].weight, second.body[1].body[0].weight, atol=1e-5, rtol=0)


def test_without_data_the_bundled_photographs_serve(run, tiny_teacher, tmp_path):
    process = run(distillation, *student_flags("nowhere", tiny_teacher)[:-1], "--nEpochs=1", "--scale=2")
    assert process.returncode == 0, process.stderr
    results, _ = read(tmp_path / "runs/distillation")
    assert list(results["results"]) == ["skimage"]


def test_half_width_with_the_data_is_the_student_column(run, tmp_path):
    """Trained on scikit-image's pictures, started from a network that was trained before."""
    flags = (*teacher_flags("skimage")[:-1], "--model_type=half", "--scale=4", "--nEpochs=1")
    assert run(train_teacher, *flags, "--n_feats=6").returncode == 0
    results, metrics = read(tmp_path / "runs/train_teacher")
    assert set(results["results"]["skimage"]["4"]) == {"bicubic", "student"} and results["steps"] == 2
    assert load_model(tmp_path / "half.pth").config["n_feats"] == 3
    flags = [flag for flag in flags if not flag.startswith(("--n_", "--lr"))]
    more = run(train_teacher, *flags, "--pretrained=half.pth", "--lr=1e-9", "--save_dir=b", "--output=more.pth")
    assert more.returncode == 0, more.stderr
    assert read(tmp_path / "b")[1][0]["psnr"]["4"] == pytest.approx(metrics[0]["psnr"]["4"], abs=1e-3)


def test_demo(run, tmp_path):
    process = run(distillation, "--demo", "--nEpochs=1", "--iter=1", "--stu_step=2")
    assert process.returncode == 0, process.stderr
    results, _ = read(tmp_path / "runs/demo")
    for scale, row in results["results"]["skimage"].items():
        assert row["teacher"]["psnr"] > row["bicubic"]["psnr"] + 0.5
    assert (tmp_path / "runs/demo/student.pth").is_file() and (tmp_path / "runs/demo/comparison.png").is_file()
