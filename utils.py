"""What both scripts share: clear errors, one seed for everything, files written whole, the device."""

import ctypes
import errno
import hashlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class InputError(Exception):
    """Something the user gave cannot be used; the message is the one line they read."""


class NotFinite(Exception):
    """A loss or gradient is not finite; the message says which."""


class Stopped(BaseException):  # as KeyboardInterrupt: nobody else's `except Exception` is to catch it
    """A signal ended the run. Its arguments: the signal's number, and whether the run can be resumed."""


def run_script(main, args):
    """Run main(args). What goes wrong is one line on stderr and the exit code.

    1: a bug, with its traceback; 2: InputError, a file that cannot be used or too little memory; 3: NotFinite;
    4: another process of the run is gone; 128 + number: ended by a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")  # file names may hold what a terminal cannot show
    several, code = int(os.environ.get("WORLD_SIZE", 1)) > 1, 0
    try:
        main(args)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        code, line = _explain(error)
        which = f" (process {os.environ.get('RANK', 0)})" if several else ""
        print(f"{Path(sys.argv[0]).name}{which}: {line}" if line else traceback.format_exc(), file=sys.stderr)
    if not several:
        sys.exit(code)
    if not code and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(code or 0)  # sys.exit would wait for the others, and threads that are left may abort the interpreter


def _explain(error):
    """(exit code, what went wrong in one line; None for a bug)."""
    words, go_on = str(error), "; to go on, add --resume=auto to the same command"
    has = lambda phrases: isinstance(error, RuntimeError) and re.search(phrases, words)
    if isinstance(error, InputError):
        return 2, f"error: {words}"
    if isinstance(error, OSError):
        return 2, f"error: {error.filename or 'a file'}: {error.strerror or words}"
    if isinstance(error, MemoryError) or has("out of memory|allocate memory|enough memory"):  # PyTorch's words
        return 2, "error: out of memory; lower --batchSize, --n_feats, --latent or the size of the images"
    if isinstance(error, NotFinite):
        return 3, f"error: {words}; it did not reach the weights, and the last checkpoint, if any, is from before"
    if has("gloo|Gloo|NCCL"):
        return 4, f"error: another process of the run is gone, its own message says why{go_on}"
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        number, resumable = error.args or (signal.SIGINT, False)
        return 128 + number, f"stopped by {signal.Signals(number).name}{go_on if resumable else ''}"
    return 1, None


@contextmanager
def refusing(what, hint=""):
    """What goes wrong in the `with` block, of whatever kind, becomes the InputError "what (the reason, a line)hint".

    For readers of files that others made, and for code of others. An InputError passes as it is; warnings are dropped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            yield
    except InputError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".rstrip(": \n").splitlines()[0]
        raise InputError(f"{what} ({reason}){hint}") from None


def stream_seed(seed, *key):
    """A 63-bit seed for the stream named by `key` (strings and integers) of the run's `seed`."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_stream(seed, *key, device="cpu"):
    """A torch.Generator of its own for every key: what is random in a step depends on (seed, step) alone."""
    return torch.Generator(device).manual_seed(stream_seed(seed, *key))


def seed_everything(seed, *key):
    """Seed torch's global generators, from which networks are initialised."""
    torch.manual_seed(stream_seed(seed, *key))


def _flush(file):
    """Flush an open file to the disk, where its file system can: some network and FUSE mounts cannot."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_atomically(path, content):
    """Write the bytes `content` to the file `path`: all of them or, with an InputError, none."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            _flush(file)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def append_line(path, line):
    """Append a line of text to the file `path` and flush it to disk. Raises InputError."""
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
            _flush(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_atomically(content, path):
    """torch.save, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def save_model(model, path):
    """Write `model`'s weights and architecture to `path`, atomically; models.load.load_model reads it."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_atomically({"config": model.config, "state_dict": weights}, path)


def fingerprint(model):
    """A short digest of a network's weights, to tell whether two are the same."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_json(content, path):
    """Indented JSON, atomically. ASCII, so that names that are no Unicode survive."""
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode("ascii"))


def choose_device(name):
    """The torch.device of --device; auto is CUDA where there is one. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun's: a GPU for each process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise InputError(f"--nproc_per_node: more processes than the {torch.cuda.device_count()} GPUs here")
    with refusing(f"--device {name}: not usable here", "; try cpu"):
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    return device


def set_up_device(device, threads):
    """Make a GPU the current one; use `threads` CPU threads (0: torch's choice) and keep freed memory for reuse."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # CUDA graphs are recorded on the current one
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":  # page faults cost up to half of a small network's step
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: how large is what goes back to the system
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)


def device_name(device):
    """The device in words, for results.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo, threads = Path("/proc/cpuinfo"), torch.get_num_threads()  # only Linux has this file
    found = cpuinfo.exists() and re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8"))
    return f"{found[1] if found else platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def git_revision():
    """The commit of this repository, with -dirty where files differ; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"
