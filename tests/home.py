"""A server on this machine with archives of small images, for the tests of data.download."""

import io
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from data import download
from tests.helpers import assert_refused

COUNTS = {"train291": {"train291": 3}, "div2k": {"DIV2K/DIV2K_train_HR": 2},
          "benchmark": {f"benchmark/{name}/HR": 2 if name == "Set5" else 1
                        for name in ("Set5", "Set14", "B100", "Urban100")}}


def picture(seed, width=40, height=36, kind="PNG"):
    """The bytes of an image of noise. width and height: pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def zipped(files, method=zipfile.ZIP_DEFLATED):
    """A zip of {path or ZipInfo: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for path, content in files.items():
            file.writestr(path, content)
    return buffer.getvalue()


def tarred(files, *others):
    """A tar of {path: bytes} and of other members, (path, type, link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for path, kind, target in others:
            member = tarfile.TarInfo(path)
            member.type, member.linkname = kind, target
            file.addfile(member)
    return buffer.getvalue()


TRAIN = {"291/t1.png": picture(1), "291/2092.jpg": picture(2, kind="JPEG"), "291/t2.bmp": picture(3, kind="BMP")}
HR = {"Set5/HR/baby.png": picture(4), "Set5/HR/bird.png": picture(5), "Set14/HR/zebra.png": picture(6),
      "B100/HR/101085.png": picture(7), "Urban100/HR/img001.png": picture(8)}
LR = {"Set5/LR_bicubic/X2/babyx2.png": picture(9, 20, 18), "Set5/LR_bicubic/X2/birdx2.png": picture(10, 20, 18)}
BENCHMARK = {f"benchmark/{path}": content for path, content in (HR | LR).items()}
DIV2K = {"DIV2K_train_HR/0001.png": picture(11), "DIV2K_train_HR/0002.png": picture(12)}


class Home(BaseHTTPRequestHandler):
    """Serves server.archives, in the manner that the server's other attributes say."""

    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append(wanted)
        content, begin, status = server.archives.get(self.path, b""), 0, server.status
        if wanted and server.ranges and not (server.etag and self.headers["If-Range"] != server.etag):
            begin, status = int(wanted[len("bytes="):-1]), 206
            if begin >= len(content):
                content, begin, status = b"", 0, 416
        self.send_response(status)
        self.send_header("Content-Type", server.kind)
        if server.etag:
            self.send_header("ETag", server.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if server.announce:
            self.send_header("Content-Length", len(content) - begin)
        self.end_headers()
        self.wfile.write(content[begin:server.cut])
        server.then()

    def log_message(self, *args):
        pass


@contextmanager
def serving(monkeypatch):
    """A server with good archives, to which the table of sources points; smaller sets, smaller images."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Home)
    server.archives = {"/train_data.zip": zipped(TRAIN), "/benchmark.tar": tarred(BENCHMARK),
                       "/DIV2K_train_HR.zip": zipped(DIV2K)}
    server.status, server.kind, server.etag = 200, "application/octet-stream", '"first"'
    server.ranges, server.announce, server.cut, server.then = True, True, None, lambda: None
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}"
    sources = {name: replace(source, url=f"{server.url}/{Path(source.url).name}", folders=COUNTS[name], least=30)
               for name, source in download.SOURCES.items()}
    monkeypatch.setattr(download, "SOURCES", sources)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(files=TRAIN):
    return {f"train291/{Path(path).name}": content for path, content in files.items()}


def fetched(run, tmp_path, *flags):
    """What a download that must succeed leaves."""
    outcome = run(download, *flags)
    assert outcome.returncode == 0, outcome.stderr
    return contents(tmp_path / "datasets")


def refused(run, *words, flags=("train291",)):
    """A download that must fail in one line, with `words` and how to do it by hand."""
    outcome = run(download, *flags)
    assert_refused(outcome, "by hand: get http://", *words)
