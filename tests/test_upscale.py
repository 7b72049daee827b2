"""Upscaling images by a student: colours, alpha, depth and orientation, tiles without seams, the PNG written."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage.color import rgb2ycbcr, ycbcr2rgb
from torch import nn

from bicubic import imresize
from tools.upscale import encode_png, read_original, upright, upscale_bands, upscale_tile
from models import EDSR, VDSR
from tests.helpers import SRGB, bicubic_network, pixels, resized
from utils import InputError


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


def whole(bands):
    return np.concatenate(list(bands))


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
