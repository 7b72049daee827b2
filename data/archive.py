"""Images out of an archive from the network: which to take, whether they are what they should be, into place.

Nothing is extracted by its path: an image is read into memory with a bound, decoded, and written under a path
put together from names.
"""

import io
import os
import re
import shutil
import stat
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Callable

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.images import EXTENSIONS, list_images
from utils import InputError, write_atomically

LARGEST_IMAGE = 64 * 10**6  # bytes; DIV2K's images have up to about 10 MB
LARGEST_SIDE = 4096  # pixels; DIV2K's images have up to 2040
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # Pillow starts other programs for some of the others


class BadArchive(InputError):
    """An archive is not the one expected, and to keep it would be of no use."""


@dataclass
class Entry:
    """A file in an archive. problem: why it is not to be taken; open(): its content, a binary file."""

    path: str
    size: int
    problem: str
    open: Callable


def reason(error):
    """What an error says, in one line and without its number."""
    error = getattr(error, "reason", error)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _zip_entries(archive):
    for info in archive.infolist():
        problem = None
        if stat.S_ISLNK(info.external_attr >> 16):
            problem = "is a link"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile reads without a bound
            problem = "is compressed in an unusual way"
        if not info.is_dir():
            yield Entry(info.filename, info.file_size, problem, lambda info=info: archive.open(info))


def _tar_entries(archive):
    end = 0
    for info in archive:
        problem = None if info.isreg() and not info.issparse() else "is a link or a special file"
        if not info.isdir():
            yield Entry(info.name, info.size, problem, lambda info=info: archive.extractfile(info))
        end = info.offset_data + -(-info.size // 512) * 512 if info.isreg() else info.offset_data
    archive.fileobj.seek(end)
    if archive.fileobj.read(512) != bytes(512):  # tarfile ends at anything that is no header
        raise tarfile.ReadError("no end of archive")


def _open_archive(path):
    """(archive to close, its files as a list of Entry) of a zip or uncompressed tar. Raises BadArchive."""
    archive = None
    try:
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            return archive, list(_zip_entries(archive))
        archive = tarfile.open(path, "r:")
        return archive, list(_tar_entries(archive))
    except Exception as error:  # whatever a damaged file makes the readers stumble over
        if archive:
            archive.close()
        raise BadArchive(f"is not a whole zip or tar archive ({reason(error)})") from None


def _hr_folder(folder):
    """The folder of HR images that goes with a folder of LR images; any other folder itself."""
    return re.sub(r"LR_bicubic/X\d$", "HR", folder)


def choose(entries, source):
    """{folder under --to: {name: Entry}} of the images of `source` (see data.download.Source) among `entries`.

    Raises BadArchive where they are not as many as expected, or where there is an unsafe path, a link or a
    special file anywhere: none could do harm, but the archive is not the one expected.
    """
    for entry in entries:
        entry.path = entry.path.replace("\\", "/")
        if ".." in entry.path.split("/") or re.match("/|[A-Za-z]:", entry.path):
            raise BadArchive(f"{ascii(entry.path[:60])} in it leads out of its folder")
        if entry.problem:
            raise BadArchive(f"{ascii(entry.path[:60])} in it {entry.problem}")
    for pattern in source.patterns:
        found = [(match.groups(), entry) for entry in entries
                 if PurePosixPath(entry.path).suffix.lower() in EXTENSIONS
                 and (match := re.fullmatch("(?:.*/)?" + pattern, entry.path))]
        if found:
            break
    chosen = {folder: {} for folder in source.folders}
    for names, entry in found:
        *folder, name = (source.root, *names)
        images = chosen.setdefault("/".join(folder), {})
        if name.lower() in map(str.lower, images):
            raise BadArchive(f"has two images {name}")
        images[name] = entry
    for folder, images in chosen.items():
        if len(images) != source.folders[_hr_folder(folder)]:
            raise BadArchive(f"has {len(images)} images for {folder}, not {source.folders[_hr_folder(folder)]}")
    sizes = [entry.size for _, entry in found]
    if max(sizes) > LARGEST_IMAGE or sum(sizes) > source.limit:
        raise BadArchive(f"unpacks to {sum(sizes)} bytes, the largest image to {max(sizes)}: too many")
    return chosen


def read_image_file(entry, least):
    """The bytes of an image. Raises BadArchive unless it decodes, with sides from `least` pixels."""
    name = f"{ascii(entry.path[:60])} in it"
    try:
        with entry.open() as file:
            content = file.read(entry.size + 1)  # with a bound, since a zip may announce too little
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if least <= min(image.size) and max(image.size) <= LARGEST_SIDE:
                    image.load()
                    return content
    except UnidentifiedImageError:
        raise BadArchive(f"{name} is no image") from None
    except Exception as error:  # whatever a damaged file makes the readers stumble over
        raise BadArchive(f"{name} is damaged ({reason(error)})") from None
    raise BadArchive(f"{name} has {width}x{height} pixels, not {least} to {LARGEST_SIDE} a side")


def _put_in_place(new, place):
    """Rename the folder `new` to `place`; what is there under that name, if anything, becomes NAME.old."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.is_file() or place.is_dir() and any(place.iterdir()):
        old, number = place.with_name(place.name + ".old"), 1
        while os.path.lexists(old):
            number += 1
            old = place.with_name(f"{place.name}.old{number}")
        place.rename(old)
        print(f"{place}: what was there is now {old}")
        try:
            new.rename(place)
        except OSError:
            old.rename(place)
            raise
    else:
        new.rename(place)


def unpack(path, source, to, missing):
    """Put the images of the archive at `path` under `to`, those that belong to the folders `missing`.

    Raises BadArchive and InputError, with no folder half there.
    """
    top = PurePosixPath(source.root).parts[0]
    inside = top not in source.folders and (to / top).is_dir()  # it may be a link to another disk
    staging = (to / top if inside else to) / f".{PurePosixPath(source.root).name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        archive, entries = _open_archive(path)
        with archive:
            chosen = {folder: images for folder, images in choose(entries, source).items()
                      if _hr_folder(folder) in missing and len(list_images(to / folder)) < len(images)}
            with tqdm(total=sum(map(len, chosen.values())), desc="unpacking", unit="image", leave=False,
                      disable=None) as progress:
                for folder, images in chosen.items():
                    least = source.least // (1 if folder == _hr_folder(folder) else int(folder[-1]))
                    for name, entry in images.items():
                        write_atomically(staging / folder / name, read_image_file(entry, least))
                        progress.update()
        for folder in sorted(chosen, key=lambda folder: folder in missing):  # HR last: it tells missing_in of both
            _put_in_place(staging / folder, to / folder)
    except BadArchive as error:
        raise BadArchive(f"{path}: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
