"""Teacher and student: which networks a distillation has, in plain values."""

from pathlib import Path

from models import half_width
from models.custom import custom_network
from models.load import load_model
from utils import InputError


def load_network(path, role, device="cpu", model=None, res_scale=None):
    """The "teacher" or "student" of the checkpoint `path`. model: the file of a network of one's own, if it is one."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such {role}" + (
            "; train_teacher.py makes one, --pretrained names one" if role == "teacher" else ""))
    return custom_network(model, role, path).to(device) if model else load_model(path, device, res_scale)


def check_pair(teacher, student, teacher_path, student_path):
    """Raise InputError where the networks are not teacher and student of one another."""
    known = [(network.config["arch"], network.scales, network.channels) for network in (student, teacher)]
    if known[0] != known[1]:
        raise InputError(f"{student_path}: has another architecture, scale or channels than the teacher {teacher_path}")
    if student.config.get("n_feats", 0) > teacher.config.get("n_feats", 0):
        raise InputError(f"{student_path}: is wider than the teacher {teacher_path}; are they swapped?")


def student_config(teacher, half=True, n_resblocks=None, n_feats=None):
    """The student's architecture at full depth: the teacher's, halved (paper section 4) or as the numbers say."""
    if teacher.config["arch"] == "custom":
        if n_resblocks or n_feats:
            raise InputError("--n_resblocks, --n_feats: are not for networks of --model, which have their own")
        return {**teacher.config, "role": "student", "n_resblocks": 1}
    config = half_width(teacher.config) if half else dict(teacher.config)
    return {**config, "n_resblocks": n_resblocks or config["n_resblocks"], "n_feats": n_feats or config["n_feats"]}


def check_start(teacher, config, inc_num=1):
    """Raise InputError where no student of that config can start from its teacher's weights."""
    why = ("--inc_num above 1 grows the student from random blocks" if inc_num > 1 else
           "a network of --model is not known layer by layer" if config["arch"] == "custom" else
           "the student's depth is not the teacher's" if config["n_resblocks"] != teacher.config["n_resblocks"] else
           "the student is wider than the teacher" if config["n_feats"] > teacher.config["n_feats"] else None)
    if why:
        raise InputError(f"--student_init teacher: {why}; use --student_init=random")
