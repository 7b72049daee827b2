"""distil() called as from a notebook, by plain values: it needs no flags, leaves no files, and learns."""

from data.sources import noise_source
from distillation import Settings, distil
from engine.run import Run
from models import VDSR


def test_a_student_learns_its_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, student = VDSR(2, 6).requires_grad_(False), VDSR(2, 3)
    draw = noise_source("uniform", 16, 1, True, seed=1)
    x = draw(2, -1, 4)
    error = lambda: (student(x) - teacher(x)).abs().mean().item()
    images = lambda step: (x := draw(2, step, 4), teacher(x))
    before, scored = error(), []
    settings = Settings(nEpochs=2, iter=20, stu_step=4, loss_type="L1", optimizer="adam", lr=0.01, schedule="cosine")
    run = Run(losses=("student",), validate=lambda student, epoch: scored.append(error()) or {})
    assert distil(teacher, student, images, settings, run=run) is student
    assert scored[1] < scored[0] < 0.8 * before
    assert not list(tmp_path.iterdir())
