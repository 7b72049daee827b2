"""Bad input of every kind: exit code 2, one line on stderr that names the culprit, and no file left behind."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distillation
import train_teacher
from data.images import read_image
from models import EDSR, VDSR, Generator
from tests.helpers import Outcome, assert_refused, finish, start, student_flags, teacher_flags
from utils import save_model


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """run(script module, flags...) runs a script in an empty folder as a process."""
    output = tmp_path_factory.mktemp("output")

    def run_script(script, *flags):
        code = finish(start(Path(script.__file__).name, flags, tmp_path, output))
        return Outcome(code, (output / "stdout").read_text(), (output / "stderr").read_text())

    return run_script


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refuse(run, folder, script, flags, *words):
    before = files_of(folder)
    assert_refused(run(script, *flags), *words)
    assert files_of(folder) == before


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
    ("--align", "--align"), ("--resume=", "--resume"), ("--pretrained=", "--pretrained"), ("--save_dir=", "--save_dir"),
    ("--device=meta", "--device meta"), ("--threads=3000000000", "--threads"), ("--lr=1e39", "--lr"),
    ("--iter=99999999999999999999", "--iter"), ("--batchSize=1" + 400 * "0", "--batchSize"),
    ("--output=/proc/x.pth", "--output /proc/x.pth"),
    ("--nEpoch=2", "--nEpoch"),
    ("--save_dir=/proc/nowhere", "/proc/nowhere"), ("--save_dir=/dev/null", "--save_dir"),
    ("--output=/dev/null/x.pth", "--output"), ("--output=.", "--output"),
]


@pytest.mark.parametrize("script", [train_teacher, distillation])
@pytest.mark.parametrize("flags, word", OPTIONS)
def test_options(run, images, tiny_teacher, tmp_path, script, flags, word):
    tiny = teacher_flags(images) if script is train_teacher else student_flags(images, tiny_teacher)
    refuse(run, tmp_path, script, (*tiny, *flags.split()), word)


@pytest.mark.parametrize("flags, word", [
    ("--n_feats=1", "--n_feats"), ("--n_resblocks=0", "--n_resblocks"), ("--patch_size=0", "--patch_size"),
    ("--patch_size=57", "no image is large enough"), ("--res_scale=0.1", "--res_scale"),
    ("--res_scale=0 --arch=edsr", "--res_scale"), ("--arch=rcan", "--arch"), ("--arch=edsr", "--scale 0"),
    ("--arch=edsr --scale=3 --patch_size=25", "--patch_size 25"), ("--test_only", "--pretrained"),
    ("--pretrained=nowhere.pth", "cannot go with --pretrained"), ("--data_dir=nowhere", "nowhere"),
])
def test_options_of_the_teachers_script(run, images, tmp_path, flags, word):
    refuse(run, tmp_path, train_teacher, (*teacher_flags(images), *flags.split()), word)


@pytest.mark.parametrize("flags, word", [
    ("--input_size=0", "--input_size"), ("--input_size=31", "--input_size 31"), ("--latent=0", "--latent"),
    ("--stu_step=0", "--stu_step"), ("--lr_G=0", "--lr_G"), ("--reconw=-1", "--reconw"), ("--gw=nan", "--gw"),
    ("--ge_type=LN", "--ge_type"), ("--inc_num=4", "--inc_num"), ("--inc_num=9", "--inc_num 9: the student has only 6"),
    ("--inc_num=2", "--inc_step 0"), ("--inc_num=3 --inc_step=1", "--inc_step 1"), ("--inc_step=-1", "--inc_step"),
    ("--grow_init=zero", "--grow_init"), ("--source=dreams", "--source"), ("--student=s.pth", "--student"),
    ("--test_only", "--student"), ("--arch=edsr", "--arch edsr"), ("--n_feats=0", "--n_feats"),
    ("--pretrained=nowhere.pth", "nowhere.pth"),
    ("--source=folder --data_dir=nowhere --data_test=skimage", "nowhere"),
])
def test_options_of_the_distillation(run, images, tiny_teacher, tmp_path, flags, word):
    refuse(run, tmp_path, distillation, (*student_flags(images, tiny_teacher), *flags.split()), word)


def checkpoint(kind, path, whole):
    """Write a `kind` of bad checkpoint to `path`; `whole` is a good one."""
    content = whole.read_bytes()
    weights = torch.load(whole, weights_only=True)["state_dict"]
    damaged = {"empty file": b"", "text": b"hello, world\n" * 100, "half": content[: len(content) // 2],
               "a byte less": content[:-1], "zeros": bytes(len(content)), "png": b"\x89PNG\r\n\x1a\n" + bytes(50)}
    others = {
        "a module": lambda: VDSR(2, 4), "a tensor": lambda: torch.zeros(3), "a list": lambda: [1, 2], "nothing": dict,
        "a generator": lambda: Generator(4, 8).state_dict(), "numbers": lambda: {"head.weight": 3},
        "a missing tensor": lambda: {k: v for k, v in weights.items() if k != "body.3.weight"},
        "a shape": lambda: weights | {"body.3.weight": torch.zeros(4, 5, 3, 3)},
        "a scalar head": lambda: weights | {"head.weight": torch.tensor(1.0)},
        "an index": lambda: weights | {"body.99999.weight": torch.zeros(4, 4, 3, 3)},
        "another arch": lambda: {"config": {"arch": "rcan"}, "state_dict": weights},
        "a config of words": lambda: {"config": {"arch": "vdsr", "n_feats": "many", "n_resblocks": 2},
                                      "state_dict": weights},
        "not finite": lambda: weights | {"head.weight": weights["head.weight"] * float("nan")},
        "sparse": lambda: weights | {"head.weight": weights["head.weight"].to_sparse()},
        "complex": lambda: weights | {"head.weight": weights["head.weight"] * 1j},
        "integers for names": lambda: dict(enumerate(weights.values())),
        "a res_scale of words": lambda: {"config": EDSR(1, 4).config | {"res_scale": "big"}, "state_dict": weights},
        "a scale of 5": lambda: {"config": EDSR(1, 4).config | {"scale": 5}, "state_dict": weights},
    }
    if kind in damaged:
        path.write_bytes(damaged[kind])
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a half network in a whole one's config":
        torch.save({"config": VDSR(6, 2).config, "state_dict": weights}, path)
    else:
        torch.save(others[kind](), path)


@pytest.mark.parametrize("kind", [
    "empty file", "text", "half", "a byte less", "zeros", "png", "a module", "a tensor", "a list", "nothing",
    "a generator", "numbers", "a missing tensor", "a shape", "a scalar head", "an index", "another arch",
    "a config of words", "a scale of 5", "a folder", "not finite", "sparse", "complex", "integers for names",
    "a res_scale of words", "a half network in a whole one's config",
])
def test_checkpoints(run, images, tiny_teacher, tmp_path, kind):
    checkpoint(kind, tmp_path / "bad.pth", tiny_teacher)
    refuse(run, tmp_path, distillation, student_flags(images, "bad.pth"), "bad.pth")
    refuse(run, tmp_path, distillation, (*student_flags(images, tiny_teacher), "--resume=bad.pth"), "bad.pth")
    refuse(run, tmp_path, train_teacher, ("--test_only", "--pretrained=bad.pth"), "bad.pth")


@pytest.mark.parametrize("script", [train_teacher, distillation])
def test_too_little_memory_is_one_line(run, images, tiny_teacher, script):
    """It shows only in the first step, when the folder of the run is there already."""
    tiny = teacher_flags(images) if script is train_teacher else student_flags(images, tiny_teacher)
    assert_refused(run(script, *tiny, "--batchSize=2000000000"), "out of memory", "--batchSize")


def test_networks_that_do_not_go_together(run, images, tiny_teacher, tmp_path):
    save_model(EDSR(1, 4, scale=3), tmp_path / "edsr3.pth")
    save_model(EDSR(1, 4, scale=2), tmp_path / "edsr2.pth")
    save_model(VDSR(6, 8), tmp_path / "wide.pth")
    save_model(VDSR(6, 1), tmp_path / "one.pth")
    both = ("--test_only", "--data_dir", images, "--data_test=Set5", "--device=cpu")
    for teacher, student in (("edsr3.pth", "edsr2.pth"), (tiny_teacher, "edsr2.pth"), (tiny_teacher, "wide.pth")):
        refuse(run, tmp_path, distillation, (*both, "--pretrained", teacher, "--student", student), student)
    refuse(run, tmp_path, distillation, (*both, "--pretrained=edsr2.pth", "--student=edsr2.pth", "--scale=3"),
           "--scale 3", "edsr2.pth")
    refuse(run, tmp_path, train_teacher, (*both, "--pretrained=edsr2.pth", "--scale=4"), "--scale 4", "edsr2.pth")
    refuse(run, tmp_path, distillation, student_flags(images, "one.pth"), "one.pth")


def png(width, height, depth=8, pixels=b""):
    """A PNG file of the given size, RGB of `depth` bits, whose pixels may be missing."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def bad_image(kind, path, good):
    if kind == "16 bit":
        Image.fromarray(np.zeros((60, 60), dtype=np.uint16)).save(path)
    elif kind == "floats":
        Image.fromarray(np.zeros((60, 60), dtype=np.float32)).save(path.with_suffix(".tif"))
    elif kind == "small":
        Image.fromarray(np.zeros((9, 60), dtype=np.uint8)).save(path)
    else:
        whole = good.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2],
                          "gigapixel": png(60000, 60000), "no pixels": png(60, 60), "100 megapixels": png(10000, 10000),
                          "16 bit colour": png(60, 60, 16, bytes(60 * (1 + 6 * 60))),
                          "zero wide": png(0, 60), "a jpeg's first bytes": b"\xff\xd8\xff\xe0"}[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "gigapixel", "no pixels", "zero wide",
                                  "a jpeg's first bytes", "16 bit", "16 bit colour", "100 megapixels",
                                  "floats", "small"])
def test_images(run, images, tiny_teacher, tmp_path, kind):
    """Among good ones: to train on, where those too small are only left out, and to score on."""
    for place in ("train291", "benchmark/Set5/HR")[kind == "small":]:
        data = tmp_path / place.replace("/", "_")
        shutil.copytree(images, data)
        bad_image(kind, data / place / "1bad.png", data / place / "0.png")
        refuse(run, tmp_path, train_teacher, teacher_flags(data), "1bad.")
        if place != "train291":
            refuse(run, tmp_path, distillation, student_flags(data, tiny_teacher), "1bad.")


def test_folders(run, images, tiny_teacher, tmp_path):
    (tmp_path / "empty" / "train291").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    for data in ("empty", "file"):
        refuse(run, tmp_path, train_teacher, (*teacher_flags(data)[:-1], "--data_test=skimage"), f"{data}/train291")
        refuse(run, tmp_path, distillation, (*student_flags(data, tiny_teacher), "--data_test=B100"), "B100/HR")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_kinds_are_read_rightly(tmp_path, mode):
    """The same picture, black and white so that every mode can hold it, in each of Pillow's usual modes."""
    grey = np.where(np.random.default_rng(0).random((8, 9)) < 0.5, 0, 255).astype(np.uint8)
    suffix = ".tif" if mode == "CMYK" else ".png"
    source = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    transparency = {"transparency": bytes([0, 255])} if mode == "P" else {}
    source.convert(mode).save(tmp_path / f"a{suffix}", **transparency)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.repeat(grey[..., None], 3, axis=2))
