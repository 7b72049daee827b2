"""python -m data.download: what comes from which home, and what cannot be had."""

import gzip
import hashlib
import io
import lzma
import socket
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest

from data import download
from tests.helpers import assert_refused, contents

COUNTS = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100}
WEIGHTS = b"not weights, but nobody looks inside"


def zipped(files):
    """A zip of {path: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, content in files.items():
            file.writestr(path, content)
    return buffer.getvalue()


def tarred(files, link=None):
    """A tar of {path: bytes}, and of a symbolic link (path, target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            file.addfile(member)
    return buffer.getvalue()


def numbered(pattern, count):
    """{path: bytes} of files that differ, as if of images, which are only counted."""
    return {pattern.format(i): f"{pattern} {i}".encode() for i in range(count)}


def write(folder, files):
    """Write files, {path: bytes}, into the folder, which is returned."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


TRAIN = numbered("train_data/291/{}.bmp", 291)
BENCHMARK = {path: content for name, count in COUNTS.items() for pattern in ("HR/{}.png", "LR_bicubic/X2/{}x2.png")
             for path, content in numbered(f"benchmark/{name}/{pattern}", count).items()}
DIV2K = numbered("DIV2K_train_HR/{}.png", 800)
BSDS500 = [numbered(f"m/BSDS500/data/images/{kind}/{{}}.jpg", 200) for kind in ("test", "train")]
ARCHIVES = {download.EDSR: tarred(BENCHMARK), download.DIV2K: zipped(DIV2K), download.TEACHER: WEIGHTS,
    download.TRAIN291: zipped(TRAIN | numbered("train_data/91/{}.bmp", 91)),
    download.T91: zipped(numbered("T91/t{}.png", 91)), download.BSDS500: zipped(BSDS500[0] | BSDS500[1]),
    **{download.SUPER_IMAGE.format(name): gzip.compress(tarred(numbered(f"{name}_HR/{{}}.png", count)))
       for name, count in (("Set5", 5), ("Set14", 14), ("BSD100", 100), ("Urban100", 100))}}


@pytest.fixture
def home(monkeypatch, tmp_path_factory):
    """Stands for the public homes: .archives, {URL: bytes}, are what can be downloaded, .requests what was to be."""
    home, fetch = SimpleNamespace(archives=dict(ARCHIVES), requests=[]), download.download_url_to_file
    served = tmp_path_factory.mktemp("home") / "file"

    def downloaded(url, path, **more):
        home.requests.append(url)
        if "//127.0.0.1" in url:
            fetch(url, path, **more)
        elif url in home.archives:
            served.write_bytes(home.archives[url])
            fetch(served.as_uri(), path, **more)
        else:
            raise HTTPError(url, 404, "Not Found", {}, None)

    monkeypatch.setattr(download, "download_url_to_file", downloaded)
    monkeypatch.setattr(download, "MD5", {url: hashlib.md5(ARCHIVES[url]).hexdigest() for url in download.MD5})
    yield home
    socket.setdefaulttimeout(None)  # which data.download has set


def fetched(run, tmp_path, *flags):
    """What a download that must succeed leaves."""
    outcome = run(download, *flags)
    assert outcome.returncode == 0, outcome.stderr
    return contents(tmp_path / "datasets")


def refused(run, *words, flags=("train291",)):
    """A download that must fail in one line, with `words` and what else can be done."""
    assert_refused(run(download, *flags), "could not get", "--from", *words)


def test_everything_comes_from_the_first_homes_and_is_left_alone_then(run, tmp_path, home):
    left = write(tmp_path / "datasets/.all.download", {"0/the.file": b"half"})  # by a run that was killed
    (tmp_path / "datasets/benchmark/Set5/HR").mkdir(parents=True)  # an empty folder is none
    expected = BENCHMARK | {f"DIV2K/{path}": file for path, file in DIV2K.items()} | {"vdsr_public.pth": WEIGHTS}
    expected |= {f"train291/{Path(path).name}": file for path, file in TRAIN.items()}
    assert fetched(run, tmp_path, "all") == expected and not left.exists()
    assert home.requests == [download.EDSR, download.TRAIN291, download.DIV2K, download.TEACHER]
    assert "datasets/benchmark/Set5/HR: there already" in run(download, "all").stdout and len(home.requests) == 4


def test_other_homes_where_the_first_are_gone(run, tmp_path, home):
    del home.archives[download.EDSR], home.archives[download.TRAIN291]
    files = fetched(run, tmp_path, "benchmark")
    assert home.requests.count(download.EDSR) == 1
    assert files.keys() == {path for path in BENCHMARK if "HR" in path}
    assert files["benchmark/B100/HR/7.png"] == b"BSD100_HR/{}.png 7"
    files = fetched(run, tmp_path, "train291")
    assert {path for path in files if "train291" in path} == {
        *(f"train291/t{i}.png" for i in range(91)), *(f"train291/{i}.jpg" for i in range(200))}
    assert files["train291/3.jpg"] == b"m/BSDS500/data/images/train/{}.jpg 3"
    url = "https://mirror/Set5.zip?download=true"
    home.archives[url] = zipped(numbered("{}.png", 5))
    flags = ("benchmark", "--to=mine", "--from", url)
    refused(run, "mine/benchmark/Set14/HR (14 images)", f"{url}: not there", flags=flags)
    assert contents(tmp_path / "mine").keys() == numbered("benchmark/Set5/HR/{}.png", 5).keys()


def test_what_can_be_had_of_a_set_waits_for_the_rest(run, tmp_path, home):
    del home.archives[download.TRAIN291], home.archives[download.T91]
    refused(run, "datasets/train291 (291 images; 200 are in datasets/train291.incomplete)",
            f"{download.TRAIN291}: HTTP Error 404: Not Found", f"{download.T91}: HTTP Error 404: Not Found")
    assert {Path(path).parent.name for path in contents(tmp_path / "datasets")} == {"train291.incomplete"}
    write(tmp_path, numbered("91/{}.bmp", 91))
    assert len(fetched(run, tmp_path, "train291", "--from", tmp_path)) == 291
    assert len(contents(tmp_path / "91")) == 91 and not (tmp_path / "datasets/train291.incomplete").exists()


@pytest.mark.parametrize("pack, top", [(zipped, ""), (None, "deep/er/"),
    (lambda files: lzma.compress(tarred(files)), "deep/er/")], ids=["zip", "folder", "tar.xz"])
def test_from_an_archive_or_a_folder(run, tmp_path, home, pack, top):
    """Its name does not matter; images are found in any folder of it, without what is beside them."""
    files = numbered(top + "{}.png", 291) | {top + "readme.txt": b"", top + "._1.png": b"", "x/1.png": b"another"}
    write(*(tmp_path, {"mine": pack(files)}) if pack else (tmp_path / "mine", files))
    before = contents(tmp_path)
    assert fetched(run, tmp_path, "train291", "--from", "mine") == {
        f"train291/{i}.png": files[f"{top}{i}.png"] for i in range(291)}
    assert contents(tmp_path).items() >= before.items() and home.requests == []


def test_what_is_in_a_folders_place(run, tmp_path, home):
    """A folder with too few images is neither used nor touched; the others are fetched."""
    mine = {"1.png": b"mine", "notes.txt": b"mine"}
    place = write(tmp_path / "datasets/benchmark/Set5/HR", mine)
    refused(run, "datasets/benchmark/Set5/HR (holds 1 of 5 images; move it away first)", flags=("benchmark",))
    assert contents(place) == mine
    assert len(contents(tmp_path / "datasets/benchmark/Urban100/HR")) == 100


BROKEN = {"a web page": b"<html>404</html>", "half a zip": zipped(TRAIN)[:9000], "half a tar": tarred(TRAIN)[:9000],
    "a damaged byte": zipped(TRAIN).replace(b"291/{}.bmp 7", b"291/{}.bmp 8", 1),
    "up": tarred(TRAIN | {"../../up.png": b""}), "up, zipped": zipped({"../../up.png": b""}),
    "a link out": tarred(TRAIN, link=("train_data/291/link.bmp", "/etc/passwd")),
    "an image less": zipped(dict(list(TRAIN.items())[1:])),
    "an image more": zipped(TRAIN | {"train_data/291/a.png": b""})}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("origin", ["URL", "file"])
def test_broken_and_hostile_archives(run, tmp_path, home, kind, origin):
    """One line, and nothing left, here or anywhere near; a file of the user's stays."""
    home.archives = {"https://mirror/mine.zip": BROKEN[kind]}
    write(tmp_path, {"mine.zip": BROKEN[kind]})
    refused(run, flags=("train291", "--to=in/to", "--from", *(home.archives if origin == "URL" else ["mine.zip"])))
    assert contents(tmp_path) == {"mine.zip": BROKEN[kind]} and not (tmp_path / "in/to/train291").exists()


def test_another_file_than_the_one_known(run, tmp_path, home):
    """Is not used where the home is a known one; with --from only the teacher has to be the one known."""
    home.archives |= {download.EDSR: ARCHIVES[download.EDSR] + bytes(512), download.TEACHER: b"other"}
    assert "benchmark/Set5/LR_bicubic/X2/1x2.png" not in fetched(run, tmp_path, "benchmark")
    refused(run, "vdsr_public.pth", download.TEACHER, download.MD5[download.TEACHER], flags=("vdsr",))
    (tmp_path / "mine").mkdir()
    refused(run, "vdsr_public.pth", "; mine: ", download.MD5[download.TEACHER], flags=("all", "--from=mine"))
    (tmp_path / "mine.pth").write_bytes(b"mine")
    refused(run, "mine.pth", download.MD5[download.TEACHER], flags=("vdsr", "--from=mine.pth"))
    assert "vdsr_public.pth" not in contents(tmp_path / "datasets")
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    assert fetched(run, tmp_path, "vdsr", "--from=mine.pth")["vdsr_public.pth"] == WEIGHTS


def test_a_silent_server_none_and_ctrl_c(run, tmp_path, home, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        flags = "train291", "--from", f"http://127.0.0.1:{server.getsockname()[1]}/a.zip"
        refused(run, flags[-1], "timed out", flags=flags)
    refused(run, flags[-1], "Connection refused", flags=flags)

    def interrupted(url, path, **more):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download_url_to_file", interrupted)
    assert run(download, "train291").returncode == 130
    assert not contents(tmp_path)


@pytest.mark.parametrize("flags, word", [
    ("train291 --from=nowhere.zip", "nowhere.zip"), ("train291 --from=ftp://127.0.0.1/a.zip", "ftp:"),
    ("train291 --from=http://[/a.zip", "http://["), ("train291 --to=/dev/null", "/dev/null"), ("set5", "set5"),
    ("", "set"), ("all --upto=x", "--upto")])
def test_flags(run, home, flags, word):
    assert_refused(run(download, *flags.split()), word)
