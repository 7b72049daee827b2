"""Upscaling images by a student: colours, alpha, depth, tiles without seams, memory."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr, ycbcr2rgb
from torch import nn

from bicubic import imresize
from models import EDSR, VDSR
from tests.helpers import bicubic_network, pixels, resized
from tools.upscale import upscale_image, upscale_pixels


class Nearest(nn.Module):
    """A network that repeats every pixel."""

    upscaled_input, receptive_field = False, 1

    def __init__(self, scale, channels):
        super().__init__()
        self.scales, self.channels = (scale,), channels

    def forward(self, x):
        return x.repeat_interleave(self.scales[0], -2).repeat_interleave(self.scales[0], -1)


def upscaled(model, image, scale):
    return np.asarray(upscale_image(model, Image.fromarray(image), scale, "cpu"))


@pytest.fixture
def tiles(monkeypatch):
    """The shapes of the tiles, with what is around them, that go through the network."""
    shapes = []
    monkeypatch.setattr("tools.upscale.upscale_pixels", lambda model, pixels, *rest: (
        shapes.append(pixels.shape) or upscale_pixels(model, pixels, *rest)))
    return shapes


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", [VDSR, Nearest])
def test_luma_is_by_the_network_and_chroma_by_bicubic(make, scale):
    model = VDSR(1, 4) if make is VDSR else Nearest(scale, 1)
    rgb = torch.rand(3, 7, 9)
    ycbcr = torch.from_numpy(rgb2ycbcr(rgb.numpy(), channel_axis=0)).float()
    expected = imresize(ycbcr, scale)
    x = expected[:1] if model.upscaled_input else ycbcr[:1]
    expected[:1] = 255 * model(x[None] / 255)[0].detach()
    result = upscale_pixels(model, rgb, scale)
    np.testing.assert_allclose(result, ycbcr2rgb(expected.double().numpy(), channel_axis=0), atol=2e-6)
    assert (result - imresize(rgb, scale)).abs().max() > 0.05


@pytest.mark.parametrize("make", [VDSR, EDSR])
def test_grey_is_upscaled_like_equal_colours_and_alpha_by_bicubic(make):
    model = make(1, 4)
    model.tail.apply(lambda module: isinstance(module, nn.Conv2d) and module.weight.data.mul_(0.3))
    image = pixels(9, 8, 2) // 2 + 64
    result = upscaled(model, image, 2).astype(float)
    np.testing.assert_array_equal(result[..., 1:], resized(image[..., 1:], 2))
    colours = upscaled(model, image[..., [0, 0, 0, 1]], 2).astype(float)
    np.testing.assert_array_equal(colours[..., 3], result[..., 1])
    grey = colours[..., :3] @ [65.481, 128.553, 24.966] / 219
    saturated = ((colours == 0) | (colours == 255)).any(axis=-1)
    assert np.abs(grey - result[..., 0])[~saturated].max() < 1.01 and saturated.mean() < 0.7


@pytest.mark.parametrize("model", [VDSR(2, 4), EDSR(1, 4), Nearest(2, 1)], ids=["luma", "rgb", "own luma"])
def test_colours_under_alpha_0_show_nowhere(model):
    """A disc on black and on white; with bicubic alone it stays white where anything of it shows."""
    black = np.zeros((32, 40, 4), np.uint8)
    black[..., 3] = np.clip((12 - np.hypot(*np.ogrid[-16:16, -16:24])) * 128, 0, 255)
    black[black[..., 3] > 0, :3] = 255
    white = black.copy()
    white[..., :3] = 255
    result, expected = upscaled(model, black, 2), upscaled(model, white, 2)
    np.testing.assert_array_equal(result[result[..., 3] > 0], expected[result[..., 3] > 0])
    assert (upscaled(bicubic_network(), black, 2)[..., :3][result[..., 3] > 0] == 255).all()
    rgb, alpha = torch.rand(3, 9, 8), torch.rand(1, 9, 8) / 2 + 0.25  # bicubic weights colours by alpha
    expected = torch.cat(((imresize(rgb * alpha, 2) / imresize(alpha, 2)).clamp(0, 1), imresize(alpha, 2)))
    result = upscale_pixels(bicubic_network(), torch.cat((rgb, alpha)), 2)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


def test_self_ensemble_upscales_the_eight_flips_and_turns():
    model, image = EDSR(1, 4), torch.rand(3, 6, 5)
    expected = sum(upscale_pixels(model, image.rot90(k, (1, 2)).flip(f), 2).flip(f).rot90(-k, (1, 2))
                   for k in range(4) for f in ((), (2,))) / 8
    torch.testing.assert_close(upscale_pixels(model, image, 2, ensemble=True), expected, atol=2e-6, rtol=0)
    assert (upscale_pixels(model, image, 2) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("make, scale", [(VDSR, 2), (VDSR, 3), (VDSR, 4), (EDSR, 2), (EDSR, 3), (EDSR, 4)])
def test_tiles_show_no_seam(monkeypatch, tiles, make, scale):
    """With weights near those of a mean, by which the borders of the receptive field count; in 16 bits."""
    model = VDSR(2, 4) if make is VDSR else EDSR(1, 4, scale=scale)
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        conv.weight.data = (1 + torch.randn_like(conv.weight)) / (9 * conv.in_channels)
    image = pixels(59, 41, 1, np.uint16)[..., 0] // 4 + (10000 if make is VDSR else 30000)
    expected = upscaled(model, image, scale)
    assert expected.std() > 100 and ((expected > 0) & (expected < 65535)).mean() > 0.5
    monkeypatch.setattr("tools.upscale._TILE", 1)
    assert np.abs(upscaled(model, image, scale).astype(int) - expected).max() <= 1 and len(tiles) > 4


def test_how_large_tiles_are(monkeypatch, tiles):
    """Those of a clear image show no seam either; there is but one where the network has no receptive_field."""
    image = pixels(200, 90, 4)
    image[20:180, :, 3] = 0
    expected = upscaled(Nearest(4, 3), image, 4)
    monkeypatch.setattr("tools.upscale._TILE", 80**2)
    np.testing.assert_array_equal(upscaled(Nearest(4, 3), image, 4), expected)
    tiles.clear()
    upscaled(Nearest(4, 3), image[..., :3], 4)
    assert len(tiles) == 13 * 6 and all(max(rows, columns) <= 20 for _, rows, columns in tiles)
    monkeypatch.setattr(Nearest, "receptive_field", 41)
    tiles.clear()
    upscaled(Nearest(4, 3), image[..., :3], 4)
    assert len(tiles) == 5 * 3 and sum(rows * columns for _, rows, columns in tiles) <= 4 * 200 * 90
    monkeypatch.delattr(Nearest, "receptive_field")
    tiles.clear()
    upscaled(Nearest(4, 3), image, 4)
    assert tiles == [(4, 200, 90)]
