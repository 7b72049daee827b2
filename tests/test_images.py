"""distillation.py --images as a user runs it: what each kind of image becomes, names, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import distillation
from bicubic import imresize
from models import EDSR
from tests.helpers import SRGB, assert_refused, bicubic_network, pixels, resized
from utils import save_model

NEAREST = """
from torch import nn

def student():
    network = nn.Upsample(scale_factor=2)
    network.scale, network.channels = 2, 3
    return network
"""


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


@pytest.fixture
def bicubic(tmp_path):
    """Flags of the script for that network; what is upscaled goes to out/."""
    save_model(bicubic_network(), tmp_path / "s.pth")
    return ("--test_only", "--student=s.pth", "--save_images=out", "--device=cpu", "--threads=1")


def test_every_kind_of_image_keeps_its_kind(run, bicubic, tmp_path):
    """A folder of them, and one of another folder, by a network that changes nothing."""
    (tmp_path / "in").mkdir()
    rgba = Image.fromarray(resized(pixels(5, 6, 4), 2))
    modes = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "P": "RGB", "1": "L", "CMYK": "RGB"}
    for mode in modes:
        suffix = "tif" if mode == "CMYK" else "png"
        rgba.convert("RGB" if mode in ("P", "CMYK", "1") else "RGBA").convert(mode).save(
            tmp_path / "in" / f"{mode}.{suffix}", icc_profile=SRGB)
    Image.fromarray(pixels(10, 12)).quantize(9).save(tmp_path / "clear.png", transparency=3)
    result = run(distillation, *bicubic, "--scale=3", "--images", "in", "clear.png")
    assert result.returncode == 0 and result.stdout == "8 images upscaled by 3: out\n", result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clear.png", "in", "out", "s.pth"]
    assert {p.stem for p in (tmp_path / "out").iterdir()} == {*modes, "clear"}
    for mode, expected in {**modes, "clear": "RGBA"}.items():
        source = next(tmp_path.glob(f"**/{mode}.*")) if mode == "clear" else next(tmp_path.glob(f"in/{mode}.*"))
        with Image.open(tmp_path / "out" / f"{mode}.png") as image, Image.open(source) as original:
            assert (image.mode, image.size) == (expected, (36, 30))
            assert image.info.get("icc_profile") == (SRGB if mode not in ("CMYK", "clear") else None)
            converted = np.asarray(original.convert(expected)).reshape(10, 12, -1)
            error = np.asarray(image).reshape(30, 36, -1).astype(int) - resized(converted, 3)
            assert np.abs(error).max() <= 1 and np.abs(error).mean() < 0.01


def test_a_photograph_and_16_bits(run, bicubic, tmp_path):
    """A JPEG that lies on its side, with EXIF and a profile; grey of 16 bits as PNG and TIFF."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.fromarray(resized(pixels(4, 6), 2)).save(tmp_path / "photo.JPG", exif=exif, icc_profile=SRGB)
    deep = np.full((5, 7), 40001, np.uint16)
    deep[2] = 513
    for name in ("a.png", "b.tif"):
        Image.fromarray(deep).save(tmp_path / name)
    result = run(distillation, *bicubic, "--scale=2", "--images", "photo.JPG", "a.png", "b.tif", "./photo.JPG")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out/photo.png") as image, Image.open(tmp_path / "photo.JPG") as original:
        assert image.size == (16, 24) and image.info["icc_profile"] == SRGB and not image.getexif()
        expected = resized(np.asarray(original.transpose(Image.Transpose.ROTATE_270)), 2)
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
    expected = imresize(torch.from_numpy(deep.astype(np.float64)), 2).clamp(0, 65535).numpy()
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.mode.startswith("I") and np.abs(np.asarray(image) - expected).max() < 0.6


def test_networks_on_rgb(run, tmp_path):
    """An EDSR's one scale need not be named; a network of one's own; the mean over flips and turns."""
    Image.fromarray(pixels(9, 7)).save(tmp_path / "a.png")
    model = EDSR(1, 4, scale=3).eval()
    save_model(model, tmp_path / "edsr.pth")
    flags = ("--test_only", "--images=a.png", "--device=cpu", "--threads=1")
    outcomes = [run(distillation, *flags, "--student=edsr.pth", f"--save_images={name}", *more)
                for name, more in (("a", ()), ("b", ()), ("c", ("--self_ensemble",)))]
    assert all(outcome.returncode == 0 for outcome in outcomes), outcomes
    a, b, c = (np.asarray(Image.open(tmp_path / name / "a.png")).astype(int) for name in "abc")
    tile = torch.from_numpy(pixels(9, 7)).permute(2, 0, 1) / 255
    expected = 255 * model(tile[None])[0].detach().clamp(0, 1).permute(1, 2, 0)
    assert np.abs(a - expected.numpy()).max() < 0.51 and (a == b).all() and 0 < np.abs(a - c).mean()

    (tmp_path / "own.py").write_text(NEAREST)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "own.pth")
    own = run(distillation, *flags, "--model=own.py", "--student=own.pth", "--save_images=out")
    assert_refused(own, "own.pth", "'weight'")
    torch.save({}, tmp_path / "own.pth")
    own = run(distillation, *flags, "--model=own.py", "--student=own.pth", "--save_images=out")
    assert own.returncode == 0, own.stderr
    np.testing.assert_array_equal(Image.open(tmp_path / "out/a.png"), pixels(9, 7).repeat(2, axis=0).repeat(2, axis=1))


# ---- what is refused -------------------------------------------------------------------------------


def test_flags_that_do_not_go_together(run, bicubic, tmp_path):
    Image.fromarray(pixels(4, 4)).save(tmp_path / "a.png")
    save_model(EDSR(1, 4, scale=3), tmp_path / "edsr.pth")
    images, to, by = "--images=a.png", "--save_images=out", "--student=s.pth"
    for flags, words in (
        ((images, "--test_only", by), ("--images", "--save_images")), ((to, "--test_only", by), ("--images",)),
        ((images, "--save_images=", "--test_only", by), ("--save_images",)),
        (("--save_images=", "--test_only", by), ("--images",)),
        ((images, to, by), ("--test_only",)), ((images, to, "--test_only"), ("--student",)),
        ((*bicubic, images), ("--scale 0", "s.pth", "2, 3, 4")),
        ((images, to, "--test_only", "--student=edsr.pth", "--scale=2"), ("--scale 2", "edsr.pth", "by 3 only")),
        ((images, to, "--test_only", "--student=nowhere.pth", "--scale=2"), ("nowhere.pth",)),
        ((*bicubic, images, "--scale=2", "--device=abacus"), ("--device abacus",)),
    ):
        assert_refused(run(distillation, *flags), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "edsr.pth", "s.pth"]


def test_names_that_would_overwrite(run, bicubic, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("one/a.png", "two/a.jpg", "one/b.png"):
        Image.fromarray(pixels(4, 4)).save(tmp_path / name)
    (tmp_path / "three").symlink_to("one")
    before = (tmp_path / "one/a.png").read_bytes()
    flags = (*bicubic, "--scale=2", "--images")
    assert_refused(run(distillation, *flags, "one", "two"), "one/a.png and two/a.jpg", "out/a.png")
    assert_refused(run(distillation, *flags, "one/b.png", "one/a.png", "--save_images=two/../one"), "one/b.png")
    assert_refused(run(distillation, *flags, "one/a.png", "--save_images=three"), "three/a.png")
    (tmp_path / "out/a.png").mkdir(parents=True)
    assert_refused(run(distillation, *flags, "one/a.png"), "out/a.png is a folder")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"] and len(list(tmp_path.glob("one/*"))) == 2
    assert (tmp_path / "one/a.png").read_bytes() == before
    (tmp_path / "new").mkdir()
    (tmp_path / "new/b.png").write_text("an earlier output")
    assert run(distillation, *flags, "one", "one/b.png", "--save_images=new").returncode == 0
    assert {p.name: Image.open(p).size for p in tmp_path.glob("new/*")} == {"a.png": (8, 8), "b.png": (8, 8)}


def test_inputs_and_folders_that_cannot_be_used(run, bicubic, tmp_path):
    Image.fromarray(pixels(4, 4)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    flags = (*bicubic, "--scale=2", "--images", "a.png")
    for more, words in ((("nowhere",), ("nowhere: no such",)), (("",), ("--images",)), (("notes.txt",), ("notes.txt",)),
                        (("empty",), ("empty: no image",)), (("--save_images=notes.txt",), ("notes.txt",)),
                        (("--save_images=/proc/nowhere",), ("--save_images /proc/nowhere",)),
                        (("--save_images=notes.txt/out",), ("--save_images notes.txt/out",))):
        assert_refused(run(distillation, *flags, *more), *words)
    assert not (tmp_path / "out").exists()


def test_damaged_images(run, bicubic, tmp_path):
    """One whose header is no image's: nothing is upscaled. One that is cut: the others are."""
    for name in "ac":
        Image.fromarray(pixels(4, 4)).save(tmp_path / f"{name}.png")
    whole_file = io.BytesIO()
    Image.fromarray(pixels(40, 40)).save(whole_file, "PNG")
    flags = (*bicubic, "--scale=2", "--images", "a.png", "b.png", "c.png")
    (tmp_path / "b.png").write_bytes(b"hello")
    assert_refused(run(distillation, *flags), "b.png: cannot be read as an image")
    assert not (tmp_path / "out").exists()
    (tmp_path / "b.png").write_bytes(whole_file.getvalue()[:2000])
    assert_refused(run(distillation, *flags), "b.png: cannot be read as an image", "of 3 images 2 were")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
