"""Bad input of every kind: exit code 2, one line on stderr that names the culprit, and no file left behind."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import distillation
import train_teacher
from models import EDSR, VDSR, Generator
from tests.helpers import assert_refused, tiny_flags
from utils import save_model


@pytest.fixture
def refuse(run, images, tiny_teacher, tmp_path):
    """refuse(script, flags, *words): beside those of a tiny run, unless `tiny` says others; nothing is touched."""

    files = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refused(script, flags, *words, tiny=None):
        before = files()
        assert_refused(run(script, *(tiny or tiny_flags(script, images, tiny_teacher)), *flags.split()), *words)
        assert files() == before

    return refused


SHARED = [  # flags beside those of a tiny run, and what the line must say; one for all flags of its type
    ("--batchSize=0", "--batchSize"), ("--batchSize=2.5", "--batchSize"), ("--batchSize=1" + 400 * "0", "--batchSize"),
    ("--lr=0", "--lr"), ("--lr=nan", "--lr"), ("--start-epoch=9", "--start-epoch 9"), ("--optimizer=x", "--optimizer"),
    ("--nEpoch=2", "--nEpoch"), ("--device=cuda:99", "--device cuda:99"), ("--val_dataset=Set6", "Set6"),
    ("--device=meta", "--device meta"), ("--val_dataset=Set5+Set14", "--val_dataset"), ("--data_test=", "--data_test"),
    ("--data_test=Set5+Set6", "Set6"), ("--pretrained=nowhere.pth", "nowhere.pth"), ("--output=.", "--output"),
    ("--resume=nowhere.pth", "nowhere.pth"), ("--resume=auto --test_only", "--test_only"),
    ("--save_dir=/proc/nowhere", "/proc/nowhere"), ("--save_dir=/dev/null", "/dev/null"),
    ("--align", ".py: error: unrecognized arguments: --align (--help lists the flags)"),
    ("--output=/proc/x.pth", "--output /proc/x.pth"), ("--output=/dev/null/x.pth", "--output"),
    ("--save_dir=new --output=new/samples", "--output new/samples: is a name of the run itself"),
    *((f"--{flag}={name}.pth", f"{name}.pth") for flag in ("pretrained", "resume") for name in ("list", "generator"))]
OF_TEACHER = [
    ("--n_feats=1", "--n_feats"), ("--arch=edsr", "--scale 0"), ("--res_scale=0.1", "--res_scale: only an edsr"),
    ("--patch_size=57", "no image is large enough"), ("--arch=edsr --scale=3 --patch_size=25", "--patch_size 25"),
    ("--test_only", "--pretrained"), ("--data_dir=nowhere --data_test=skimage", "python -m data.download train291"),
    ("--data_dir=empty --data_test=skimage", "empty/train291"),
    ("--data_dir=file --data_test=skimage", "file/train291"),
    ("--student_init=teacher", "--student_init teacher: needs --model_type=half")]
OF_STUDENT = [("--input_size=31", "--input_size 31: too small at x4; the least is 32"),
    ("--inc_num=9", "--inc_num 9: the student has only 6"), ("--inc_num=3", "--inc_step 0: 3 stages need"),
    ("--inc_num=3 --inc_step=1", "--inc_step 1: 3 stages"), ("--student=s.pth", "--student: goes with --test_only"),
    ("--test_only", "--student"), ("--arch=edsr", "--arch edsr"), ("--data_dir=file --data_test=B100", "B100/HR"),
    ("--pretrained=nowhere.pth", "nowhere.pth: no such teacher; train_teacher.py makes"),
    ("--source=folder --data_dir=nowhere --data_test=skimage", "nowhere"),
    ("--data_test=Set14", "python -m data.download benchmark --to"),
    ("--bank=8 --source=dead_leaves+generator", "--bank 8: the images of generators change"),
    ("--student_init=teacher --inc_num=2 --inc_step=1", "--student_init teacher: --inc_num above 1"),
    ("--student_init=teacher --n_resblocks=5", "--student_init teacher: the student's depth is not the teacher's"),
    ("--student_init=teacher --n_feats=5", "--student_init teacher: the student is wider than the teacher")]


@pytest.mark.parametrize("script, flags, word", [
    *((script, *case) for script in (train_teacher, distillation) for case in SHARED),
    *((train_teacher, *case) for case in OF_TEACHER), *((distillation, *case) for case in OF_STUDENT)])
def test_options(refuse, tmp_path, script, flags, word):
    (tmp_path / "empty/train291").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    torch.save([1, 2], tmp_path / "list.pth")  # test_load.py and test_interruption.py have more
    torch.save(Generator(4, 8).state_dict(), tmp_path / "generator.pth")
    refuse(script, flags, word)


@pytest.mark.parametrize("script", [train_teacher, distillation])
def test_too_little_memory_is_one_line(run, monkeypatch, images, tiny_teacher, script):
    """It shows only in the first step, when the folder of the run is there already."""
    monkeypatch.setattr(script, "train_step", lambda *_: torch.empty(2**50))
    assert_refused(run(script, *tiny_flags(script, images, tiny_teacher)), "out of memory", "--batchSize")


def test_networks_that_do_not_go_together(refuse, images, tiny_teacher, tmp_path):
    for name, model in (("edsr3", EDSR(1, 4, scale=3)), ("edsr2", EDSR(1, 4, scale=2)), ("wide", VDSR(6, 8)),
                        ("one", VDSR(6, 1))):
        save_model(model, tmp_path / f"{name}.pth")
    both = ("--test_only", "--data_dir", images, "--data_test=Set5", "--device=cpu")
    for teacher, student in (("edsr3.pth", "edsr2.pth"), (tiny_teacher, "edsr2.pth"), (tiny_teacher, "wide.pth")):
        refuse(distillation, f"--pretrained={teacher} --student={student}", student, tiny=both)
    refuse(distillation, "--pretrained=edsr2.pth --student=edsr2.pth --scale=3", "--scale 3", "edsr2.pth", tiny=both)
    refuse(train_teacher, "--pretrained=edsr2.pth --scale=4", "--scale 4", "edsr2.pth", tiny=both)
    refuse(train_teacher, "--pretrained=edsr2.pth", "--n_resblocks 2: edsr2.pth has 1")
    save_model(VDSR(1, 64), tmp_path / "full.pth")
    refuse(train_teacher, "--pretrained=full.pth --model_type=half", "--model_type half: full.pth", tiny=both[1:])
    for flags, word in (("--pretrained=edsr2.pth --arch=vdsr", "--arch vdsr: edsr2.pth is of another, edsr"),
                        (f"--pretrained={tiny_teacher} --arch=edsr --student_init=teacher", "--arch edsr")):
        refuse(train_teacher, flags, word, tiny=both[1:])
    refuse(distillation, "--pretrained=one.pth", "one.pth")


@pytest.mark.parametrize("kind", ["text", "cut", "16 bit", "small"])
def test_images(refuse, images, tmp_path, kind):
    """Among good ones: to train on, where those too small are only left out, and to score on."""
    for place in ("train291", "benchmark/Set5/HR")[kind == "small":]:
        data = tmp_path / place.replace("/", "_")
        shutil.copytree(images, data)
        if kind in ("16 bit", "small"):
            shape, dtype = ((60, 60), np.uint16) if kind == "16 bit" else ((9, 60), np.uint8)
            Image.fromarray(np.zeros(shape, dtype)).save(data / place / "1bad.png")
        else:
            good = (data / place / "0.png").read_bytes()
            (data / place / "1bad.png").write_bytes(good[:2000] if kind == "cut" else b"hello")
        refuse(train_teacher, f"--data_dir={data}", "1bad.png: ")
        if place == "train291":
            refuse(distillation, f"--data_dir={data} --source=folder", "1bad.png: ")
    refuse(distillation, f"--data_dir={data}", "1bad.png: ")
