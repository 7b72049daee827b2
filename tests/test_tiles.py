"""Tiles of networks of one's own: how far they look is measured, and where tiles would show, none are cut."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from models import EDSR, VDSR
from models.tiles import measure_reach, reach, run_tiled


class Own(nn.Module):
    """Some layers between a convolution and a pixel shuffle."""

    scale, channels, scales, upscaled_input, looks = 2, 3, (2,), False, 2

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(), *layers)
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return self.tail(self.layers(x)) + interpolate(x, scale_factor=2)


class Gate(Own):
    """Channel attention (RCAN); `opens`: a factor that is 0 before training."""

    def __init__(self, opens=1.0, detached=False):
        super().__init__()
        self.opens, self.detached = nn.Parameter(torch.tensor([opens])), detached

    def forward(self, x):
        features = self.layers(x)
        mean = features.mean((2, 3), keepdim=True)
        return self.tail(features * (1 + self.opens * (mean.detach() if self.detached else mean).tanh()))


class UNet(Own):
    """Down by 2 and up again: it matters whether a tile begins at an odd pixel."""

    def forward(self, x):
        features = self.layers(x)
        coarse = interpolate(nn.functional.max_pool2d(features, 2, ceil_mode=True), scale_factor=2)
        return self.tail(features + coarse[..., :x.shape[-2], :x.shape[-1]])


class Transposed(Own):
    """As FSRCNN ends: 9 output pixels, of stride 2, are 2 input pixels to either side."""

    def __init__(self):
        super().__init__()
        self.tail = nn.ConvTranspose2d(8, 3, 9, stride=2, padding=4, output_padding=1)


def trained(model):
    """Batch statistics away from 0 and 1."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("make, expected", [
    (lambda: Own(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)), 3),
    (lambda: Own(nn.Conv2d(8, 8, 5, padding=6, dilation=3)), 8),
    (lambda: Own(nn.Conv2d(8, 8, (1, 7), padding=(0, 3))), 5),
    (lambda: Own(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(40))), 42),
    (Transposed, 3),
    (Gate, None), (lambda: Gate(0.0), None), (lambda: Gate(detached=True), None),
    (lambda: Own(nn.InstanceNorm2d(8)), None),
    (lambda: Own(nn.AdaptiveAvgPool2d((16, 256))), None),
    (lambda: Own(*(nn.Conv2d(8, 8, 3, padding=16, dilation=16) for _ in range(8))), None),
    (UNet, None),
], ids=["batch norm", "dilated", "one axis", "deep", "transposed", "gate", "closed gate", "detached gate",
        "instance norm", "one size", "far", "U-Net"])
def test_networks_of_ones_own_in_tiles(make, expected, capsys):
    torch.manual_seed(0)
    model = trained(make())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert reach(model) == reach(model) == expected
    assert capsys.readouterr().out.count("not cut into tiles") == (expected is None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("make", [Transposed, Gate, UNet])
def test_tiles_are_as_the_whole(make):
    torch.manual_seed(0)
    model, shapes = make().eval(), []
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[-2:]))
    x = torch.rand(1, 3, 71, 45)
    with torch.inference_mode():
        whole = model(x)
        reach(model)
        shapes.clear()
        tiled = run_tiled(model, x, largest=12 * 2**2 * 30**2)
    assert (len(shapes) > 4) == (make is Transposed)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    run_tiled(model, x[..., :30, :30], largest=12 * 2**2 * 30**2)
    assert shapes[-1] == (30, 30)


@pytest.mark.parametrize("model", [VDSR(3, 4), VDSR(18, 8), EDSR(2, 8, scale=2), EDSR(1, 8, scale=3)],
                         ids=["VDSR", "deep VDSR", "EDSR x2", "EDSR x3"])
def test_our_networks_look_as_far_as_is_counted(model):
    assert measure_reach(model) == reach(model)
