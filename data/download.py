"""Fetch the image sets from their public homes into the folders where the scripts look for them.

    python -m data.download train291           # VDSR's 291 training images
    python -m data.download benchmark          # Set5, Set14, B100, Urban100
    python -m data.download div2k              # DIV2K's 800 training images, 3.5 GB
    python -m data.download all --to datasets  # all three

A folder of images is there whole or not at all: its archive is unpacked beside it, every image decoded and
counted, and only then it gets its name. One that is there already is left alone. Run the same command again
and an interrupted download goes on where it ended. Where a home has moved or cannot be reached, --from names
another, or the archive that was downloaded by hand:

    python -m data.download train291 --from train_data.zip
"""

import fcntl
import http.client
import json
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.archive import BadArchive, reason, unpack
from data.images import list_images
from engine.options import Parser
from utils import InputError, run_script, save_json

TIMEOUT = 30  # seconds without an answer or a byte
CHUNK = 1 << 16  # bytes
_NAME = r"(\w[\w .+()-]{0,99})"  # of an image file: not hidden, no separators, no control characters


@dataclass(frozen=True)
class Source:
    """Where an archive is and what to take from it. Its home publishes no hash, or there would be one here.

    folders: {folder under --to: number of images in it}. patterns: regular expressions for the ends of paths
    in the archive; the first that fits any of them says which images to take, and its groups are where they go
    under `root`. least: smallest side of an HR image, pixels. limit: of the archive and of its images, bytes.
    """

    url: str
    root: str
    folders: dict
    patterns: tuple
    least: int
    limit: int


SOURCES = {
    # folder 291 where there is one, since 91, a part of it, may lie beside it; else all images
    "train291": Source("https://cv.snu.ac.kr/research/VDSR/train_data.zip", "train291", {"train291": 291},
                       ("291/" + _NAME, _NAME), least=64, limit=10**9),
    "benchmark": Source("https://cv.snu.ac.kr/research/EDSR/benchmark.tar", "benchmark",
                        {"benchmark/Set5/HR": 5, "benchmark/Set14/HR": 14, "benchmark/B100/HR": 100,
                         "benchmark/Urban100/HR": 100},
                        (r"(Set5|Set14|B100|Urban100)/(HR|LR_bicubic/X\d)/" + _NAME,), least=128, limit=3 * 10**9),
    "div2k": Source("https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip", "DIV2K/DIV2K_train_HR",
                    {"DIV2K/DIV2K_train_HR": 800}, ("DIV2K_train_HR/" + _NAME, _NAME), least=256,
                    limit=8 * 10**9),
}


def download_command(name, data_dir):
    """The command that fetches SOURCES[name] into data_dir, for messages about missing images."""
    return f"python -m data.download {name} --to {shlex.quote(str(data_dir))}"


# ---- the download ----------------------------------------------------------------------------------
# torchvision's download_url would be shorter, but it cannot resume, has no timeout, leaves half a file under
# the final name, and tries http where https fails.


def _note(part):
    """The file beside `part` that says what it is a part of: {"url", "size", "validator"}."""
    return part.with_name(part.name + ".json")


def _earlier(url, part):
    """(bytes, note) of what an earlier download of `url` left in `part`; (0, {}) where that is of no use."""
    try:
        note, have = json.loads(_note(part).read_text(encoding="utf-8")), part.stat().st_size
        return (have, note) if note["url"] == url and 0 < have <= note["size"] else (0, {})
    except (OSError, ValueError, KeyError, TypeError):
        return 0, {}


def _discard(part):
    for path in (part, _note(part)):
        path.unlink(missing_ok=True)


def _open(url, headers):
    """The response to a GET of `url`, or None for 416 (there is no such range). Raises InputError."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "data.download", **headers})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        raise InputError(f"{url}: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{url}: cannot be reached ({reason(error)})") from None
    if response.headers.get_content_type() == "text/html":  # a login or error page must not replace a part
        response.close()
        raise InputError(f"{url}: gives a web page, not an archive")
    return response


def _request(url, have, note):
    """(response, bytes that it goes on from): the rest of `url` where it can be had, else all of it."""
    if have:
        headers = {"Range": f"bytes={have}-"}
        if note["validator"]:
            headers["If-Range"] = note["validator"]  # all of it, please, if it has changed
        response = _open(url, headers)
        if response and response.status == 200:
            return response, 0
        rest = f"bytes {have}-{note['size'] - 1}/{note['size']}"
        if response and response.headers.get("Content-Range") == rest:
            return response, have
        if response:
            response.close()
    response = _open(url, {})
    if not response:
        raise InputError(f"{url}: HTTP 416, though no range was asked for")
    return response, 0


def _chunks(response, url):
    """The bytes of a response as they come. Raises InputError where the connection breaks."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url}: the connection broke ({reason(error)}); run the same command again to go "
                         "on") from None


def _begin(url, response, file):
    """Empty `file` and write the note about what it will hold, which is returned."""
    etag = response.headers.get("ETag", "W/")
    weak = etag.startswith("W/")  # which does not vouch for every byte
    note = {"url": url, "size": response.length,
            "validator": response.headers.get("Last-Modified") if weak else etag}
    file.truncate(0)
    save_json(note, _note(Path(file.name)))
    return note


def _check_size(url, size, have, limit, folder):
    """Raise InputError where `size` bytes are too many for such an archive or, twice, for the disk."""
    if size > limit:
        raise InputError(f"{url}: has {size} bytes, more than the {limit} that it may have")
    needed = 2 * size - have  # images hardly compress
    if shutil.disk_usage(folder).free < needed:
        raise InputError(f"{folder}: has too little room; archive and images need {needed} bytes")


def download(url, file, limit):
    """Fetch `url` into `file`, opened to append: from where an earlier download ended, or from the start.

    Raises InputError where it cannot be had whole; what has come stays for the next time.
    """
    part = Path(file.name)
    have, note = _earlier(url, part)
    if have and have == note["size"]:  # whole, but it could not be unpacked
        return
    response, have = _request(url, have, note)
    with response:
        note = note if have else _begin(url, response, file)
        size = note["size"]  # None where the server does not say
        _check_size(url, size or 0, have, limit, part.parent)
        with tqdm(total=size, initial=have, desc=part.stem, unit="B", unit_scale=True, leave=False,
                  disable=None) as progress:
            for chunk in _chunks(response, url):
                file.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))
                if have > limit:
                    raise BadArchive(f"{url}: has more than the {limit} bytes that it may have")
    file.flush()
    if size not in (None, have):
        raise InputError(f"{url}: ended after {have} of {size} bytes; run the same command again to go on")


# ---- the folders -----------------------------------------------------------------------------------


def fetch_archive(name, url, source, to, missing):
    """Download the archive to to/NAME.part, unpack and remove it."""
    part = to / f"{name}.part"
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another download is writing to it") from None
        try:
            print(f"{url}: to {part}")
            download(url, file, source.limit)
            unpack(part, source, to, missing)
            _discard(part)
        except BadArchive as error:
            _discard(part)
            raise InputError(f"{error}; it was removed") from None
        except KeyboardInterrupt:
            print(f"{part}: run the same command again to go on", file=sys.stderr)
            raise
        finally:
            file.flush()
            if part.exists() and not part.stat().st_size:
                _discard(part)


def missing_in(to, source):
    """The folders of HR images that have too few under `to`; prints about those that have any."""
    missing = []
    for folder, count in source.folders.items():
        there = len(list_images(to / folder))
        if there < count:
            missing.append(folder)
        if there:
            print(f"{to / folder}: {'incomplete' if there < count else 'there already'}, {there} of {count} images")
    return missing


def fetch(name, source, to, origin=None):
    """Make the folders of SOURCES[name] complete under `to`, from `origin` (URL or archive) if given.

    Raises InputError, which says how to do it by hand.
    """
    missing = missing_in(to, source)
    if not missing:
        return
    try:
        to.mkdir(parents=True, exist_ok=True)
        if origin is None or re.match("https?://", origin):
            fetch_archive(name, origin or source.url, source, to, missing)
        elif Path(origin).is_file():
            unpack(Path(origin), source, to, missing)
        else:
            raise InputError(f"--from {origin}: no such file, and no http or https URL")
    except (InputError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error.filename or to}: {reason(error)}"
        places = ", ".join(f"{to / folder}/ ({source.folders[folder]})" for folder in missing)
        raise InputError(f"{error}; by hand: get {source.url} and give the file with --from, or put its images "
                         f"into {places}") from None
    for folder in missing:
        print(f"{to / folder}: {source.folders[folder]} images")


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("set", choices=(*SOURCES, "all"), help="what to fetch")
    add("--to", default="datasets", metavar="FOLDER", help="folder of the image sets, --data_dir of the scripts")
    add("--from", dest="origin", metavar="URL|FILE", help="archive of the set, where not that of its public home")
    return parser.parse_args(argv)


def main(args):
    for flag, value in (("--to", args.to), ("--from", args.origin)):
        if value == "":
            raise InputError(f"{flag}: is empty")
    if args.origin and args.set == "all":
        raise InputError(f"--from {args.origin}: is one archive; say which set it holds instead of all")
    for name in SOURCES if args.set == "all" else (args.set,):
        fetch(name, SOURCES[name], Path(args.to), args.origin)


if __name__ == "__main__":
    run_script(main, parse_arguments())
