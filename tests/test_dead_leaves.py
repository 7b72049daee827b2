"""Dead leaves: shapes, sizes, textures, and the source made of them."""

import math

import numpy as np
import pytest
import torch

from bicubic import imresize
from data import dead_leaves as leaves
from data.dead_leaves import coverage, dead_leaves, leaf_sizes, paint_over
from data.sources import dead_leaves_source, lr_size, network_input
from models import EDSR, VDSR
from utils import random_stream


def cover(first, second, size=32):
    """Coverage (size, size) of one leaf; a conic is (x, y, angle, half_u, half_v, width)."""
    conics = torch.tensor([first, second])[:, None, None]
    return coverage(*conics.unbind(-1), size)[0, 0]


def disc(radius, x=0.3, y=-0.6, width=1.0):
    return (x, y, 0.0, radius, radius, width)


def strip(half, angle=0.0, x=0.0, y=0.0, width=1.0):
    return (x, y, angle, half, math.inf, width)


@pytest.mark.parametrize("angle", [0.4, 1.5])
def test_areas_centres_and_directions(angle):
    """An ellipse's direction is from the rows towards the columns (y points down)."""
    square, ellipse, wide = angle + math.pi / 2, (0.3, -0.6, angle, 9.0, 5.0, 1.0), disc(7.3, width=4.0)
    # Coverage of a strip so thin falls as 1/2 + (1 - d^2) / 2 to 0 at d = sqrt(2), integral 2/3 sqrt(8): a little faint
    for first, second, area in (
        (ellipse, ellipse, math.pi * 45), (disc(1.5), disc(1.5), math.pi * 1.5**2), (wide, wide, math.pi * 7.3**2),
        (strip(8.0, angle), strip(3.0, square), 16 * 6), (strip(12.0, angle), strip(1.0, square), 24 * 2 / 3 * 8**0.5),
        (strip(8.0, angle), strip(3.0, square - math.pi / 6), 16 * 6 / math.sin(math.pi / 3)),
    ):
        assert cover(first, second).sum().item() == pytest.approx(area, rel=0.02)
    covered, pixel = cover(ellipse, ellipse), torch.arange(32) - 15.5
    assert (covered.sum(dim=0) @ pixel / covered.sum()).item() == pytest.approx(0.3, abs=0.05)  # x goes along a row
    assert (covered.sum(dim=1) @ pixel / covered.sum()).item() == pytest.approx(-0.6, abs=0.05)
    row, column = pixel[:, None] + 0.6, pixel - 0.3
    direction = 0.5 * math.atan2((2 * row * column * covered).sum(), ((column**2 - row**2) * covered).sum())
    assert direction == pytest.approx(angle, abs=0.02)


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_an_edge_is_a_ramp_of_its_width(width):
    """A strip from x = -200 to 0: pixels centred at -2.5, -1.5, ... are covered by 1/2 - x / width."""
    wide = strip(100.0, x=-100.0, width=width)
    expected = torch.tensor([0.5 - x / width for x in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)]).clamp(0, 1)
    torch.testing.assert_close(cover(wide, wide, size=6), expected.expand(6, 6), atol=0.01, rtol=0)
    # A negative width is the outside: here of a hole in a disc, at 0, 3, 6, 7 and 11 from their centre.
    ring = cover(disc(8.0, 0.0, 0.0), disc(5.0, 0.0, 0.0, width=-1.0), size=33)
    assert ring.sum().item() == pytest.approx(math.pi * (64 - 25), rel=0.01)
    assert ring[16, [16, 13, 22, 23, 27]].tolist() == [0, 0, 1, 1, 0]
    # A leaf hides those behind it: 0.9 over all; 0.5 over the background; half of 0.9 over half of 0.5 over 0.1; 0.1.
    paint = torch.tensor([0.1, 0.5, 0.9])[None, :, None, None, None].expand(1, 3, 1, 1, 4)
    covered = torch.tensor([[1.0, 1.0, 0.5, 0.0], [1.0, 0.0, 0.5, 0.0]])[None, :, None]
    torch.testing.assert_close(paint_over(paint, covered)[0, 0, 0], torch.tensor([0.9, 0.5, 0.6, 0.1]))


def test_every_kind_of_leaf_is_what_it_is_called(monkeypatch):
    def drawn(*kinds):
        """Leaves of one kind: the two rows of each of x, y, angle, half_u, half_v and width."""
        monkeypatch.setattr(leaves, "KINDS", kinds)
        return leaves.shapes(50, 48, random_stream(1), "cpu")

    x, y, angle, half, half_v, width = drawn(1, 1, 1)  # ellipses, cut beside their centre
    assert (half_v[0] < half[0]).all() and (half_v[0] >= half[0] / 4).all() and half_v[1].isinf().all()
    between = torch.hypot(x[1] - x[0], y[1] - y[0])
    assert (between < half[1]).all() and between.max() > 5
    assert (x[0].abs() <= 24 + half[0]).all() and 1.5 <= half[0].min() and half[0].max() <= 48  # they meet the image
    x, y, angle, half, half_v, width = drawn(0, 1, 1)  # parallelograms, up to 29 degrees from square
    assert half_v.isinf().all() and torch.equal(x[0], x[1]) and torch.equal(y[0], y[1])
    turned = angle[1] - angle[0] - math.pi / 2
    assert -0.5 <= turned.min() < -0.4 and 0.4 < turned.max() <= 0.5
    x, y, angle, half, half_v, width = drawn(0, 0, 1)  # lines, 1 to 3 pixels wide
    assert half_v.isinf().all() and 0.5 <= half[1].min() and half[1].max() <= 1.5 and half[0].min() >= 4.5
    torch.testing.assert_close(angle[1] - angle[0], torch.full_like(angle[0], math.pi / 2))
    x, y, angle, half, half_v, width = drawn(0, 0, 0)  # discs with a hole that lies within
    assert torch.equal(half, half_v) and (torch.hypot(x[1] - x[0], y[1] - y[0]) + half[1] <= half[0] + 1e-4).all()
    assert torch.equal(width[0], -width[1]) and 1 <= width[0].min() and 3 < width[0].max() <= 4


def test_sizes_are_those_a_plane_of_leaves_shows_the_image():
    """Against a plane: radii by r^-3, centres anywhere; those in the image widened by r count."""
    least, most, size = 2.0, 24.0, 48
    random = np.random.default_rng(0)
    radius = (least**-2 - random.random(400_000) * (least**-2 - most**-2)) ** -0.5
    centre = (random.random((2, len(radius))) - 0.5) * (size + 2 * most)
    expected = radius[(np.abs(centre) < size / 2 + radius).all(axis=0)]
    pick, uniform = torch.rand(2, 100_000, generator=random_stream(1), dtype=torch.float64)
    sizes = leaf_sizes(pick, uniform, torch.tensor(least, dtype=torch.float64), most, size)
    assert least <= sizes.min() and sizes.max() <= most
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9, 0.97]
    np.testing.assert_allclose(np.quantile(sizes, quantiles), np.quantile(expected, quantiles), rtol=0.02)


def spectrum_slope(images):
    """Exponent s of power ~ f^s, over the frequencies from 2 cycles a side to 0.4 a pixel."""
    size = images.shape[-1]
    window = torch.hann_window(size, periodic=False)
    images = (images - images.mean(dim=(-2, -1), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(images).abs().square().mean(dim=(0, 1))
    f = torch.fft.fftfreq(size) * size
    ring = (f**2 + f[:, None] ** 2).sqrt().round()
    rings = range(2, int(0.4 * size))
    return np.polyfit(np.log(rings), [math.log(power[ring == k].mean()) for k in rings], 1)[0]


@pytest.mark.parametrize("slope", [0.5, 1.5])
def test_textures_have_the_slope_and_period_asked_for(slope, monkeypatch):
    monkeypatch.setattr(leaves, "SLOPE", (slope, slope))
    fields = leaves.noise(200, 48, random_stream(1), "cpu")
    assert fields.shape == (200, 2, 48, 48) and fields.mean(dim=(-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(fields.square().mean(dim=(-2, -1)), torch.ones(200, 2))
    assert spectrum_slope(fields) == pytest.approx(-2 * slope, abs=0.3)
    monkeypatch.setattr(leaves, "PERIOD", (8.0, 8.0))
    fields = leaves.patterns(50, 64, random_stream(1), "cpu")
    stripes, lows, highs = fields[:, 0], fields.amin(dim=(0, 2, 3)), fields.amax(dim=(0, 2, 3))
    assert (-1 <= lows).all() and (lows < -0.9).all() and (0.9 < highs).all() and (highs <= 1).all()
    peak = torch.fft.fft2(stripes - stripes.mean(dim=(-2, -1), keepdim=True)).abs().flatten(1).argmax(dim=1)
    f = torch.fft.fftfreq(64)
    frequency = (f[peak // 64] ** 2 + f[peak % 64] ** 2).sqrt()
    assert (frequency - 1 / 8).abs().max() < 1 / 64
    assert f[peak % 64].std() > 0.05  # in many directions


@pytest.mark.parametrize("channels, low, high", [(1, 16 / 255, 235 / 255), (3, 0, 1)])
def test_images_are_varied_and_in_range(channels, low, high):
    images = dead_leaves(128, 48, channels, random_stream(1), "cpu")
    assert images.shape == (128, channels, 48, 48) and images.dtype == torch.float32
    assert images.min().item() == pytest.approx(low, abs=0.01) and images.min() >= low
    assert images.max().item() == pytest.approx(high, abs=0.01) and images.max() <= high + 1e-6
    brightness, contrast = images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))
    assert brightness.std() > 0.1 and contrast.min() < 0.04 and contrast.max() > 0.2
    if channels == 3:  # as in photographs, most of the variation is of the grey
        alike = np.corrcoef(images.movedim(1, 0).flatten(1))
        assert all(0.85 < alike[i, i - 1] < 0.98 for i in range(3))
    else:  # about f^-2; the training photographs' patches of this size have an exponent of -2.5
        assert -2.9 < spectrum_slope(images) < -2.0
    # The meta device has shapes but no values: an .item(), a mask or a nonzero() would fail there.
    assert dead_leaves(2, 48, channels, None, "meta").shape == (2, channels, 48, 48)


@pytest.mark.parametrize("model", [VDSR(1, 2), *(EDSR(1, 2, scale) for scale in (2, 3, 4))])
def test_source_degrades_as_photographs_are(model):
    """Dead leaves of HR size, of a stream named by seed and step, reduced; enlarged for networks that want that."""
    draw = dead_leaves_source(48, model.channels, model.upscaled_input, 1)
    for scale in model.scales:
        lr = lr_size(48, scale)
        hr = dead_leaves(3, lr * scale, model.channels, random_stream(1, "dead leaves", 7), "cpu")
        expected = network_input(imresize(hr, 1 / scale).clamp(0, 1), scale, model.upscaled_input)
        assert torch.equal(draw(scale, 7, 3), expected) and not torch.equal(draw(scale, 8, 3), expected)
        assert expected.shape[-1] == (lr * scale if model.upscaled_input else lr)
