"""Teacher and student: the networks that a distillation's flags name."""

from pathlib import Path

from models import build_model, half_width
from models.load import load_model
from models.custom import own_network
from utils import InputError


def load_networks(args):
    """The teacher, frozen, and with --test_only the student."""
    if not Path(args.pretrained).is_file():
        raise InputError(f"{args.pretrained}: no such teacher; train_teacher.py makes one, --pretrained names one")
    load = lambda path, role: (own_network(args.model, role, path).to(args.device) if args.model
                               else load_model(path, args.device, args.res_scale))
    teacher = load(args.pretrained, "teacher").requires_grad_(False)
    if args.arch not in (None, teacher.config["arch"]):
        raise InputError(f"--arch {args.arch}: {args.pretrained} is of another, {teacher.config['arch']}")
    if not args.test_only:
        return teacher, None
    if not args.student:
        raise InputError("--test_only: say which student to score with --student")
    student = load(args.student, "student")
    if (student.config["arch"], student.scales) != (teacher.config["arch"], teacher.scales):
        raise InputError(f"{args.student}: has another architecture or scale than the teacher {args.pretrained}")
    if not args.model and student.config["n_feats"] > teacher.config["n_feats"]:
        raise InputError(f"{args.student}: is wider than the teacher {args.pretrained}; are they swapped?")
    return teacher, student


def student_config(args, teacher):
    """The student's architecture at full depth: the teacher's, halved (paper section 4) or as the flags say."""
    if args.model:
        return {"n_resblocks": 1}
    config = half_width(teacher.config) if args.model_type == "half" else dict(teacher.config)
    for name in ("n_resblocks", "n_feats"):
        config[name] = getattr(args, name) or config[name]
    return config


def new_student(args, config):
    """A student of that architecture, or --model's."""
    return (own_network(args.model, "student") if args.model else build_model(config)).to(args.device)
