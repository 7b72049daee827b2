"""Fetch the image sets and the public VDSR teacher from their public homes to where the scripts look for them.

    python -m data.download benchmark          # Set5, Set14, B100, Urban100
    python -m data.download train291           # VDSR's 291 training images
    python -m data.download div2k              # DIV2K's 800 training images, 3.5 GB
    python -m data.download vdsr               # vdsr_public.pth, the VDSR of pytorch-vdsr
    python -m data.download all --to datasets

What is there already is left alone, and a folder is there whole or not at all. Homes move: --from names another one as
a URL, or the archive or the folder of images that you have:

    python -m data.download train291 --from train_data.zip
"""

import argparse
import re
import shutil
import socket
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from torch.hub import download_url_to_file
from torchvision.datasets.utils import check_integrity

from data.images import list_images
from utils import InputError, run_script, write_atomically

TIMEOUT = 30  # seconds without an answer or a byte
EDSR = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
SUPER_IMAGE = "https://huggingface.co/datasets/eugenesiow/{0}/resolve/main/data/{0}_HR.tar.gz"
BSDS500 = "https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip"
DIV2K = "http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip"
TEACHER = "https://github.com/twtygqyy/pytorch-vdsr/raw/master/model/model_epoch_50.pth"
MD5 = {EDSR: "4ace41d33c2384b97e6b320cd0afd6ba", BSDS500: "7bfe17302a219367694200a61ce8256c",
       DIV2K: "bdc2d9338d4e574fe81bf7d158758658", TEACHER: "b1d1241c01cb8bfe2b50f32ce1f76818"}


class Part(NamedTuple):
    """`count` images, the ends that their folder's path may have in an archive (any: ""), and its homes, in order."""

    count: int
    names: tuple
    homes: tuple


def _benchmark(count, name, also=None):
    names = tuple(f"/{word}{end}" for word in (name, also or name) for end in ("/HR", "_HR", ""))
    return {f"benchmark/{name}/HR": [Part(count, names, (EDSR, SUPER_IMAGE.format(also or name)))]}


# {set: {folder: parts}}. The first part is the whole set; where it cannot be had, the others make it up.
SETS = {
    "benchmark": _benchmark(5, "Set5") | _benchmark(14, "Set14") | _benchmark(100, "B100", "BSD100")
    | _benchmark(100, "Urban100"),
    "train291": {"train291": [
        Part(291, ("",), ("https://cv.snu.ac.kr/research/VDSR/train_data.zip",)),
        Part(91, ("/T91", "/91"), ("https://raw.github.com/IsaacCorley/pytorch-enhance/master/datasets/T91.zip",)),
        Part(200, ("/BSDS200", "/images/train"), (BSDS500,))]},
    "div2k": {"DIV2K/DIV2K_train_HR": [Part(800, ("",), (DIV2K,))]},
}


def obtain(home, file):
    """The path of the file that `home` is or, of a URL, of `file`, downloaded. Raises errors of many kinds."""
    if not re.match("https?://", home):
        return Path(home)
    print(f"from {home}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    download_url_to_file(home, str(file), progress=sys.stderr.isatty())
    if not check_integrity(file, MD5.get(home)):
        raise InputError(f"gives another file than the one known, whose md5 is {MD5[home]}")
    return file


def open_home(home, scratch):
    """The folder that `home` is or, unpacked in the folder `scratch`, that its archive holds; or the error."""
    try:
        if Path(home).is_dir():
            return Path(home).resolve()
        archive = obtain(home, scratch / "archive")
        folder = scratch / Path(home).name.split(".")[0]  # named so since some archives have no folder
        tar = tarfile.is_tarfile(archive)
        if tar and not hasattr(tarfile, "data_filter"):
            raise InputError("only Python from 3.10.12 or 3.11.4 unpacks a tar safely; --from takes a folder, too")
        with tarfile.open(archive) if tar else zipfile.ZipFile(archive) as file:
            file.extractall(folder, **{"filter": "data"} if tar else {})  # nothing gets out of `folder`
        return folder
    except Exception as error:  # of many kinds: the network's, the file system's, a damaged archive's
        return error


def find_folder(part, homes, opened, scratch):
    """The folder of a part's images in the first of `homes` that has it, or None. opened: see main."""
    for home in homes:
        if home not in opened:
            opened[home] = open_home(home, scratch / str(len(opened)))
        if isinstance(opened[home], Path):
            for folder in (opened[home], *sorted(opened[home].rglob("*"))):
                if folder.as_posix().endswith(part.names) and len(list_images(folder)) == part.count:
                    return folder
    return None


def add_images(folder, place, whole):
    """Copy images beside the folder `place`, which appears once they are `whole`. Returns how many they are by now."""
    beside = place.with_name(f"{place.name}.incomplete")
    beside.mkdir(parents=True, exist_ok=True)
    for image in list_images(folder):
        shutil.copyfile(image, beside / image.name)
    there = len(list_images(beside))
    if there == whole:
        if place.exists():
            place.rmdir()  # it is empty
        beside.rename(place)
    return there


def fetch_set(place, parts, origin, opened, scratch):
    """Make the folder `place` whole. Returns what is missing, in words, or None. opened: see main."""
    whole, there, missing = parts[0].count, len(list_images(place)), []
    if there >= whole:
        return print(f"{place}: there already, {there} images")
    if place.exists() and any(place.iterdir()):
        return f"{place} (holds {there} of {whole} images; move it away first)"
    for part in parts:
        folder = find_folder(part, [origin] if origin else part.homes, opened, scratch)
        if not folder:
            missing.append(f"{part.count} of {part.names[0].strip('/')}")
            continue
        for lr in folder.parent.glob("LR_bicubic/X?") if folder.name == "HR" else ():
            if len(list_images(lr)) == whole and not (place.parent / "LR_bicubic" / lr.name).exists():
                add_images(lr, place.parent / "LR_bicubic" / lr.name, whole)
        there = add_images(folder, place, whole)
        if there == whole:
            return print(f"{place}: {whole} images")
    have = f"; {there} are in {place}.incomplete, without {' and '.join(missing[1:])}" if there else ""
    return f"{place} ({whole} images{have})"


def fetch_teacher(path, home, opened, scratch):
    """Put pytorch-vdsr's model_epoch_50.pth at `path`. Returns what is missing, in words, or None. opened: see main."""
    if path.exists():
        return print(f"{path}: there already")
    try:
        file = obtain(home, scratch / "teacher")
        if not check_integrity(file, MD5[TEACHER]):
            raise InputError(f"no file whose md5 is {MD5[TEACHER]}")
        write_atomically(path, file.read_bytes())
        return print(f"{path}: pytorch-vdsr's VDSR")
    except Exception as error:  # the network's, the file system's
        opened[home] = error
        return f"{path} (pytorch-vdsr's model_epoch_50.pth)"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists the flags)\n")
    parser.add_argument("set", choices=(*SETS, "vdsr", "all"))
    parser.add_argument("--to", type=Path, default="datasets", metavar="FOLDER", help="--data_dir of the scripts")
    parser.add_argument("--from", dest="origin", metavar="HOME", help="URL, zip, tar (compressed or not) or folder")
    return parser.parse_args(argv)


def main(args):
    socket.setdefaulttimeout(TIMEOUT)
    scratch = args.to / f".{args.set}.download"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    opened = {}  # {home: its folder, or the error}, so that each is fetched once
    missing = []
    try:
        for name in SETS if args.set == "all" else SETS.keys() & {args.set}:
            for folder, parts in SETS[name].items():
                missing.append(fetch_set(args.to / folder, parts, args.origin, opened, scratch))
        if args.set in ("vdsr", "all"):
            missing.append(fetch_teacher(args.to / "vdsr_public.pth", args.origin or TEACHER, opened, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if any(missing):
        homes = [f"{home} ({'it is not there' if isinstance(why, Path) else why})" for home, why in opened.items()]
        raise InputError(f"could not get {', '.join(filter(None, missing))}; tried {'; '.join(homes) or 'no home'}; "
                         "name another URL, an archive or a folder with --from, or put the files there yourself")


if __name__ == "__main__":
    run_script(main, parse_arguments())
