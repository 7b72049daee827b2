"""imresize against an exact rational computation and rows computed by hand."""

import math
from fractions import Fraction as F
from functools import lru_cache

import numpy as np
import pytest
import torch

import bicubic
from bicubic import imresize

SCALES = [F(2), F(3), F(4), F(1, 2), F(1, 3), F(1, 4), F(7, 10), F(137, 100), F(1)]
both_paths = pytest.mark.usefixtures("path")
both_paddings = pytest.mark.parametrize("padding", ["replicate", "symmetric"])


@pytest.fixture(params=["matrix", "taps"])
def path(request, monkeypatch):
    """Sends the short float images of a test down each path in turn."""
    monkeypatch.setattr(bicubic, "_DENSE_LENGTH", 512 if request.param == "matrix" else 0)
    bicubic._matrix.cache_clear()
    bicubic._taps.cache_clear()


def cubic(x):
    x = abs(x)
    if x <= 1:
        return (3 * x**3 - 5 * x**2 + 2) / 2
    return (-(x**3) + 5 * x**2 - 8 * x + 4) / 2 if x < 2 else F(0)


@lru_cache(maxsize=None)
def oracle_matrix(n, scale, padding="replicate"):
    """The (m, n) resizing matrix in exact fractions, one output pixel and one input pixel at a time."""
    m, shrink = math.ceil(scale * n), min(scale, F(1))
    matrix = np.full((m, n), F(0))
    for u in range(1, m + 1):
        centre = u / scale + (1 - 1 / scale) / 2
        pixels = range(math.floor(centre - 2 / shrink), math.ceil(centre + 2 / shrink) + 1)
        weights = [cubic(shrink * (centre - p)) for p in pixels]
        total = sum(weights)
        for p, weight in zip(pixels, weights):
            while padding == "symmetric" and not 1 <= p <= n:
                p = 1 - p if p < 1 else 2 * n + 1 - p
            matrix[u - 1, min(max(p, 1), n) - 1] += weight / total
    return matrix


def oracle(image, scale, padding="replicate"):
    """The float64 result for a 2-D image; the scale is a fraction."""
    a, b = (oracle_matrix(n, scale, padding).astype(float) for n in image.shape)
    return torch.from_numpy(a @ image.double().numpy() @ b.T)


def to_bytes(array):
    return np.vectorize(lambda v: min(max(math.floor(v + F(1, 2)), 0), 255), otypes=[object])(array)


def bytes_oracle(image, scale, columns_first=False, each_pass=True):
    """uint8 result, in exact fractions; each_pass=False rounds and clips only once, at the end."""
    result = image.numpy().astype(object)
    for columns in (columns_first, not columns_first):
        matrix = oracle_matrix(image.shape[columns], scale)
        result = result @ matrix.T if columns else matrix @ result
        result = to_bytes(result) if each_pass else result
    return torch.from_numpy(to_bytes(result).astype(np.uint8))


def random_image(*shape):
    return torch.from_numpy(np.random.RandomState(0).uniform(-1, 2, shape))


def assert_near(result, expected, atol=1e-12):
    torch.testing.assert_close(result, expected, rtol=0, atol=atol)


@both_paths
@both_paddings
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_equals_the_exact_computation(scale, padding):
    """The tiny images are smaller than the kernel, which then reaches beyond them several times."""
    for shape in [(11, 8), (10, 7), (9, 6), (2, 3), (1, 1), (1, 5)]:
        image = random_image(*shape)
        assert_near(imresize(image, float(scale), padding), oracle(image, scale, padding))


@both_paddings
@pytest.mark.parametrize("scale", [F(2), F(1, 3), F(7, 10)], ids=str)
@pytest.mark.parametrize("shape", [(3, 260), (260, 2), (2, 140)], ids=str)
def test_batches_of_long_images_equal_the_exact_computation(shape, scale, padding):
    bicubic._taps.cache_clear()
    images = random_image(2, 1, *shape)
    expected = torch.stack([oracle(image, scale, padding) for image in images[:, 0]])[:, None]
    assert_near(imresize(images, float(scale), padding), expected)
    assert bicubic._taps.cache_info().misses == (max(shape) * max(scale, 1) > bicubic._DENSE_LENGTH)


# Twice as large, the outputs lie 1/4 off a pixel: k(1/4), k(3/4), k(5/4), k(7/4) = 111, 29, -9, -3 / 128.
# Output 1 (centre 3/4) weighs pixels -1, 0, 1, 2 by -3, 29, 111, -9, output 2 (centre 5/4) pixels 0, 1, 2, 3
# by -9, 111, 29, -3. Half as large, the kernel is twice as wide: output 1 (centre 3/2) weighs pixels -2 .. 5
# by -3, -9, 29, 111, 111, 29, -9, -3 / 256, output 2 (centre 7/2) pixels 0 .. 7. Pixels 0, -1 are p1, p1
# (replicate) or p1, p2 (symmetric).
@both_paths
@pytest.mark.parametrize("row, scale, padding, expected, divisor", [
    ([0, 0, 1, 1], 2, "replicate", [0, -3, -9, 26, 102, 137, 131, 128], 128),
    ([0, 1, 0, 0], 2, "replicate", [-9, 29, 111, 111, 29, -9, -3, 0], 128),
    ([0, 1, 0, 0], 2, "symmetric", [-12, 29, 111, 111, 29, -9, -3, 0], 128),
    ([1, 0, 0, 0], 2, "replicate", [137, 102, 26, -9, -3, 0, 0, 0], 128),
    ([0, 0, 1, 1], 0.5, "replicate", [17, 239], 256),
    ([0, 1, 0, 0], 0.5, "replicate", [111, 29], 256),
    ([0, 1, 0, 0], 0.5, "symmetric", [102, 26], 256),
    ([1, 0, 0, 0], 0.5, "replicate", [128, -12], 256),
])
def test_rows_computed_by_hand(row, scale, padding, expected, divisor):
    image = torch.tensor(row, dtype=torch.float64).expand(3, 4)
    expected = (torch.tensor(expected, dtype=torch.float64) / divisor).expand(math.ceil(3 * scale), -1)
    assert_near(imresize(image, scale, padding), expected)
    assert_near(imresize(image.T, scale, padding), expected.T)


@pytest.mark.parametrize("scale", [F(2), F(1, 2), F(1, 3), F(1, 4)], ids=str)
def test_bytes_are_rounded_and_clipped_after_each_pass(scale):
    """First the rows, half up; one rounding at the end, or the other order, shows."""
    image = ((random_image(24, 12) > 0.5) * 255).to(torch.uint8)
    result = imresize(image, float(scale))
    assert torch.equal(result, bytes_oracle(image, scale))
    assert not torch.equal(result, bytes_oracle(image, scale, each_pass=False))
    assert not torch.equal(result, bytes_oracle(image, scale, columns_first=True))


def test_bytes_round_half_up():
    """Of a single pixel output 1 is half: 1/2 -> 1 and 5/2 -> 3, where half to even gives 0 and 2."""
    image = torch.tensor([[[1], [0], [0], [0]], [[5], [0], [0], [0]]], dtype=torch.uint8)
    assert imresize(image, 0.5).tolist() == [[[1], [0]], [[3], [0]]]


@both_paths
@pytest.mark.parametrize("scale", [2, 0.5, 0.7])
def test_gradients(scale):
    image = random_image(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale, "symmetric"), (image,))


@both_paths
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_only_the_result_is_rounded(dtype, autocast):
    """Half precision: within half a unit in the last place; autocast must not coarsen float32."""
    image = random_image(16, 12).to(dtype)
    for scale in (F(2), F(1, 3)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = imresize(image, float(scale))
        expected = oracle(image, scale)
        assert result.dtype == dtype
        half_ulps = (result.double() - expected).abs() / expected.abs().clamp(min=1) / torch.finfo(dtype).eps * 2
        assert half_ulps.max() <= (1.02 if dtype.itemsize == 2 else 16)


@both_paths
def test_weights_made_in_inference_mode_serve_training():
    image = random_image(6, 5)
    with torch.inference_mode():
        imresize(image, 0.5)
    imresize(image.requires_grad_(), 0.5).sum().backward()
    assert image.grad.sum() == pytest.approx(9)


@pytest.mark.parametrize("arguments", [
    {"scale": 0}, {"scale": -1}, {"scale": math.inf}, {"scale": math.nan}, {"scale": 2, "padding": "reflect"},
    *({"image": torch.zeros(shape), "scale": 2} for shape in ((5,), (0, 4), (1, 4, 0))),
    *({"image": torch.zeros(4, 4, dtype=dtype), "scale": 2} for dtype in (torch.int64, torch.bool)),
], ids=str)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises((ValueError, TypeError), match="imresize:"):
        imresize(**{"image": torch.zeros(4, 4)} | arguments)
