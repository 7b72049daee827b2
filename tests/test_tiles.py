"""Tiles show no seam, and a network that does not say how far it looks gets none."""

import pytest
import torch
from torch import nn

from models import EDSR, VDSR
from models.tiles import run_tiled


def own(**reach):
    """A network of one's own that ends in a transposed convolution, as FSRCNN does."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(),
                            nn.ConvTranspose2d(8, 3, 9, stride=2, padding=4, output_padding=1))
    vars(network).update(channels=3, scales=(2,), upscaled_input=False, **reach)
    return network


@pytest.mark.parametrize("make, radius", [
    (lambda: VDSR(3, 8), 5), (lambda: EDSR(1, 8, scale=3), 6), (lambda: EDSR(1, 8, scale=4), 7), (lambda: own(reach=3), 3),
    (own, None)], ids=["VDSR", "EDSR x3", "EDSR x4", "own", "own that does not say"])
def test_tiles_leave_no_seam(make, radius):
    """As the whole image to 1e-5, of sides that no tile divides; what is beyond the reach changes nothing."""
    model = make().eval()
    assert getattr(model, "reach", None) == radius
    x, shapes = torch.rand(2, model.channels, 71, 45), []
    with torch.no_grad():
        whole = model(x)
    ratio = whole.shape[-1] // 45
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(max(inputs[0].shape[-2:])))
    result = run_tiled(model, x, largest=2 * 8 * ratio**2 * 36**2)
    assert (len(shapes) > 4 and max(shapes) <= 36) == (radius is not None)
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-5)
    shapes.clear()
    run_tiled(model, x[..., :36, :30], largest=2 * 8 * ratio**2 * 36**2)
    assert shapes == [36]
