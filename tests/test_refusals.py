"""Bad input of every kind: exit code 2, one line on stderr that names the culprit, and no file left behind."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import distillation
import train_teacher
from data.images import read_image
from models import EDSR, VDSR, Generator
from models.pair import check_start
from tests.helpers import assert_refused, student_flags, teacher_flags
from utils import InputError, save_model


@pytest.fixture
def refuse(run, images, tiny_teacher, tmp_path):
    """refuse(script, flags, *words): beside those of a tiny run, unless `tiny` says others; nothing is touched."""

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refused(script, flags, *words, tiny=None):
        if tiny is None:
            tiny = teacher_flags(images) if script is train_teacher else student_flags(images, tiny_teacher)
        before = files()
        assert_refused(run(script, *tiny, *flags.split()), *words)
        assert files() == before

    return refused


OPTIONS = [  # flags beside those of a tiny run, and what the line must say
    ("--batchSize=0", "--batchSize"), ("--batchSize=-3", "--batchSize"), ("--batchSize=2.5", "--batchSize"),
    ("--nEpochs=0", "--nEpochs"), ("--nEpochs=many", "--nEpochs"), ("--iter=0", "--iter"), ("--lr=0", "--lr"),
    ("--lr=-1", "--lr"), ("--lr=nan", "--lr"), ("--lr=inf", "--lr"), ("--step=0", "--step"), ("--clip=0", "--clip"),
    ("--momentum=1.5", "--momentum"), ("--momentum=-0.1", "--momentum"), ("--wd=-1", "--wd"),
    ("--start-epoch=0", "--start-epoch"), ("--start-epoch=9", "--start-epoch 9"), ("--threads=-1", "--threads"),
    ("--seed=-1", "--seed"), ("--scale=5", "--scale"), ("--model_type=third", "--model_type"),
    ("--loss_type=SSIM", "--loss_type"), ("--optimizer=lion", "--optimizer"), ("--schedule=flat", "--schedule"),
    ("--checkpoint_every=0", "--checkpoint_every"), ("--device=cuda:99", "--device cuda:99"),
    ("--device=abacus", "--device abacus"), ("--val_dataset=Set5+Set14", "--val_dataset"),
    ("--val_dataset=Set6", "Set6"), ("--data_test=Set5+Set6", "Set6"), ("--data_test=", "--data_test"),
    ("--resume=nowhere.pth", "nowhere.pth"), ("--resume=auto --test_only", "--test_only"),
    ("--align", ".py: error: unrecognized arguments: --align (--help lists the flags)"), ("--resume=", "--resume"),
    ("--pretrained=", "--pretrained"), ("--save_dir=", "--save_dir"),
    ("--device=meta", "--device meta"), ("--threads=3000000000", "--threads"), ("--lr=1e39", "--lr"),
    ("--iter=99999999999999999999", "--iter"), ("--batchSize=1" + 400 * "0", "--batchSize"),
    ("--output=/proc/x.pth", "--output /proc/x.pth"),
    ("--nEpoch=2", "--nEpoch"),
    ("--save_dir=/proc/nowhere", "/proc/nowhere"), ("--save_dir=/dev/null", "--save_dir"),
    ("--output=/dev/null/x.pth", "--output"), ("--output=.", "--output"),
]


@pytest.mark.parametrize("script", [train_teacher, distillation])
@pytest.mark.parametrize("flags, word", OPTIONS)
def test_options(refuse, script, flags, word):
    refuse(script, flags, word)


@pytest.mark.parametrize("flags, word", [
    ("--n_feats=1", "--n_feats"), ("--n_resblocks=0", "--n_resblocks"), ("--patch_size=0", "--patch_size"),
    ("--patch_size=57", "no image is large enough"), ("--res_scale=0.1", "--res_scale"),
    ("--res_scale=0 --arch=edsr", "--res_scale"), ("--arch=rcan", "--arch"), ("--arch=edsr", "--scale 0"),
    ("--arch=edsr --scale=3 --patch_size=25", "--patch_size 25"), ("--test_only", "--pretrained"),
    ("--pretrained=nowhere.pth", "nowhere.pth"), ("--data_dir=nowhere", "nowhere"),
    ("--data_dir=nowhere --data_test=skimage", "python -m data.download train291"),
    ("--student_init=teacher", "--student_init teacher: needs --model_type=half"),
])
def test_options_of_the_teachers_script(refuse, flags, word):
    refuse(train_teacher, flags, word)


@pytest.mark.parametrize("flags, word", [
    ("--input_size=0", "--input_size"), ("--input_size=31", "--input_size 31"), ("--latent=0", "--latent"),
    ("--stu_step=0", "--stu_step"), ("--lr_G=0", "--lr_G"), ("--reconw=-1", "--reconw"), ("--gw=nan", "--gw"),
    ("--ge_type=BN", "--ge_type"), ("--inc_num=4", "--inc_num"), ("--inc_num=9", "--inc_num 9: the student has only 6"),
    ("--inc_num=2", "--inc_step 0"), ("--inc_num=3 --inc_step=1", "--inc_step 1"), ("--inc_step=-1", "--inc_step"),
    ("--grow_init=zero", "--grow_init"), ("--source=dreams", "--source"), ("--student=s.pth", "--student"),
    ("--test_only", "--student"), ("--arch=edsr", "--arch edsr"), ("--n_feats=0", "--n_feats"),
    ("--pretrained=nowhere.pth", "nowhere.pth: no such teacher; train_teacher.py makes"),
    ("--source=folder --data_dir=nowhere --data_test=skimage", "nowhere"),
    ("--data_test=Set14", "python -m data.download benchmark --to"),
    ("--bank=-1", "--bank"), ("--bank=8", "--bank 8: the images of generators change"),
    ("--bank=8 --source=dead_leaves+generator", "--bank=0"),
    *((f"--student_init=teacher --source=noise {flags}", f"--student_init teacher: {words}") for flags, words in (
        ("--inc_num=2 --inc_step=1", "--inc_num above 1"), ("--n_resblocks=5", "the student's depth"),
        ("--n_feats=5", "the student is wider"))),
])
def test_options_of_the_distillation(refuse, flags, word):
    refuse(distillation, flags, word)


def test_a_network_of_ones_own_cannot_start_from_its_teacher():
    with pytest.raises(InputError, match="--student_init teacher: a network of --model .*; use --student_init=random"):
        check_start(VDSR(2, 4), {"arch": "own"})


@pytest.mark.parametrize("content", [  # of the good file's bytes and weights; test_load.py has more
    lambda good, weights: b"hello", lambda good, weights: good[:999], lambda good, weights: bytes(len(good)),
    lambda good, weights: [1, 2], lambda good, weights: {}, lambda good, weights: {"head.weight": 3},
    lambda good, weights: Generator(4, 8).state_dict(), lambda good, weights: dict(enumerate(weights.values())),
    lambda good, weights: weights | {"head.weight": torch.tensor(1.0)},
    lambda good, weights: weights | {"body.99999.weight": torch.zeros(4, 4, 3, 3)},
    lambda good, weights: weights | {"head.weight": weights["head.weight"] * float("nan")},
    lambda good, weights: weights | {"head.weight": weights["head.weight"] * 1j},
], ids=["text", "half", "zeros", "a list", "nothing", "numbers", "a generator", "integers for names", "a scalar",
        "an index", "nan", "complex"])
def test_checkpoints(refuse, tiny_teacher, tmp_path, content):
    """As a teacher, and to resume from."""
    content = content(tiny_teacher.read_bytes(), torch.load(tiny_teacher, weights_only=True)["state_dict"])
    if isinstance(content, bytes):
        (tmp_path / "bad.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "bad.pth")
    for flag in ("--pretrained", "--resume"):
        refuse(distillation, f"{flag}=bad.pth", "bad.pth")


@pytest.mark.parametrize("script", [train_teacher, distillation])
def test_too_little_memory_is_one_line(run, images, tiny_teacher, script):
    """It shows only in the first step, when the folder of the run is there already."""
    tiny = teacher_flags(images) if script is train_teacher else student_flags(images, tiny_teacher)
    assert_refused(run(script, *tiny, "--batchSize=2000000000"), "out of memory", "--batchSize")


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
    refuse(train_teacher, "--pretrained=edsr2.pth --arch=vdsr", "--arch vdsr: edsr2.pth is of another, edsr", tiny=both[1:])
    refuse(train_teacher, f"--pretrained={tiny_teacher} --arch=edsr --model_type=half --student_init=teacher", "--arch edsr",
           tiny=both[1:])
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


def test_folders(refuse, tmp_path):
    (tmp_path / "empty" / "train291").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    for data in ("empty", "file"):
        refuse(train_teacher, f"--data_dir={data} --data_test=skimage", f"{data}/train291")
        refuse(distillation, f"--data_dir={data} --data_test=B100", "B100/HR")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_kinds_are_read_rightly(tmp_path, mode):
    """The same picture, black and white so that every mode can hold it, in each of Pillow's usual modes."""
    grey = np.where(np.random.default_rng(0).random((8, 9)) < 0.5, 0, 255).astype(np.uint8)
    suffix = ".tif" if mode == "CMYK" else ".png"
    source = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    transparency = {"transparency": bytes([0, 255])} if mode == "P" else {}
    source.convert(mode).save(tmp_path / f"a{suffix}", **transparency)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.repeat(grey[..., None], 3, axis=2))
