"""Tiles show no seam. How far a network of one's own looks is measured; where tiles would show, none are cut."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from models import EDSR, VDSR
from models.tiles import measure_reach, reach, run_tiled


class Own(nn.Module):
    """Some layers between a convolution and a pixel shuffle."""

    scale, channels, scales, upscaled_input = 2, 3, (2,), False

    def __init__(self, *layers, tail=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(), *layers)
        self.tail = tail or nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.tail(self.layers(x)) + interpolate(x, scale_factor=2)


class Gate(nn.Module):
    """Channel attention (RCAN); `opening`: 0 before training in some."""

    def __init__(self, opening):
        super().__init__()
        self.opening = nn.Parameter(torch.tensor([opening]))

    def forward(self, x):
        return x * (1 + self.opening * x.mean((2, 3), keepdim=True).tanh())


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def down_and_up(x):
    """By 2: it matters whether a tile begins at an odd pixel."""
    return x + interpolate(max_pool2d(x, 2, ceil_mode=True), scale_factor=2)[..., :x.shape[-2], :x.shape[-1]]


def conv(dilation=1):
    return nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation)


@pytest.mark.parametrize("make, expected", [
    (lambda: VDSR(3, 4), 5), (lambda: VDSR(18, 8), 20), (lambda: EDSR(2, 8, scale=2), 8), (lambda: EDSR(1, 8, 3), 6),
    (lambda: Own(nn.BatchNorm2d(8), conv(3)), 5), (lambda: Own(nn.Conv2d(8, 8, (1, 7), padding=(0, 3))), 5),
    (lambda: Own(*(conv() for _ in range(40))), 42),
    (lambda: Own(tail=nn.ConvTranspose2d(8, 3, 9, stride=2, padding=4, output_padding=1)), 3),  # as FSRCNN ends
    (lambda: Own(Gate(1.0)), None), (lambda: Own(Gate(0.0)), None), (lambda: Own(nn.InstanceNorm2d(8)), None),
    (lambda: Own(Layer(lambda x: x * (1 + x.detach().mean((2, 3), keepdim=True).tanh()))), None),
    (lambda: Own(*(conv(16) for _ in range(8))), None), (lambda: Own(Layer(down_and_up)), None),
    (lambda: Own(Layer(lambda x: x + torch.linspace(0, 1, x.shape[-1]))), None),
    (lambda: Own(nn.AdaptiveAvgPool2d((16, 256))), None),  # takes images of one size only
], ids=["VDSR", "deep VDSR", "EDSR", "EDSR x3", "dilated", "one axis", "deep", "transposed", "gate", "closed gate",
        "instance norm", "detached gate", "far", "U-Net", "columns", "one size"])
def test_how_far_a_network_looks_is_measured(make, expected, capsys):
    model = make().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert reach(model) == reach(model) == expected
    assert isinstance(model, Own) or measure_reach(model) == expected  # what of ours is counted
    assert capsys.readouterr().out.count("not cut into tiles") == (expected is None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("make, tiled", [
    (lambda: VDSR(3, 8), True), (lambda: EDSR(1, 8, scale=3), True), (lambda: EDSR(1, 8, scale=4), True),
    (lambda: Own(tail=nn.ConvTranspose2d(8, 3, 9, stride=2, padding=4, output_padding=1)), True),
    (lambda: Own(Gate(1.0)), False)], ids=["VDSR", "EDSR x3", "EDSR x4", "transposed", "gate"])
def test_tiles_leave_no_seam(make, tiled):
    """As the whole image to 1e-5, of sides that no tile divides."""
    model = make().eval()
    x, shapes = torch.rand(2, model.channels, 71, 45), []
    with torch.no_grad():
        whole = model(x)
    ratio = whole.shape[-1] // 45
    reach(model)
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(max(inputs[0].shape[-2:])))
    result = run_tiled(model, x, largest=2 * 8 * ratio**2 * 36**2)
    assert (len(shapes) > 4 and max(shapes) <= 36) == tiled
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-5)
    shapes.clear()
    run_tiled(model, x[..., :36, :30], largest=2 * 8 * ratio**2 * 36**2)
    assert shapes == [36]
