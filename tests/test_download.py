"""python -m data.download against a server on this machine: what comes, what goes on, what fails."""

import fcntl
import io
import resource
import signal
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from data import download
from tests.helpers import assert_refused
from tests.home import (BENCHMARK, DIV2K, HR, TRAIN, Home, contents, fetched, picture, refused, serving, tarred,
                        trained, zipped)


@pytest.fixture
def home(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


# ---- what comes ------------------------------------------------------------------------------------


def test_all_sets_come_into_the_layout_and_are_left_alone_then(run, tmp_path, home):
    junk = {"readme.txt": b"hello", "91/t1.png": picture(1), "__MACOSX/291/._t1.png": b"", "291/Thumbs.db": b"?"}
    home.archives["/train_data.zip"] = zipped(TRAIN | junk)
    folder = tmp_path / "datasets"
    (folder / ".train291.unpacking/train291").mkdir(parents=True)  # of a run that was killed
    (folder / ".train291.unpacking/train291/junk.png").write_bytes(b"junk")
    expected = trained() | BENCHMARK | {f"DIV2K/{path}": content for path, content in DIV2K.items()}
    assert fetched(run, tmp_path, "all") == expected
    assert len(home.requests) == 3
    again = run(download, "all", "--to", "datasets")
    assert again.returncode == 0 and len(home.requests) == 3
    assert "datasets/benchmark/Set5/HR: there already, 2 of 2 images" in again.stdout


def test_training_images_in_folders_of_their_own(run, tmp_path, home):
    files = {"T91/a.png": picture(1), "deep/er/BSDS200/b.jpg": picture(2, kind="JPEG"), "c.PNG": picture(3)}
    home.archives["/train_data.zip"] = tarred(files)  # the name of an archive does not matter
    assert fetched(run, tmp_path, "train291", "--to", "datasets") == trained(files)


def test_an_incomplete_set_is_fetched_and_what_was_there_stays(run, tmp_path, home):
    folder = tmp_path / "datasets/train291"
    for place, content in ((folder, b"one"), (tmp_path / "datasets/train291.old", b"zero")):
        place.mkdir(parents=True)
        (place / "mine.png").write_bytes(content)
    outcome = run(download, "train291")
    assert outcome.returncode == 0 and "incomplete, 1 of 3 images" in outcome.stdout
    assert contents(tmp_path / "datasets") == trained() | {"train291.old/mine.png": b"zero",
                                                           "train291.old2/mine.png": b"one"}


def test_complete_folders_of_an_incomplete_set_are_left_alone(run, tmp_path, home):
    """Those of HR images with or without LR images, and those of LR images alone; an empty one is none."""
    set5, set14 = tmp_path / "datasets/benchmark/Set5", tmp_path / "elsewhere/Set14/HR"
    (set5 / "HR").mkdir(parents=True)
    set14.mkdir(parents=True)  # empty
    (set5 / "HR/a.png").write_bytes(b"mine")
    (set5 / "HR/b.png").write_bytes(b"mine, too")
    (tmp_path / "datasets/benchmark/Set14").symlink_to(set14.parent)
    before = contents(set5)
    assert fetched(run, tmp_path, "benchmark") == (
        {path: content for path, content in BENCHMARK.items() if "Set5" not in path and "Set14" not in path}
        | {f"benchmark/Set5/{path}": content for path, content in before.items()})
    assert contents(set14.parent) == {"HR/zebra.png": BENCHMARK["benchmark/Set14/HR/zebra.png"]}
    assert not (set14.parent / "HR.old").exists()

    (set5 / "HR/a.png").unlink()
    (set5 / "LR_bicubic/X2").mkdir(parents=True)
    for name in ("c", "d"):
        (set5 / f"LR_bicubic/X2/{name}.png").write_bytes(b"my own")
    fetched(run, tmp_path, "benchmark")
    assert contents(set5) == {"HR/baby.png": HR["Set5/HR/baby.png"], "HR/bird.png": HR["Set5/HR/bird.png"],
                              "HR.old/b.png": b"mine, too", "LR_bicubic/X2/c.png": b"my own",
                              "LR_bicubic/X2/d.png": b"my own"}


# ---- interrupted downloads -------------------------------------------------------------------------


@pytest.fixture
def begun(run, tmp_path, home):
    """The .part of a download that ended after 1000 bytes. A tar, since a zip may begin with anything."""
    home.archives["/train_data.zip"] = tarred(TRAIN)
    home.cut = 1000
    refused(run, "/train_data.zip", "run the same command again to go on")
    home.cut = None
    part = tmp_path / "datasets/train291.part"
    assert part.read_bytes() == home.archives["/train_data.zip"][:1000]
    home.requests.clear()
    return part


def test_going_on(run, tmp_path, home, begun):
    assert fetched(run, tmp_path, "train291") == trained()
    assert home.requests == ["bytes=1000-"]


def test_going_on_twice_and_without_a_validator(run, tmp_path, home, begun):
    home.etag = None
    home.cut = 2500
    refused(run, "run the same command again to go on")
    home.cut = None
    assert fetched(run, tmp_path, "train291") == trained()
    assert home.requests == ["bytes=1000-", "bytes=2500-"]


def test_a_server_that_ignores_ranges(run, tmp_path, home, begun):
    home.ranges = False
    assert fetched(run, tmp_path, "train291") == trained()
    assert home.requests == ["bytes=1000-"]


@pytest.mark.parametrize("etag, requests", [
    ('"second"', ["bytes=1000-"]),  # the server sees that the archive is another one
    (None, ["bytes=1000-", None])])  # its size shows it
def test_an_archive_that_has_changed(run, tmp_path, home, begun, etag, requests):
    files = TRAIN | {"291/t1.png": picture(20, 100, 100)}
    home.archives["/train_data.zip"], home.etag = tarred(files), etag
    assert fetched(run, tmp_path, "train291") == trained(files)
    assert home.requests == requests


def test_an_archive_that_has_become_shorter_than_its_part(run, tmp_path, home, begun):
    files = {f"291/{i}.png": picture(i, 16, 1) for i in range(3)}
    home.archives["/train_data.zip"] = zipped(files)
    assert len(home.archives["/train_data.zip"]) < 1000  # so that the server answers 416
    refused(run, "16x1 pixels")
    assert home.requests == ["bytes=1000-", None] and not begun.exists()


@pytest.mark.parametrize("note", ["", "{}", "[1]", '{"url": 1}', None])
def test_a_part_of_what_is_not_known_is_fetched_anew(run, tmp_path, home, begun, note):
    path = begun.with_name("train291.part.json")
    path.unlink() if note is None else path.write_text(note)
    assert fetched(run, tmp_path, "train291") == trained()
    assert home.requests == [None]


def test_a_part_from_another_url_is_fetched_anew(run, tmp_path, home, begun):
    home.archives["/mirror"] = home.archives["/train_data.zip"]
    assert fetched(run, tmp_path, "train291", "--from", f"{home.url}/mirror") == trained()
    assert home.requests == [None]


def test_a_web_page_does_not_replace_a_part(run, tmp_path, home, begun):
    home.ranges, home.kind = False, "text/html; charset=utf-8"
    refused(run, "gives a web page, not an archive")
    assert begun.stat().st_size == 1000


def test_ctrl_c(run, tmp_path, home, monkeypatch):
    """The server sends a part and then, while more is waited for, SIGINT."""
    monkeypatch.setattr(download, "CHUNK", 100)
    done = threading.Event()
    home.cut = 2000
    home.then = lambda: (signal.pthread_kill(threading.main_thread().ident, signal.SIGINT), done.wait(60))
    outcome = run(download, "train291")
    done.set()
    assert outcome.returncode == 130, outcome.stderr
    assert "train291.part: run the same command again to go on" in outcome.stderr
    part = tmp_path / "datasets/train291.part"
    assert not part.exists() or home.archives["/train_data.zip"].startswith(part.read_bytes())
    home.cut, home.then = None, lambda: None
    assert fetched(run, tmp_path, "train291") == trained()


def test_without_an_announced_size(run, tmp_path, home):
    home.announce = False
    assert fetched(run, tmp_path, "train291") == trained()


def test_two_downloads_at_once(run, tmp_path, home):
    (tmp_path / "datasets").mkdir()
    with open(tmp_path / "datasets/train291.part", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run, "another download is writing to it")
    assert fetched(run, tmp_path, "train291") == trained()


# ---- no room, no way -------------------------------------------------------------------------------


@pytest.fixture
def largest_file():
    """Limits the size of files, which stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_full_while_unpacking_keeps_the_archive(run, tmp_path, home, largest_file):
    flat = io.BytesIO()
    Image.new("RGB", (200, 100)).save(flat, "BMP")
    files = {f"291/{i}.bmp": flat.getvalue() for i in range(3)}
    home.archives["/train_data.zip"] = zipped(files)
    largest_file(10_000)
    refused(run, "0.bmp: cannot be written (File too large)")
    largest_file(resource.RLIM_INFINITY)
    assert [*contents(tmp_path / "datasets")] == ["train291.part", "train291.part.json"]
    home.archives.clear()
    assert fetched(run, tmp_path, "train291") == trained(files)
    assert len(home.requests) == 1


def test_a_disk_full_while_downloading(run, tmp_path, home, largest_file):
    largest_file(1000)
    refused(run, "datasets: File too large", "(3)")
    largest_file(resource.RLIM_INFINITY)
    assert fetched(run, tmp_path, "train291") == trained()


def test_too_little_room_is_seen_before(run, tmp_path, home, monkeypatch):
    needed = 2 * len(home.archives["/train_data.zip"])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    refused(run, f"too little room; archive and images need {needed} bytes")
    assert contents(tmp_path / "datasets") == {}
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    assert fetched(run, tmp_path, "train291") == trained()


def test_answers_that_are_no_archive(run, tmp_path, home, monkeypatch):
    for status in (404, 500, 416):
        home.status = status
        refused(run, f"{home.url}/train_data.zip: HTTP {status}", "into datasets/train291/ (3)")
    home.status, home.kind = 200, "text/html"
    refused(run, "gives a web page")
    home.kind = "application/zip"
    home.archives["/train_data.zip"] = b"<html>404</html>"
    refused(run, "is not a whole zip or tar archive", "removed")
    home.archives["/train_data.zip"] = b""
    refused(run, "is not a whole zip or tar archive")
    assert contents(tmp_path / "datasets") == {}


def test_a_server_that_cannot_be_reached_or_is_silent(run, tmp_path, home, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Home) as gone:
        closed = f"http://127.0.0.1:{gone.server_port}/a.zip"
    refused(run, closed, "Connection refused", flags=("train291", "--from", closed))
    refused(run, "cannot be reached", flags=("train291", "--from", "http://[/a.zip"))
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    done = threading.Event()
    home.cut, home.then = 500, lambda: done.wait(60)
    refused(run, "timed out", "run the same command again to go on")
    done.set()
    assert {path.name for path in (tmp_path / "datasets").iterdir()} <= {"train291.part", "train291.part.json"}


@pytest.mark.parametrize("to", ["/proc/nowhere", "a_file"])
def test_a_folder_that_cannot_be_written(run, tmp_path, home, to):
    (tmp_path / "a_file").write_text("")
    refused(run, f"{to}: ", flags=("train291", "--to", to))
    assert home.requests == []


# ---- --from ----------------------------------------------------------------------------------------


def test_an_archive_that_was_downloaded_by_hand(run, tmp_path, home):
    path = tmp_path / "mine.zip"
    path.write_bytes(home.archives["/train_data.zip"])
    assert fetched(run, tmp_path, "train291", "--from", path) == trained()
    assert path.exists() and home.requests == []
    path.write_bytes(b"broken")
    refused(run, "mine.zip: is not a whole zip or tar archive", flags=("div2k", "--from", path))
    assert path.read_bytes() == b"broken"


@pytest.mark.parametrize("flags, word", [
    ("train291 --from=nowhere.zip", "--from nowhere.zip"), ("train291 --from=file:///etc/passwd", "--from file:"),
    ("train291 --from=ftp://127.0.0.1/a.zip", "--from ftp:"), ("train291 --from=.", "--from ."),
    ("all --from=a.zip", "--from a.zip"), ("train291 --from=", "--from: is empty"), ("div2k --to=", "--to: is empty"),
    ("set5", "set5"), ("", "set"), ("all --upto=x", "--upto"),
])
def test_flags(run, home, flags, word):
    assert_refused(run(download, *flags.split()), word)
    assert home.requests == []


def test_the_command_for_messages():
    assert download.download_command("train291", "datasets") == "python -m data.download train291 --to datasets"
    assert download.download_command("benchmark", Path("my data")).endswith("benchmark --to 'my data'")
