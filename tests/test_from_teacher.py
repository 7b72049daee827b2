"""A student that starts from its teacher: exact at full width, near at others, whatever the teacher's channels do."""

import pytest
import torch

from data.sources import start_images
from models import EDSR, VDSR, build_model
from models.from_teacher import encoding, fit, keep_channels, normal_matrix, student_from_teacher
from utils import fingerprint

pytestmark = pytest.mark.usefixtures("few_places")


def made(name):
    """An untrained teacher, and images (24, C, 24, 24) as it takes them."""
    teacher = VDSR(4, 8) if name == "vdsr" else EDSR(2, 8, scale=int(name[-1]), res_scale=0.5)
    teacher.eval().requires_grad_(False)
    return teacher, start_images(teacher.scales[:1], 24 * teacher.scales[0] ** (not teacher.upscaled_input),
                                 teacher.channels, teacher.upscaled_input, 1, count=24)


def error(network, teacher, images):
    """Squared, relative to what the teacher adds to its input, or to a flat image."""
    with torch.no_grad():
        output = teacher(images)
        added = output - (images if teacher.upscaled_input else output.mean())
        return ((network(images) - output).square().sum() / added.square().sum()).item()


@pytest.mark.parametrize("name", ["vdsr", "edsr x2", "edsr x3", "edsr x4"])
@pytest.mark.parametrize("n_feats, factor", [(1, 1.2), (3, 5), (6, 30), (8, 1e6)])
def test_any_width_is_nearer_than_at_random(name, n_feats, factor):
    """At the teacher's width the student is the teacher."""
    teacher, images = made(name)
    student = student_from_teacher(teacher, images, n_feats)
    assert student.config == {**teacher.config, "n_feats": n_feats}
    others = [error(build_model(student.config), teacher, images[:8]) for _ in range(3)]
    assert factor * error(student, teacher, images[:8]) < min(others)
    if n_feats == 8:
        torch.testing.assert_close(student(images[:8]), teacher(images[:8]), rtol=0, atol=1e-5)
    assert not student.training and all(weight.requires_grad for weight in student.parameters())


@pytest.mark.parametrize("name, n_feats, least, most", [
    ("vdsr", 3, 1e-5, 0.5), ("vdsr", 4, 0, 1e-8), ("vdsr", 8, 0, 1e-8), ("edsr x2", 3, 1e-3, 0.2),
    ("edsr x2", 8, 0, 1e-8)])
def test_dead_channels_are_no_harm(name, n_feats, least, most):
    """Three channels are always zero, one never positive: of a VDSR four say as much as all eight."""
    teacher, images = made(name)
    for conv in [teacher.head, *teacher.body] if name == "vdsr" else [block.body[0] for block in teacher.body[:-1]]:
        conv.weight[:3], conv.weight[3] = 0, -conv.weight[3].abs()
        if conv.bias is not None:
            conv.bias[:3], conv.bias[3] = 0, -1e6
    student = student_from_teacher(teacher, images, n_feats)
    assert all(weight.isfinite().all() for weight in student.parameters())
    assert least <= error(student, teacher, images) < most


def test_the_seed_makes_the_student():
    """Where there is one: not of other widths."""
    teacher, images = made("vdsr")
    one, same, other = (fingerprint(student_from_teacher(teacher, images, 4, seed)) for seed in (1, 1, 2))
    assert one == same != other
    for n_feats in (0, 9):
        with pytest.raises(ValueError, match=f"no student of {n_feats} channels"):
            student_from_teacher(teacher, images, n_feats)


def test_channels_are_kept_as_trying_each_would():
    """Backward elimination by the formula against least squares without each channel, one after the other."""
    rows, kernel = torch.randn(500, 45, dtype=torch.float64), torch.randn(45, 2, dtype=torch.float64)
    rows[:, 9:18] = rows[:, :9] + 0.1 * rows[:, 9:18]  # the second nearly is the first
    alive = list(range(5))

    def without(channel):
        columns = rows.unflatten(1, (5, 9))[:, [c for c in alive if c != channel]].flatten(1)
        return (columns @ torch.linalg.lstsq(columns, rows @ kernel).solution - rows @ kernel).square().sum()

    while len(alive) > 2:
        alive.remove(min(alive, key=without))
        assert keep_channels(normal_matrix(rows), kernel, len(alive)) == alive


def test_a_fit_minds_the_relu():
    """A target that no linear kernel gives, but one behind a ReLU does."""
    rows, kernel = torch.randn(2000, 4), torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    target = rows @ kernel
    bent = torch.where(target < 0, 10 * target - 5, target)  # what lies below 0 does not count
    missing = [((rows @ fit(rows, bent, torch.zeros(4, 1), relu)).relu() - target.relu()).square().mean().item()
               for relu in (True, False)]
    assert missing[0] < missing[1] / 10
    torch.testing.assert_close(fit(rows, target, torch.zeros(4, 1)), kernel, rtol=0, atol=1e-4)


def test_directions_are_the_best_of_their_number():
    """Reduced-rank regression: the error is that of the singular values left out; all directions lose nothing."""
    features, reads = torch.randn(400, 6).double() @ torch.randn(6, 6).double(), torch.randn(9, 6).double()
    given = features @ reads.T
    values = torch.linalg.svdvals(given)
    for n_feats in (2, 4, 6):
        encode, decode = encoding(normal_matrix(features), [reads[..., None, None]], n_feats)
        missing = (given - features @ (reads @ decode.double() @ encode.double()).T).square().sum()
        assert missing.item() == pytest.approx(values[n_feats:].square().sum().item(), rel=0.01, abs=1e-6 * 400)
    torch.testing.assert_close(decode @ encode, torch.eye(6), rtol=0, atol=1e-4)
