"""tools.upscale as a user runs it: what each kind of image becomes, names, and what is refused; reading and luma."""

import base64
import os
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from bicubic import imresize
from data.images import luma, read_image
from models import EDSR
from tests.helpers import SRGB, assert_refused, bicubic_network, contents, pixels, resized
from tools import upscale
from utils import InputError, save_model

NEAREST = """
from torch import nn

def student():
    network = nn.Upsample(scale_factor=2)
    network.scale, network.channels = 2, 3
    return network
"""
# A PNG of one pixel, which Pillow cannot write.
RGB16 = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABEAIAAADA54+dAAAAC0lEQVR4nGNgAAMAAAcAAbKGrPQAAAAASUVORK5CYII=")
TINY = ("--to=out", "--device=cpu", "--threads=1")


@pytest.fixture
def bicubic(tmp_path):
    """The first argument and flags of the tool for that network; what is upscaled goes to out/."""
    save_model(bicubic_network(), tmp_path / "s.pth")
    return ("s.pth", *TINY)


def test_every_kind_of_image_keeps_its_kind(run, bicubic, tmp_path, monkeypatch):
    """A folder of them, with what macOS leaves beside, and one of another folder, by a network that changes nothing."""
    monkeypatch.setattr(upscale, "_TILE", 1)
    (tmp_path / "in").mkdir()
    rgb = Image.fromarray(resized(pixels(5, 6), 2))
    modes = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "P": "RGB", "1": "L", "CMYK": "RGB"}
    for mode in modes:
        rgb.convert(mode).save(tmp_path / f"in/{mode}.{'tif' if mode == 'CMYK' else 'png'}", icc_profile=SRGB)
    (tmp_path / "in/._L.png").write_bytes(b"Mac OS X")
    Image.fromarray(pixels(10, 12)).quantize(9).save(tmp_path / "clear.png", transparency=3)
    result = run(upscale, *bicubic, "--scale=3", "in", "clear.png")
    assert result.returncode == 0 and result.stdout == "8 images upscaled by 3: out\n", result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clear.png", "in", "out", "s.pth"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{mode}.png" for mode in (*modes, "clear")}
    for mode, expected in {**modes, "clear": "RGBA"}.items():
        source = next(tmp_path.glob(f"{'in/' * (mode != 'clear')}{mode}.*"))
        with Image.open(tmp_path / "out" / f"{mode}.png") as image, Image.open(source) as original:
            assert (image.mode, image.size) == (expected, (36, 30))
            assert image.info.get("icc_profile") == (SRGB if mode not in ("CMYK", "clear") else None)
            np.testing.assert_array_equal(read_image(source), np.asarray(original.convert("RGB")))  # alpha dropped
            converted = np.asarray(original.convert(expected)).reshape(10, 12, -1)
            found = np.asarray(image).reshape(30, 36, -1)
        part = slice(-1, None) if mode == "clear" else slice(None)
        error = found.astype(int)[..., part] - resized(converted, 3)[..., part]
        assert np.abs(error).max() <= 1 and np.abs(error).mean() < 0.01


def test_a_photograph_and_16_bits(done, bicubic, tmp_path):
    """A JPEG that lies on its side, with EXIF and a profile, named twice; grey of 16 bits as PNG and such a TIFF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(resized(pixels(4, 6), 2)).save(tmp_path / "photo.JPG", exif=exif, icc_profile=SRGB)
    deep = np.full((5, 7), 40001, np.uint16)
    deep[2] = 513
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif", exif=exif)  # Pillow turns it as it loads it
    done(upscale, *bicubic, "--scale=2", "photo.JPG", "a.png", "b.tif", "./photo.JPG")
    photo = Image.open(tmp_path / "out/photo.png")
    assert photo.size == (16, 24) and photo.info["icc_profile"] == SRGB and not photo.getexif()
    expected = resized(np.asarray(Image.open(tmp_path / "photo.JPG").transpose(Image.Transpose.ROTATE_270)), 2)
    assert np.abs(np.asarray(photo).astype(int) - expected).max() <= 1
    expected = imresize(torch.from_numpy(deep.astype(np.float64)), 2).clamp(0, 65535).numpy()
    for name, turned in (("a.png", expected), ("b.png", expected[::-1].T)):
        assert np.abs(np.asarray(Image.open(tmp_path / "out" / name)) - turned).max() < 0.6


def test_networks_on_rgb(done, tmp_path):
    """An EDSR's one scale need not be named; a network of one's own; the mean over flips and turns."""
    Image.fromarray(pixels(9, 7)).save(tmp_path / "a.png")
    model = EDSR(1, 4, scale=3).eval()
    save_model(model, tmp_path / "edsr.pth")
    (tmp_path / "own.py").write_text(NEAREST)
    torch.save({}, tmp_path / "own.pth")
    found = []
    for student, flag in (("edsr.pth", "--threads=1"), ("edsr.pth", "--self_ensemble"), ("own.pth", "--model=own.py")):
        done(upscale, student, "a.png", *TINY, flag)
        found.append(np.asarray(Image.open(tmp_path / "out/a.png")).astype(int))
    expected = 255 * model(torch.from_numpy(pixels(9, 7)).permute(2, 0, 1)[None] / 255)[0].detach().clamp(0, 1)
    assert np.abs(found[0] - expected.permute(1, 2, 0).numpy()).max() < 0.51
    assert np.abs(found[1] - found[0]).mean() > 0
    np.testing.assert_array_equal(found[2], pixels(9, 7).repeat(2, axis=0).repeat(2, axis=1))


def test_what_cannot_be_used(run, bicubic, tmp_path):
    Image.fromarray(pixels(4, 4)).save(tmp_path / "a.png")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    save_model(EDSR(1, 4, scale=3), tmp_path / "edsr.pth")
    before = sorted(tmp_path.rglob("*"))
    flags = (*bicubic, "--scale=2", "a.png")
    for arguments, word in (((*bicubic, "a.png"), "--scale 0: s.pth upscales by 2, 3, 4"),
        (("edsr.pth", "a.png", *TINY, "--scale=2"), "--scale 2: the network edsr.pth upscales by 3 only"),
        (("nowhere.pth", "a.png", *TINY), "nowhere.pth"), ((*flags, "--device=abacus"), "--device abacus"),
        (("s.pth", "a.png"), "--to"), ((*flags, "--to=notes.txt"), "notes.txt: File exists"),
        *(((*flags, name), f"'{name}': no such image") for name in ("nowhere", "", "notes.txt", ".hidden"))):
        assert_refused(run(upscale, *arguments), word)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_would_overwrite(run, done, bicubic, tmp_path):
    for name in ("one/a.png", "two/a.jpg", "one/b.png", "four/a.jpg", "four/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(4, 4)).save(tmp_path / name)
    (tmp_path / "three").symlink_to("one")
    before, flags = contents(tmp_path), (*bicubic, "--scale=2")
    assert_refused(run(upscale, *flags, "one", "two"), "one/a.png and two/a.jpg", "out/a.png")
    assert_refused(run(upscale, *flags, "one/b.png", "one/a.png", "--to=two/../one"), "one/b.png")
    assert_refused(run(upscale, *flags, "one/a.png", "--to=three"), "three/a.png")
    assert_refused(run(upscale, *flags, "four/a.jpg", "--to=four"), "four/a.png is there already, beside four/a.jpg")
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new/b.png").write_text("an earlier output")
    done(upscale, *flags, "one", "one/b.png", "--to=new")
    assert {p.name: Image.open(p).size for p in tmp_path.glob("new/*")} == {"a.png": (8, 8), "b.png": (8, 8)}


def test_damaged_images(run, bicubic, tmp_path, monkeypatch):
    """The others are upscaled."""
    for name in "abc":
        Image.fromarray(pixels(40, 40)).save(tmp_path / f"{name}.png")
    content = (tmp_path / "b.png").read_bytes()
    flipped = content[:2000] + bytes([content[2000] ^ 0xFF]) + content[2001:]
    for damaged in (b"hello", content[:2000], flipped):
        (tmp_path / "b.png").write_bytes(damaged)
        assert_refused(run(upscale, *bicubic, "--scale=2", "a.png", "b.png", "c.png"),
                       "b.png: cannot be read as an image", "of 3 images 2 were")
        assert sorted(p.name for p in tmp_path.glob("out/*")) == ["a.png", "c.png"]
    monkeypatch.setattr(os, "replace", mock.Mock(side_effect=OSError(28, "No space left")))
    failed = run(upscale, *bicubic, "--scale=2", "a.png", "--to=full")
    assert_refused(failed, "full/a.png: cannot be written (No space left)")
    assert not list((tmp_path / "full").iterdir())


def test_a_scan_of_more_than_179_megapixels_and_a_long_text(tmp_path, monkeypatch):
    """The scan as Pillow's header says, whose limit data.images sets; and that this limit is the one that counts."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 3_000_000, zip=True)
    Image.fromarray(pixels(2, 3)).save(tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels(2, 3))
    Image.new("1", (16000, 12000)).save(tmp_path / "scan.png")
    Image.open(tmp_path / "scan.png").close()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000_000)
    with pytest.raises(InputError, match="scan.png: cannot be read as an image .*exceeds limit"):
        read_image(tmp_path / "scan.png")


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.int32, RGB16])
def test_deep_images_are_refused(tmp_path, kind):
    if isinstance(kind, bytes):
        (tmp_path / "photo.tif").write_bytes(kind)
    else:
        Image.fromarray(np.ones((4, 5), kind)).save(tmp_path / "photo.tif")
    with pytest.raises(InputError, match=f"photo.tif: .*{'more than' if kind is np.uint16 else 'neither'} 8 bits"):
        read_image(tmp_path / "photo.tif")


def test_luma_of_known_colours():
    colours = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]
    expected = [16, 235, 81.481, 144.553, 40.966, 16 + 219 * 100 / 255]
    np.testing.assert_allclose(luma(colours), expected, rtol=1e-12)
    torch.testing.assert_close(luma(torch.tensor(colours).float()), torch.tensor(expected))
