"""distillation.py --images: colours, alpha, depth and orientation, tiles without seams, names, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from skimage.color import rgb2ycbcr, ycbcr2rgb
from torch import nn

import distillation
from bicubic import imresize
from data.upscale import encode_png, read_original, upright, upscale_bands, upscale_tile
from models import EDSR, VDSR
from tests.helpers import assert_refused
from utils import InputError, save_model

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NEAREST = """
from torch import nn

def student():
    network = nn.Upsample(scale_factor=2)
    network.scale, network.channels = 2, 3
    return network
"""


class Nearest(nn.Module):
    """A network that repeats every pixel."""

    upscaled_input = False

    def __init__(self, scale, channels):
        super().__init__()
        self.scales, self.channels = (scale,), channels

    def forward(self, x):
        return x.repeat_interleave(self.scales[0], -2).repeat_interleave(self.scales[0], -1)


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are too small to share. The networks' weights are the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def bicubic_network():
    """A VDSR that adds nothing to its input."""
    model = VDSR(1, 2)
    model.tail.weight.data.zero_()
    return model


@pytest.fixture
def bicubic(tmp_path):
    """Flags of the script for that network; what is upscaled goes to out/."""
    save_model(bicubic_network(), tmp_path / "s.pth")
    return ("--test_only", "--student=s.pth", "--save_images=out", "--device=cpu", "--threads=1")


def pixels(rows, columns, channels=3, dtype=np.uint8):
    """Noise (rows, columns, channels) of that type."""
    noise = np.random.default_rng(rows)
    return noise.integers(0, np.iinfo(dtype).max, (rows, columns, channels), dtype=dtype, endpoint=True)


def whole(bands):
    return np.concatenate(list(bands))


def resized(image, scale):
    """An array (H, W, C) by bicubic, as 8 bits."""
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    return imresize(planes, scale).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


# ---- colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", [VDSR, Nearest])
def test_luma_is_by_the_network_and_chroma_by_bicubic(make, scale):
    """As by scikit-image's YCbCr and back."""
    model = VDSR(1, 4) if make is VDSR else Nearest(scale, 1)
    rgb = torch.rand(3, 7, 9)
    ycbcr = torch.from_numpy(rgb2ycbcr(rgb.numpy(), channel_axis=0)).float()
    expected = imresize(ycbcr, scale)
    x = expected[:1] if model.upscaled_input else ycbcr[:1]
    expected[:1] = 255 * model(x[None] / 255)[0].detach()
    result = upscale_tile(model, rgb, scale)
    np.testing.assert_allclose(result, ycbcr2rgb(expected.double().numpy(), channel_axis=0), atol=2e-6)
    assert (result - imresize(rgb, scale)).abs().max() > 0.05


def test_a_network_on_rgb_gives_all_colours():
    image = pixels(5, 6)
    result = whole(upscale_bands(Nearest(3, 3), image, 3, "cpu"))
    np.testing.assert_array_equal(result, image.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("model", [bicubic_network(), Nearest(2, 3), Nearest(2, 1)], ids=["luma", "rgb", "own luma"])
@pytest.mark.parametrize("colour", [(0,), (77,), (255,), (30000,), (65535,), (255, 0, 0), (0, 255, 17, 99), (3, 200)])
def test_a_constant_colour_stays(model, colour):
    image = np.full((4, 5, len(colour)), colour, np.uint16 if max(colour) > 255 else np.uint8)
    result = whole(upscale_bands(model, image, 2, "cpu"))
    np.testing.assert_array_equal(result, np.full((8, 10, len(colour)), colour))
    assert result.dtype == image.dtype


@pytest.mark.parametrize("make", [VDSR, EDSR])
def test_grey_is_upscaled_like_equal_colours_and_alpha_by_bicubic(make):
    model = make(1, 4)
    model.tail.apply(lambda module: isinstance(module, nn.Conv2d) and module.weight.data.mul_(0.3))
    image = pixels(9, 8, 2) // 2 + 64
    result = whole(upscale_bands(model, image, 2, "cpu")).astype(float)
    np.testing.assert_array_equal(result[..., 1:], resized(image[..., 1:], 2))
    colours = whole(upscale_bands(model, image[..., [0, 0, 0, 1]], 2, "cpu")).astype(float)
    np.testing.assert_array_equal(colours[..., 3], result[..., 1])
    grey = colours[..., :3] @ [65.481, 128.553, 24.966] / 219
    saturated = ((colours == 0) | (colours == 255)).any(axis=-1)
    assert np.abs(grey - result[..., 0])[~saturated].max() < 1.01 and saturated.mean() < 0.7


def test_self_ensemble_upscales_the_eight_flips_and_turns():
    model, image = EDSR(1, 4), torch.rand(3, 6, 5)
    expected = sum(upscale_tile(model, image.rot90(k, (1, 2)).flip(f), 2).flip(f).rot90(-k, (1, 2))
                   for k in range(4) for f in ((), (2,))) / 8
    torch.testing.assert_close(upscale_tile(model, image, 2, ensemble=True), expected, atol=2e-6, rtol=0)
    assert (upscale_tile(model, image, 2) - expected).abs().max() > 1e-3


# ---- tiles -----------------------------------------------------------------------------------------


def far_reaching(model):
    """The network with weights by which the borders of its receptive field count: near those of a mean."""
    torch.manual_seed(0)
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        conv.weight.data = (1 + torch.randn_like(conv.weight)) / (9 * conv.in_channels)
    return model


@pytest.mark.parametrize("make, scale", [(VDSR, 2), (VDSR, 3), (VDSR, 4), (EDSR, 2), (EDSR, 3), (EDSR, 4)])
def test_tiles_show_no_seam(make, scale):
    """In 16 bits, of which one level is 1.5e-5 of the range."""
    model = far_reaching(VDSR(2, 4) if make is VDSR else EDSR(1, 4, scale=scale))
    image = pixels(41, 59, 3, np.uint16) // 4 + (10000 if make is VDSR else 30000)
    sizes = []
    bands = list(upscale_bands(model, image, scale, "cpu", largest=1, progress=sizes.append))
    assert len(bands) > 3 and len(sizes) > 3 * len(bands) and sum(sizes) == 41 * 59
    expected, = upscale_bands(model, image, scale, "cpu")
    assert expected.std() > 100 and ((expected > 0) & (expected < 65535)).mean() > 0.5
    assert np.abs(np.concatenate(bands).astype(int) - expected).max() <= 1


def test_what_of_a_large_image_is_held_at_a_time():
    """A band: of floats and of bytes a small part of the upscaled image."""
    bands = upscale_bands(Nearest(4, 3), pixels(200, 40), 4, "cpu", largest=3000)
    sizes = [band.nbytes for band in bands]
    assert sum(sizes) == 200 * 40 * 16 * 3 and max(sizes) < sum(sizes) / 20


# ---- PNG -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, dtype, mode", [
    (1, np.uint8, "L"), (2, np.uint8, "LA"), (3, np.uint8, "RGB"), (4, np.uint8, "RGBA"), (1, np.uint16, "I;16"),
])
@pytest.mark.parametrize("rows, columns", [(7, 5), (1, 1)])
def test_the_encoded_png_holds_the_pixels(channels, dtype, mode, rows, columns):
    image = pixels(rows, columns, channels, dtype)
    bands = np.split(image, [min(2, rows), min(3, rows)])
    content = encode_png((band for band in bands if len(band)), rows, columns, channels, 8 * image.itemsize, SRGB)
    with Image.open(io.BytesIO(content)) as decoded:
        decoded.load()
        assert decoded.mode in (mode, {"I;16": "I"}.get(mode)) and decoded.info["icc_profile"] == SRGB
        np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)


# ---- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_orientation_is_carried_out(tmp_path, suffix):
    """As Pillow does it."""
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.fromarray(pixels(4, 6)).save(tmp_path / f"a.{suffix}", exif=exif)
        with Image.open(tmp_path / f"a.{suffix}") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert expected.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
        np.testing.assert_array_equal(read_original(tmp_path / f"a.{suffix}")[0], expected)


def test_orientations_by_hand():
    """Of a 1 in the upper left corner of two rows and three columns (EXIF 2.3, table of Orientation)."""
    image = np.array([[1, 2, 3], [4, 5, 6]])[..., None]
    by_hand = {1: [[1, 2, 3], [4, 5, 6]], 2: [[3, 2, 1], [6, 5, 4]], 3: [[6, 5, 4], [3, 2, 1]],
               4: [[4, 5, 6], [1, 2, 3]], 5: [[1, 4], [2, 5], [3, 6]], 6: [[4, 1], [5, 2], [6, 3]],
               7: [[6, 3], [5, 2], [4, 1]], 8: [[3, 6], [2, 5], [1, 4]], None: [[1, 2, 3], [4, 5, 6]]}
    for orientation, expected in by_hand.items():
        assert upright(image, orientation)[..., 0].tolist() == expected


@pytest.mark.parametrize("suffix, dtype, words", [
    ("png", np.uint16, "16 bits a channel"), ("tif", np.float32, "floating-point"), ("tif", np.int32, "32-bit"),
])
def test_deeper_images_are_refused(tmp_path, suffix, dtype, words):
    path = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        path.write_bytes(encode_png([pixels(4, 5, 3, dtype)], 4, 5, 3, 16))
    else:
        Image.fromarray(np.ones((4, 5), dtype)).save(path)
    with pytest.raises(InputError, match=f"deep.{suffix}: has .*{words}"):
        read_original(path)


# ---- the script ------------------------------------------------------------------------------------


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
