"""Running the scripts, flags of tiny runs, what tests ask of the runs they made, and small images."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import ImageCms

import distillation
import train_teacher
import utils
from bicubic import imresize
from engine.run import Run
from models import VDSR
from models.load import load_model

ROOT = Path(__file__).parent.parent
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PAPERS = ("--stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 --latent=256 --lr_G=1e-5 "
          "--model_type=half --nEpochs=80 --pretrained=teacher.pth").split()
TINY = ("--batchSize=2", "--iter=2", "--device=cpu", "--threads=1")


def teacher_flags(images):
    return (*TINY, "--data_dir", images, "--n_resblocks=2", "--n_feats=4", "--patch_size=24", "--nEpochs=2",
            "--data_test=Set5")


def student_flags(images, teacher):
    return (*TINY, "--data_dir", images, "--pretrained", teacher, "--input_size=32", "--latent=4", "--stu_step=2",
            "--nEpochs=2", "--data_test=Set5")


def tiny_flags(script, images, teacher, *more):
    return (*(teacher_flags(images) if script is train_teacher else student_flags(images, teacher)), *more)


def read(folder):
    """(results, list of metrics) that a run left."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "results.json").read_text()), metrics


def outcome(folder):
    """What is the same in the same run: metrics but for times, scores, images seen."""
    results, metrics = read(folder)
    metrics = [{name: epoch[name] for name in epoch.keys() - {"seconds", "images_per_second"}} for epoch in metrics]
    return metrics, results["results"], results["images"]


def assert_same_run(a, b):
    """The folders of two runs: weights (last and best) and outcome."""
    assert all(weights_equal(a / name, b / name) for name in ("model_last.pth", "model_best.pth"))
    assert outcome(a) == outcome(b)


def weights_equal(a, b):
    return utils.fingerprint(load_model(a)) == utils.fingerprint(load_model(b))


def contents(folder, pattern="*"):
    """{path in the folder: bytes} of its files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def assert_refused(process, *words):
    """Exit code 2 and one line on stderr, which holds all `words`."""
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert all(word in process.stderr for word in ("error: ", *words)), process.stderr


# A server that has imported torch once forks each process.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["distillation", "train_teacher", "torch._dynamo"])  # the last: by every optimizer


def _script(script, flags, folder, output, prepare, environment):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had pytest ignore it
    distillation.save_curves = train_teacher.save_curves = lambda folder: None  # takes longer than a tiny run
    os.chdir(folder)
    os.environ.update(environment)
    flags = [*map(str, flags)]
    sys.argv = [f"{script}.py", *flags]
    for number, name in ((1, "stdout"), (2, "stderr")):  # what C code prints, too
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    prepare()
    utils.run_script(sys.modules[script].main, sys.modules[script].parse_arguments(flags))


def start(script, flags, folder, output=None, prepare=dict, **environment):
    """A process that runs the script in `folder` and prints to stdout and stderr in `output`, after prepare()."""
    arguments = script.__name__, flags, folder, output or folder, prepare, environment
    process = PROCESSES.Process(target=_script, args=arguments)
    process.start()
    return process


def die_at(event, number):
    """Have this process get signal `number` at the event of that number: a step, or a file's way to the disk."""
    events = itertools.count(1)

    def counted(function):
        def call(*arguments):
            if next(events) == event:
                os.kill(os.getpid(), number)
            return function(*arguments)
        return call

    os.fsync, os.replace, Run.advance = counted(os.fsync), counted(os.replace), counted(Run.advance)


def finish(process):
    """Its exit code: negative where a signal killed it."""
    process.join(120)
    return process.exitcode


def pixels(rows, columns, channels=3, dtype=np.uint8):
    """Noise (rows, columns, channels) of that type."""
    noise = np.random.default_rng(rows)
    return noise.integers(0, np.iinfo(dtype).max, (rows, columns, channels), dtype=dtype, endpoint=True)


def resized(image, scale):
    """An array (H, W, C) by bicubic, as 8 bits."""
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    return imresize(planes, scale).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


def bicubic_network():
    """A VDSR that adds nothing to its input."""
    model = VDSR(1, 2)
    model.tail.weight.data.zero_()
    return model
