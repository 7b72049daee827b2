"""What both scripts share: clear errors, one seed for everything, files written whole, the device."""

import time

STARTED = time.time()  # before what takes long to import

import ctypes
import hashlib
import io
import json
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import torch


class InputError(Exception):
    """Something the user gave cannot be used; the message is the one line they read."""


class NotFinite(Exception):
    """A loss or gradient is not finite; the message says which."""


class Stopped(Exception):
    """A signal ended the run. Its arguments: the signal's number, and whether the run can be resumed."""


def run_script(main, args):
    """Run main(args). What goes wrong is one line on stderr and the exit code.

    2: InputError, a file that cannot be used or too little memory; 3: NotFinite; 4: another process of the run is
    gone; 128 + number: ended by a signal.
    """
    try:
        main(args)
        return
    except InputError as error:
        code, line = 2, f"error: {error}"
    except OSError as error:
        code, line = 2, f"error: {error.filename or 'a file'}: {error.strerror or error}"
    except NotFinite as error:
        code, line = 3, f"error: {error}; the weights were not touched, and a checkpoint from before is kept"
    except Stopped as stopped:
        number, resumable = stopped.args
        advice = "; to go on, add --resume=auto to the same command" if resumable else ""
        code, line = 128 + number, f"stopped by {signal.Signals(number).name}{advice}"
    except KeyboardInterrupt:
        code, line = 128 + signal.SIGINT, "interrupted"
    except (MemoryError, RuntimeError) as error:
        # PyTorch's words for it, on CUDA and on the CPU
        scarce = any(words in str(error) for words in ("out of memory", "allocate memory", "enough memory"))
        if scarce or isinstance(error, MemoryError):
            code, line = 2, "error: out of memory; lower --batchSize, --n_feats, --latent or the size of the images"
        elif int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(words in str(error) for words in ("gloo", "NCCL", "Gloo")):
            code, line = 4, ("error: another process of the run is gone, its own message says why; to go on, add "
                             "--resume=auto to the same command")
        else:
            raise
    which = f" (process {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"{Path(sys.argv[0]).name}{which}: {line}", file=sys.stderr, flush=True)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        os._exit(code)  # sys.exit would wait for the other processes
    sys.exit(code)


# ---- randomness ------------------------------------------------------------------------------------


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


# ---- files -----------------------------------------------------------------------------------------


def write_atomically(path, content, keep=None):
    """Write the bytes `content` beside `path`, flush them to disk, then rename to `path`.

    keep: what is at `path` so far stays under this name. Raises InputError, `path` untouched.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            keep.unlink(missing_ok=True)
            try:
                os.link(path, keep)  # not renamed: at every moment there is something at `path`
            except OSError:  # a file system without links
                shutil.copyfile(path, keep)
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        if beside.is_file():
            beside.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def append_line(path, line):
    """Append a line of text to the file `path` and flush it to disk. Raises InputError."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_atomically(content, path, keep=None):
    """torch.save, atomically; `keep` as in write_atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), keep)


def read_checkpoint(path):
    """What torch.save wrote to `path`, on the CPU. Never runs code from the file. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        if zipfile.is_zipfile(path):  # whose checksums torch.load does not look at
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise InputError(f"{path}: is damaged, at {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: not a file of plain tensors (a pickled module, perhaps, which would run code); "
            "save model.state_dict() with torch.save and give that file"
        ) from None
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def save_model(model, path):
    """Write `model`'s weights and architecture to `path`, atomically; models.load.load_model reads it."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_atomically({"config": model.config, "state_dict": weights}, path)


def fingerprint(model):
    """A short digest of a network's weights, to tell whether two are the same."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_json(content, path):
    """Indented JSON, atomically."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, text.encode())


# ---- the device ------------------------------------------------------------------------------------


def choose_device(name):
    """The torch.device of --device; auto is CUDA where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # CUDA graphs are recorded on the current one
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def set_up_cpu(threads):
    """Use `threads` CPU threads (0: torch's choice), and let freed memory stay with the process.

    glibc hands every large tensor's memory back to the system, and the page faults of getting it again
    cost up to half of a small network's step on the CPU (mallopt M_TRIM_THRESHOLD, M_MMAP_THRESHOLD).
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**31 - 1)


def device_name(device):
    """The device in words, for results.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def git_revision():
    """The commit of this repository, with -dirty where files differ; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
