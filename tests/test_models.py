"""Networks, their growth, and reading checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from models import EDSR, VDSR, Generator, build_model, half_width
from models.tiles import reach, run_tiled, self_ensemble


def count(model):
    return sum(p.numel() for p in model.parameters())


def tiny(arch):
    torch.manual_seed(1)
    return build_model({"arch": arch, "n_resblocks": 2, "n_feats": 6})


def test_parameter_counts_are_the_published_ones():
    assert count(VDSR()) == 664_704
    assert count(build_model(half_width(VDSR().config))) == 18 * 32 * 32 * 9 + 2 * 32 * 9 == 166_464
    assert count(EDSR(16, 64, scale=2)) == 1_369_859
    assert count(build_model(half_width(EDSR(16, 64).config))) == 343_939
    assert count(EDSR(1, 8, scale=4)) - count(EDSR(1, 8, scale=2)) == 8 * 32 * 9 + 32  # a second upsampler


def test_vdsr_adds_the_network_to_its_input():
    model = VDSR(n_resblocks=1, n_feats=1)
    for conv, weight in ((model.head, 2.0), (model.body[0], -3.0), (model.tail, 5.0)):
        torch.nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = weight
    x = torch.tensor([[[[0.5, -0.25]]]])
    # head 1, 0 after ReLU; body -3, 0 -> 0 after ReLU; nothing is added
    assert torch.equal(model(x), x)
    model.body[0].weight.data[0, 0, 1, 1] = 3.0  # head 1; body 3; tail 15
    assert torch.equal(model(x), torch.tensor([[[[15.5, -0.25]]]]))


def test_vdsr_initial_weights():
    torch.manual_seed(0)
    model = VDSR()
    assert model.body[3].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert all("bias" not in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_upscales_and_shifts_by_the_mean(scale):
    model = EDSR(n_resblocks=1, n_feats=4, scale=scale)
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)
    for parameter in model.tail.parameters():
        torch.nn.init.zeros_(parameter)
    mean = torch.tensor([0.4488, 0.4371, 0.4040])
    torch.testing.assert_close(model(torch.rand(1, 3, 2, 2))[0, :, 0, 0], mean)


def test_edsr_residual_scale():
    torch.manual_seed(0)
    model = EDSR(n_resblocks=1, n_feats=4, res_scale=0.1)
    x = torch.rand(1, 4, 6, 6)
    conv1, _, conv2 = model.body[0].body
    torch.testing.assert_close(model.body[0](x), x + 0.1 * conv2(F.relu(conv1(x))))


@pytest.mark.parametrize("arch", ["vdsr", "edsr"])
@pytest.mark.parametrize("init", ["random", "identity"])
def test_growth_keeps_what_is_trained(arch, init):
    model = tiny(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(1, model.channels, 9, 8)
    old = model(x)
    model.grow(5, init)
    assert model.config["n_resblocks"] == 5
    after = model.state_dict()
    moved = {"body.2.weight": "body.5.weight", "body.2.bias": "body.5.bias"} if arch == "edsr" else {}
    for name, value in before.items():
        assert torch.equal(after[moved.get(name, name)], value)
    if init == "identity":
        torch.testing.assert_close(model(x), old)
    else:
        assert (model(x) - old).abs().max() > 1e-3
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_generator():
    torch.manual_seed(0)
    generator = Generator(latent=10, size=12, channels=3)
    images = generator(torch.randn(4, 10))
    assert images.shape == (4, 3, 12, 12)
    assert 0 <= images.min() and images.max() <= 1 and images.std() > 0.1
    assert generator.head.weight.shape == (128 * 9, 10)
    norms = [module for module in generator.modules() if isinstance(module, torch.nn.InstanceNorm2d)]
    assert [(m.num_features, m.eps, m.affine) for m in norms] == [(128, 1e-5, True), (128, 0.8, True), (64, 0.8, True)]


@pytest.mark.parametrize("config", [
    {"arch": "vdsr", "n_resblocks": 3, "n_feats": 8}, {"arch": "edsr", "n_resblocks": 1, "n_feats": 8, "scale": 3},
    {"arch": "edsr", "n_resblocks": 1, "n_feats": 8, "scale": 4}], ids=["vdsr", "edsr x3", "edsr x4"])
def test_tiles_leave_no_seam(config):
    """As the whole image to 1e-5, of sides that no tile divides."""
    torch.manual_seed(0)
    model = build_model(config)
    x, shapes = torch.rand(1, model.channels, 71, 45), []
    hook = model.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    with torch.no_grad():
        whole = model(x)
    ratio = whole.shape[-1] // 45
    tiled = run_tiled(model, x, largest=8 * ratio**2 * 40**2)
    hook.remove()
    assert len(shapes) > 4 and max(max(shape[-2:]) for shape in shapes[1:]) <= 40
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_a_pixel_of_vdsr_sees_as_far_as_it_says():
    model = VDSR(3, 4)
    for weight in model.parameters():
        torch.nn.init.ones_(weight)
    x = torch.zeros(1, 1, 21, 21, requires_grad=True)
    model(x + 1)[0, 0, 10, 10].backward()
    seen = x.grad[0, 0].nonzero()
    assert seen.min() == 10 - reach(model) == 5 and seen.max() == 10 + reach(model)


def test_self_ensemble_turns_back_what_it_turned():
    """A network that sees no direction gives the same; one that shifts to the right, a cross."""
    x = torch.rand(1, 3, 4, 6)
    torch.testing.assert_close(self_ensemble(lambda x: 2 * x, x), 2 * x)
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    cross = self_ensemble(lambda x: x.roll(1, -1), point)[0, 0]
    expected = torch.zeros(5, 5)
    expected[[1, 2, 2, 3], [2, 1, 3, 2]] = 0.25
    torch.testing.assert_close(cross, expected)
