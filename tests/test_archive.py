"""data.archive through data.download: what is taken from whole archives, and broken and hostile ones."""

import errno
import io
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from data import archive, download
from data.archive import Entry, choose
from tests.home import BENCHMARK, LR, TRAIN, contents, picture, refused, serving, tarred, zipped


@pytest.fixture
def home(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


def test_folders_of_real_archives():
    """The table of sources takes from the real archives' paths what the layout wants."""
    numbers = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100}
    paths = [f"benchmark/{name}/{folder}/{i}{end}.png" for name, count in numbers.items() for i in range(count)
             for folder, end in (("HR", ""), ("LR_bicubic/X2", "x2"), ("LR_bicubic/X4", "x4"))]
    chosen = choose([Entry(path, 1, None, None) for path in paths], download.SOURCES["benchmark"])
    assert {folder: len(images) for folder, images in chosen.items()} == {
        f"benchmark/{name}/{folder}": count for name, count in numbers.items()
        for folder in ("HR", "LR_bicubic/X2", "LR_bicubic/X4")}
    train = [f"train_data/{folder}/{i}.bmp" for folder, count in (("91", 91), ("291", 291)) for i in range(count)]
    chosen = choose([Entry(path, 1, None, None) for path in train], download.SOURCES["train291"])
    assert {folder: len(images) for folder, images in chosen.items()} == {"train291": 291}
    div2k = [Entry(f"DIV2K_train_HR/{i:04}.png", 1, None, None) for i in range(1, 801)]
    chosen = choose(div2k, download.SOURCES["div2k"])
    assert {folder: len(images) for folder, images in chosen.items()} == {"DIV2K/DIV2K_train_HR": 800}


def test_a_folder_that_cannot_be_put_in_place(run, tmp_path, home, monkeypatch):
    """What was there stays; HR images come last, from beside their place."""
    set5 = tmp_path / "datasets/benchmark/Set5"
    (set5 / "HR").mkdir(parents=True)
    (set5 / "HR/mine.png").write_bytes(b"mine")
    rename, renamed = Path.rename, []

    def fail(path, target):
        if "unpacking" in str(path):
            renamed.append(str(path))
            if path.name == "HR" and "Set5" in str(path):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    refused(run, "datasets: Invalid cross-device link", flags=("benchmark",))
    assert contents(set5) == {"HR/mine.png": b"mine"} | {path[len("Set5/"):]: content for path, content in LR.items()}
    assert renamed[0] == "datasets/benchmark/.benchmark.unpacking/benchmark/Set5/LR_bicubic/X2"


def header_only(width, height):
    """A PNG that announces a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
            + struct.pack(">I", 1000) + b"IDAT")


def patched(content, signature, offset, value):
    """A zip with the bytes `value` at `offset` of every record that begins with `signature`."""
    content = bytearray(content)
    at = content.find(signature)
    while at >= 0:
        content[at + offset:at + offset + len(value)] = value
        at = content.find(signature, at + 4)
    return bytes(content)


def zip_link(path, target):
    info = zipfile.ZipInfo(path)
    info.external_attr = 0o120777 << 16
    return {info: target}


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1:]


def whole_blocks(content):
    return content + bytes(-len(content) % 512)


def instead(content, path="291/t1.png"):
    return zipped(TRAIN | {path: content})


STORED = zipped(TRAIN, zipfile.ZIP_STORED)
TWO = {path: content for path, content in TRAIN.items() if "t1" not in path}
CENTRAL = b"PK\x01\x02"
BROKEN = {
    "half a zip": (STORED[:len(STORED) // 2], "not a whole zip or tar"),
    "half a tar": (tarred(TRAIN)[:len(tarred(TRAIN)) // 2], "not a whole zip or tar"),
    "a tar without its end": (whole_blocks(tarred(TRAIN).rstrip(b"\0")), "not a whole zip or tar"),
    "a tar damaged between": (flipped(tarred(TRAIN), tarred(TRAIN).index(b"291/2092.jpg")), "not a whole zip or tar"),
    "an empty tar": (tarred({}), "has 0 images for train291, not 3"),
    "a compressed tar": (zlib.compress(tarred(TRAIN), wbits=31), "not a whole zip or tar"),
    "a damaged byte": (flipped(STORED, STORED.index(TRAIN["291/t2.bmp"]) + 2000), "'291/t2.bmp' in it is damaged"),
    "text for an image": (instead(b"hello"), "'291/t1.png' in it is no image"),
    "a PostScript program": (instead(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EOF\n"), "is no image"),
    "half an image": (instead(TRAIN["291/t1.png"][:2000]), "'291/t1.png' in it is damaged"),
    "a small image": (instead(picture(1, 40, 29)), "40x29 pixels, not 30 to 4096"),
    "a wide image": (instead(picture(1, 4097, 30)), "4097x30 pixels, not 30 to 4096"),
    "a bomb of an image": (instead(header_only(9500, 9500)), "9500x9500 pixels"),
    "a larger bomb of an image": (instead(header_only(30000, 30000)), "damaged (Image size"),
    "an image less": (zipped(TWO), "has 2 images for train291, not 3"),
    "an image more": (zipped(TRAIN | {"291/t3.png": picture(1)}), "has 4 images for train291, not 3"),
    "two images of one name": (zipped(TWO | {"291/T2.bmp": picture(1, kind="BMP")}), "has two images T2.bmp"),
    "a hidden image": (zipped(TWO | {"291/.t1.png": picture(1)}), "has 2 images"),
    "a name with an escape": (zipped(TWO | {"291/\x1b[2Jt1.png": picture(1)}), "has 2 images"),
    "up": (tarred(TRAIN | {"../up.png": picture(1)}), "'../up.png' in it leads out"),
    "up and away": (tarred(TWO | {"291/../../../t1.png": picture(1)}), "leads out"),
    "up, backslashed": (zipped(TRAIN | {"291\\..\\..\\t9.png": picture(1)}), "'291/../../t9.png' in it leads out"),
    "absolute": (tarred(TRAIN | {"/absolute.png": picture(1)}), "'/absolute.png' in it leads out"),
    "a drive": (zipped(TRAIN | {"C:/t1.png": picture(1)}), "'C:/t1.png' in it leads out"),
    "a symbolic link": (tarred(TWO, ("291/t1.png", tarfile.SYMTYPE, "/etc/passwd")), "is a link or a special file"),
    "a hard link": (tarred(TRAIN, ("291/t9.png", tarfile.LNKTYPE, "291/t1.png")), "is a link or a special file"),
    "a linked folder": (tarred({}, ("291", tarfile.SYMTYPE, "/etc")), "'291' in it is a link"),
    "a device": (tarred(TRAIN, ("291/zero.png", tarfile.CHRTYPE, "")), "is a link or a special file"),
    "a pipe": (tarred(TRAIN, ("291/pipe", tarfile.FIFOTYPE, "")), "'291/pipe' in it is a link or a special file"),
    "a link in a zip": (zipped(TWO | zip_link("291/t1.png", "/etc/passwd")), "'291/t1.png' in it is a link"),
    "an encrypted zip": (patched(STORED, CENTRAL, 8, b"\1"), "is encrypted"),
    "an unusual method": (zipped(TRAIN, zipfile.ZIP_BZIP2), "compressed in an unusual way"),
    "a zip that announces too little": (patched(zipped(TRAIN), CENTRAL, 24, struct.pack("<I", 100)), "is damaged"),
    "a zip that announces too much": (patched(zipped(TRAIN), CENTRAL, 24, struct.pack("<I", 2**31)), "too many"),
    "a zip that points before itself": (patched(zipped(TRAIN), b"PK\5\6", 16, b"\xff\xff\xff\x7f"), "train291.part"),
}


@pytest.mark.filterwarnings("error")  # they would be more lines on stderr
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_and_hostile_archives(run, tmp_path, home, kind):
    """One line, and no file left, here or anywhere near."""
    home.archives["/train_data.zip"], words = BROKEN[kind]
    refused(run, words, "; it was removed; ")
    assert contents(tmp_path) == {} and not Path("/absolute.png").exists()


def test_an_image_is_not_read_beyond_its_announced_size():
    class Endless(io.BytesIO):
        def read(self, size=-1):
            assert size >= 0
            return bytes(size)

    with pytest.raises(archive.BadArchive, match="no image"):
        archive.read_image_file(Entry("a.png", 10, None, Endless), 1)


def test_a_benchmark_without_some_of_its_lr_images(run, tmp_path, home):
    files = {path: content for path, content in BENCHMARK.items() if "babyx2" not in path}
    home.archives["/benchmark.tar"] = tarred(files)
    refused(run, "has 1 images for benchmark/Set5/LR_bicubic/X2, not 2", "datasets/benchmark/Urban100/HR/ (1)",
            flags=("benchmark",))
    assert contents(tmp_path) == {}


def test_caps(run, tmp_path, home, monkeypatch):
    """Of the archive, announced or not, of all images, and of one."""
    source, size = download.SOURCES["train291"], len(home.archives["/train_data.zip"])
    monkeypatch.setitem(download.SOURCES, "train291", replace(source, limit=size - 1))
    refused(run, f"has {size} bytes, more than the {size - 1} that it may have")
    home.announce = False
    refused(run, f"has more than the {size - 1} bytes that it may have")
    home.archives["/train_data.zip"] = zipped({f"291/{i}.bmp": header_only(20, 20) + bytes(9000) for i in range(3)})
    monkeypatch.setitem(download.SOURCES, "train291", replace(source, limit=27100))
    refused(run, f"unpacks to {3 * 9041} bytes", "too many")
    monkeypatch.setitem(download.SOURCES, "train291", source)
    monkeypatch.setattr(archive, "LARGEST_IMAGE", 9040)
    refused(run, "the largest image to 9041: too many")
    assert contents(tmp_path) == {}
