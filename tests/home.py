"""A server on this machine that stands for the public homes of data.download: archives of their layout, tiny files."""

import gzip
import io
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler

from data import download

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


TRAIN = numbered("train_data/291/{}.bmp", 291)
BENCHMARK = {path: content for name, count in COUNTS.items()
             for files in (numbered(f"benchmark/{name}/HR/{{}}.png", count),
                           numbered(f"benchmark/{name}/LR_bicubic/X2/{{}}x2.png", count))
             for path, content in files.items()}
ARCHIVES = {download.EDSR: tarred(BENCHMARK),
    download.TRAIN291: zipped(TRAIN | numbered("train_data/91/{}.bmp", 91)),
    download.T91: zipped(numbered("T91/t{}.png", 91)),
    download.BSDS500: zipped({path: content for kind, count in (("test", 200), ("train", 200), ("val", 100)) for
                              path, content in numbered(f"m/BSDS500/data/images/{kind}/{{}}.jpg", count).items()}),
    download.DIV2K: zipped(numbered("DIV2K_train_HR/{}.png", 800)), download.TEACHER: WEIGHTS,
    **{download.SUPER_IMAGE.format(name): gzip.compress(tarred(numbered(f"{name}_HR/{{}}.png", count)))
       for name, count in (("Set5", 5), ("Set14", 14), ("BSD100", 100), ("Urban100", 100))}}


class Home(BaseHTTPRequestHandler):
    """Serves server.archives, of each `cut` bytes, and then what `then` does."""

    def do_GET(self):
        self.server.requests.append(self.path[1:])
        content = self.server.archives.get(self.path[1:].split("?")[0])
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write((content or b"")[:self.server.cut])
        self.server.then()

    def log_message(self, *args):
        pass
