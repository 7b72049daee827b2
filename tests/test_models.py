"""Networks and their growth; in tiles, which show no seam."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import EDSR, VDSR, Generator, build_model, half_width
from models.tiles import run_tiled


def test_parameter_counts_are_the_published_ones():
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())
    assert count(VDSR()) == 664_704
    assert count(build_model(half_width(VDSR().config))) == 18 * 32 * 32 * 9 + 2 * 32 * 9 == 166_464
    assert count(EDSR(16, 64, scale=2)) == 1_369_859
    assert count(build_model(half_width(EDSR(16, 64).config))) == 343_939
    assert count(EDSR(1, 8, scale=4)) - count(EDSR(1, 8, scale=2)) == 8 * 32 * 9 + 32  # a second upsampler


def test_vdsr_adds_the_network_to_its_input():
    model = VDSR(n_resblocks=1, n_feats=1)
    for conv, weight in ((model.head, 2.0), (model.body[0], -3.0), (model.tail, 5.0)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = weight
    x = torch.tensor([[[[0.5, -0.25]]]])
    # head 1, 0 after ReLU; body -3, 0 -> 0 after ReLU; nothing is added
    assert torch.equal(model(x), x)
    model.body[0].weight.data[0, 0, 1, 1] = 3.0  # head 1; body 3; tail 15
    assert torch.equal(model(x), torch.tensor([[[[15.5, -0.25]]]]))
    for conv, error in ((VDSR().body[3], 0.02), (VDSR().head, 0.1)):  # as initialised
        assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=error) and conv.bias is None


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_upscales_and_shifts_by_the_mean(scale):
    model = EDSR(n_resblocks=1, n_feats=4, scale=scale, res_scale=0.1)
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)
    x, (conv1, _, conv2) = torch.rand(1, 4, 6, 6), model.body[0].body
    torch.testing.assert_close(model.body[0](x), x + 0.1 * conv2(F.relu(conv1(x))))
    for parameter in model.tail.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(model(torch.rand(1, 3, 2, 2))[0, :, 0, 0], torch.tensor([0.4488, 0.4371, 0.4040]))


@pytest.mark.parametrize("arch", ["vdsr", "edsr"])
def test_growth_keeps_what_is_trained(arch):
    model = build_model({"arch": arch, "n_resblocks": 2, "n_feats": 6})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(1, model.channels, 9, 8)
    old = model(x)
    model.grow(5)
    assert model.config["n_resblocks"] == 5
    after = model.state_dict()
    moved = {"body.2.weight": "body.5.weight", "body.2.bias": "body.5.bias"} if arch == "edsr" else {}
    for name, value in before.items():
        assert torch.equal(after[moved.get(name, name)], value)
    assert (model(x) - old).abs().max() > 1e-3


def test_generator():
    generator = Generator(latent=10, size=12, channels=3)
    images = generator(torch.randn(4, 10))
    assert images.shape == (4, 3, 12, 12)
    assert 0 <= images.min() and images.max() <= 1 and images.std() > 0.1
    assert generator.head.weight.shape == (128 * 9, 10)
    norms = [module for module in generator.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert [(m.num_features, m.eps, m.affine) for m in norms] == [(128, 1e-5, True), (128, 0.8, True), (64, 0.8, True)]


def custom(**field):
    """A network of one's own that ends in a transposed convolution, as FSRCNN does."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(),
                            nn.ConvTranspose2d(8, 3, 9, stride=2, padding=4, output_padding=1))
    vars(network).update(channels=3, scales=(2,), upscaled_input=False, **field)
    return network


@pytest.mark.parametrize("make, radius", [
    (lambda: VDSR(3, 8), 5), (lambda: EDSR(1, 8, scale=3), 6), (lambda: EDSR(1, 8, scale=4), 7),
    (lambda: custom(receptive_field=7), 3), (custom, None)],
    ids=["VDSR", "EDSR x3", "EDSR x4", "custom", "custom that does not say"])
def test_tiles_leave_no_seam(make, radius):
    """As the whole image to 1e-5, of sides that no tile divides; what is beyond the receptive field changes nothing."""
    model = make().eval()
    assert getattr(model, "receptive_field", None) == (radius and 2 * radius + 1)
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


def test_tiles_of_a_network_that_looks_far_are_at_most_four_times_the_work():
    model, pixels = VDSR(18, 2), []
    model.register_forward_pre_hook(lambda _, inputs: pixels.append(inputs[0].numel()))
    run_tiled(model, torch.zeros(1, 1, 200, 200), largest=1)
    assert len(pixels) > 9 and sum(pixels) <= 4 * 200**2
