"""Fetch the image sets and the public VDSR teacher to where the scripts look for them.

    python -m data.download benchmark          # Set5, Set14, B100, Urban100
    python -m data.download train291           # VDSR's 291 training images
    python -m data.download div2k              # DIV2K's 800 training images, 3.5 GB
    python -m data.download vdsr               # vdsr_public.pth, the VDSR of pytorch-vdsr
    python -m data.download all --to datasets

What is there already is left alone, and a folder appears once it is whole. Where a home has moved, --from names
another: a URL, or an archive or a folder of images that you have.
"""

import argparse
import re
import shutil
import socket
import sys
import tarfile
from pathlib import Path

from torch.hub import download_url_to_file
from torchvision.datasets.utils import check_integrity

from data.images import list_images
from utils import InputError, run_script, write_atomically

TIMEOUT = 30  # seconds without an answer or a byte
TRAIN291 = "https://cv.snu.ac.kr/research/VDSR/train_data.zip"
T91 = "https://raw.github.com/IsaacCorley/pytorch-enhance/master/datasets/T91.zip"
EDSR = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
SUPER_IMAGE = "https://huggingface.co/datasets/eugenesiow/{0}/resolve/main/data/{0}_HR.tar.gz"
BSDS500 = "https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip"
DIV2K = "http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip"
TEACHER = "https://github.com/twtygqyy/pytorch-vdsr/raw/master/model/model_epoch_50.pth"
MD5 = {EDSR: "4ace41d33c2384b97e6b320cd0afd6ba", BSDS500: "7bfe17302a219367694200a61ce8256c",
       DIV2K: "bdc2d9338d4e574fe81bf7d158758658", TEACHER: "b1d1241c01cb8bfe2b50f32ce1f76818"}
BENCHMARKS = ((5, "Set5", "Set5"), (14, "Set14", "Set14"), (100, "B100", "BSD100"), (100, "Urban100", "Urban100"))
# {set: {folder: parts}}; a part is its number of images, the ends that their folder's path may have in an archive (any:
# ""), and its homes, in order. The first part is the whole set; where it cannot be had, the others make it up.
SETS = {
    "benchmark": {f"benchmark/{name}/HR": [(
        count, tuple(f"/{word}{end}" for word in (name, also) for end in ("/HR", "_HR", "")),
        (EDSR, SUPER_IMAGE.format(also)))] for count, name, also in BENCHMARKS},
    "train291": {"train291": [(291, ("",), (TRAIN291,)), (91, ("/T91", "/91"), (T91,)),
                              (200, ("/BSDS200", "/images/train"), (BSDS500,))]},
    "div2k": {"DIV2K/DIV2K_train_HR": [(800, ("",), (DIV2K,))]},
    "vdsr": {"vdsr_public.pth": None},  # a file: TEACHER
}


def obtain(home, folder, md5):
    """The file that `home` is or, of a URL, that is downloaded to `folder`. Raises errors of many kinds."""
    file = Path(home)
    if re.match("https?://", home):
        print(f"from {home}", flush=True)
        folder.mkdir(parents=True)
        file = folder / "the.file"
        download_url_to_file(home, str(file), progress=sys.stderr.isatty())
    if not check_integrity(file, md5):
        raise InputError(f"no file whose md5 is {md5}" if md5 else "no such file")
    return file


def unpack(home, folder):
    """The folder that `home` is or, of an archive, to which it is unpacked. Raises errors of many kinds."""
    if Path(home).is_dir():
        return Path(home).resolve()
    archive = obtain(home, folder, MD5.get(home))
    top = folder / Path(home).name.split(".")[0]  # some archives have no folder that tells the set; their names do
    kind = {"format": "tar", "filter": "data"} if tarfile.is_tarfile(archive) else {"format": "zip"}
    shutil.unpack_archive(archive, top, **kind)  # nothing gets out of `top`
    return folder


def find(part, origin, scratch, opened):
    """The folder of a part's images in the first home that has it, or None. opened: {home: its folder, or error}."""
    count, names, homes = part
    for home in [origin] if origin else homes:
        if home not in opened:
            try:
                opened[home] = unpack(home, scratch / str(len(opened)))
            except Exception as error:  # of many kinds: the network's, the file system's, a damaged archive's
                opened[home] = error
        top = opened[home]
        for folder in (top, *sorted(top.rglob("*"))) if isinstance(top, Path) else ():
            if folder.as_posix().endswith(names) and len(list_images(folder)) == count:
                return folder


def fetch_images(place, parts, origin, scratch, opened):
    """Make the folder `place` whole; the rest as of find(). Returns what is missing, in words, or None."""
    whole, beside = parts[0][0], place.with_name(f"{place.name}.incomplete")
    if place.exists() and any(place.iterdir()):
        return f"{place} (holds {len(list_images(place))} of {whole} images; move it away first)"
    for folder in filter(None, (find(part, origin, scratch, opened) for part in parts)):
        lr, lr_place = folder.with_name("LR_bicubic"), place.with_name("LR_bicubic")
        if folder.name == "HR" and lr.is_dir() and not lr_place.exists():
            lr_beside = shutil.copytree(lr, place.with_name("LR_bicubic.incomplete"), dirs_exist_ok=True)
            lr_beside.rename(lr_place)
        beside.mkdir(parents=True, exist_ok=True)
        for image in list_images(folder):
            shutil.copyfile(image, beside / image.name)
        if len(list_images(beside)) == whole:
            beside.rename(place)
            return None
    there = len(list_images(beside))
    return f"{place} ({whole} images{f'; {there} are in {beside}' if there else ''})"


def fetch_teacher(path, origin, scratch):
    """Put pytorch-vdsr's model_epoch_50.pth at `path`. Returns what is missing, in words, or None."""
    home = origin or TEACHER
    try:
        write_atomically(path, obtain(home, scratch / "teacher", MD5[TEACHER]).read_bytes())
    except Exception as error:  # the network's, the file system's
        return f"{path} (pytorch-vdsr's model_epoch_50.pth; {home}: {error})"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists the flags)\n")
    parser.add_argument("set", choices=(*SETS, "all"))
    parser.add_argument("--to", type=Path, default="datasets", metavar="FOLDER", help="--data_dir of the scripts")
    parser.add_argument("--from", dest="origin", metavar="HOME", help="URL, zip, tar (compressed or not) or folder")
    return parser.parse_args(argv)


def main(args):
    socket.setdefaulttimeout(TIMEOUT)
    scratch, opened, missing = args.to / f".{args.set}.download", {}, []
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        for place, parts in [item for key in SETS if args.set in (key, "all") for item in SETS[key].items()]:
            place = args.to / place
            if place.is_file() or parts and len(list_images(place)) >= parts[0][0]:
                print(f"{place}: there already")
                continue
            lack = (fetch_images(place, parts, args.origin, scratch, opened) if parts
                    else fetch_teacher(place, args.origin, scratch))
            if lack:
                missing.append(lack)
            else:
                print(f"{place}: fetched")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if missing:
        tried = [f"; {home}: {'not there' if isinstance(top, Path) else top}" for home, top in opened.items()]
        raise InputError(f"could not get {', '.join(missing)}{''.join(tried)}; name another URL, an archive or a "
                         "folder with --from, or put the files there yourself")


if __name__ == "__main__":
    run_script(main, parse_arguments())
