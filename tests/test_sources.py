"""Noise, real images, the images a student starts from, and the bank. Dead leaves: test_dead_leaves.py."""

import pytest
import torch

from bicubic import imresize
from data.images import list_images
from data.sources import Bank, folder_source, lr_size, network_input, noise_source, start_images
from utils import random_stream


@pytest.mark.parametrize("scale, size", [(2, 24), (3, 16), (4, 12)])
def test_noise_is_the_input_itself_or_reduced_to_it(images, scale, size):
    """And a folder's images are reduced as real ones."""
    assert lr_size(48, scale) == size
    large = network_input(torch.rand(1, 1, size, size), scale, True)
    x = torch.rand(2, 3, 48, 48, generator=random_stream(1, "noise", 7))
    draw, draw_small = (noise_source("uniform", 48, 3, upscaled, 1) for upscaled in (True, False))
    assert torch.equal(x, draw(scale, 7, 2)) and not torch.equal(x, draw(scale, 8, 2))
    torch.testing.assert_close(draw_small(scale, 7, 2), imresize(x, 1 / scale).clamp(0, 1))
    normal, small = (noise_source("normal", 48, 1, upscaled, 1)(scale, 7, 4) for upscaled in (True, False))
    assert normal.mean() == pytest.approx(0.5, abs=0.02) == small.mean()
    assert normal.std() == pytest.approx(0.241, abs=0.02)  # 0.25, less the clipped tails
    for x, shape in ((large, (1, 1, 48, 48)), (normal, (4, 1, 48, 48)), (small, (4, 1, size, size))):
        assert x.shape == shape and 0 <= x.min() and x.max() <= 1
    for channels, upscaled, side in ((1, True, 48), (3, False, size)):
        draw = folder_source(list_images(images / "train291"), (2, 3, 4), 48, channels, upscaled, 1)
        x = draw(scale, 0, 2)
        assert x.shape == (2, channels, side, side) and x.std() > 0.05
        assert torch.equal(x, draw(scale, 0, 2)) and not torch.equal(x, draw(scale, 1, 2))


def test_a_student_starts_from_images_of_every_scale():
    """Cut to the smallest, where scales differ in size: 40, 36 and 32 of 41."""
    x, same, other = (start_images((2, 3, 4), 41, 1, True, seed) for seed in (1, 1, 2))
    assert x.shape == (256, 1, 32, 32) and torch.equal(x, same) and not torch.equal(x, other)
    detail = [part.diff(dim=-1).abs().mean().item() for part in (x[:128], x[128:192], x[192:])]
    assert detail[0] > detail[1] > detail[2]  # blurred the more the larger the scale
    assert start_images((3,), 48, 3, False, 1, count=16).shape == (16, 3, 16, 16)


class Numbered:
    """A source whose images say their number, 0, 1, ... (plus 1000 times the scale), and labels twice that."""

    def __init__(self, *sizes):
        self.sizes, self.drawn, self.labelled = dict(zip((2, 3, 4), sizes)), [], 0

    def draw(self, scale, step, count):
        self.drawn.append((scale, step))
        numbers = 1000.0 * scale + torch.arange(count) + step * count
        return numbers[:, None, None, None].expand(-1, 1, self.sizes[scale], self.sizes[scale])

    def label(self, x):
        self.labelled += len(x)
        return 2 * x

    def bank(self, steps=1000, seed=1, size=192):
        return Bank(self.draw, self.label, tuple(self.sizes), size, steps, seed)


def numbers(bank, steps, count=8):
    """The images in those batches."""
    batches = [bank.batch(step, count) for step in steps]
    assert all(torch.equal(2 * x, target) and len(x) == count for x, target in batches)
    return [x[:, 0, 0, 0].tolist() for x, _ in batches]


@pytest.mark.parametrize("count", [8, 40, 192, 250])
def test_a_bank_gives_each_image_once_a_pass(count):
    source = Numbered(8, 8, 8)
    seen = sum(numbers(source.bank(), range(24), count), [])
    everything = sorted(1000 * scale + 32 * step + i for scale, step in source.drawn for i in range(32))
    assert source.labelled == 192 and [scale for scale, _ in source.drawn] == [2, 3, 4] * 2
    passes = [seen[start:start + 192] for start in range(0, len(seen) - 191, 192)]
    assert all(sorted(one) == everything for one in passes) and len(set(map(tuple, passes))) == len(passes) > 0
    assert len({number // 1000 for number in seen[:8]}) > 1  # scales are mixed in a batch
    # At --input_size 41, say, sizes differ, and scales take turns.
    batches = numbers(Numbered(40, 36, 32).bank(), range(24))
    assert [{number // 1000 for number in batch} for batch in batches] == [{2}, {3}, {4}] * 8
    assert all(len(set(sum(batches[scale::3], []))) == 64 for scale in range(3))
    small = Numbered(8, 8, 8)
    numbers(small.bank(size=1), [0])
    assert [scale for scale, _ in small.drawn] == [2, 3, 4]  # each is there in a small one, too


def test_a_banks_batch_depends_on_seed_and_step_alone():
    """So a resumed run goes on with the same, in whatever pass or bank it stopped."""
    whole = numbers(Numbered(8, 8, 8).bank(30), range(62))
    for step in (0, 5, 23, 24, 30, 47, 61):
        assert numbers(Numbered(8, 8, 8).bank(30), [step]) == [whole[step]]
    assert numbers(Numbered(8, 8, 8).bank(30, seed=2), range(62)) != whole


def test_a_bank_grows_until_the_oldest_images_go(monkeypatch):
    """By whole chunks; none is drawn again but where a run is resumed, and then those still there alone."""
    monkeypatch.setattr(Bank, "MOST", 130)
    source, resumed = Numbered(8), Numbered(8)
    bank = source.bank(steps=16, size=40)
    for number in range(3):
        seen = sum(numbers(bank, range(16 * number, 16 * number + 16)), [])
        assert source.drawn == [(2, step) for step in range(2 * number + 2)]
        images = range(2000 + 64 * max(number - 1, 0), 2064 + 64 * number)
        assert sorted(seen) == sorted([*images] * (128 // len(images)))
    assert numbers(resumed.bank(steps=16, size=40), [47])[0] == seen[-8:]
    assert resumed.drawn == [(2, step) for step in range(2, 6)]
