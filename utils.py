"""What both scripts share: clear errors, one seed for everything, files written whole, the device."""

import ctypes
import errno
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
import tarfile
import traceback
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
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

    1: a bug, with its traceback; 2: InputError, a file that cannot be used or too little memory; 3: NotFinite;
    4: another process of the run is gone; 128 + number: ended by a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what a terminal cannot show
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    code = 0
    try:
        main(args)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        code, line = _explain(error, several)
        if line:
            which = f" (process {os.environ.get('RANK', 0)})" if several else ""
            print(f"{Path(sys.argv[0]).name}{which}: {line}", file=sys.stderr)
        elif several:
            traceback.print_exc()
        else:
            raise
    if code and several:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # sys.exit would wait for the other processes
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would abort the interpreter as it ends
    if code:
        sys.exit(code)


def _explain(error, several):
    """(exit code, what went wrong in one line; None for a bug). several: whether the run has more processes."""
    words = str(error)
    if isinstance(error, InputError):
        return 2, f"error: {words}"
    if isinstance(error, OSError):
        return 2, f"error: {error.filename or 'a file'}: {error.strerror or words}"
    if isinstance(error, NotFinite):
        return 3, f"error: {words}; the weights were not touched, and a checkpoint from before is kept"
    if isinstance(error, Stopped):
        number, resumable = error.args
        advice = "; to go on, add --resume=auto to the same command" if resumable else ""
        return 128 + number, f"stopped by {signal.Signals(number).name}{advice}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    # PyTorch's words for it, on CUDA and on the CPU
    scarce = isinstance(error, RuntimeError) and any(
        phrase in words for phrase in ("out of memory", "allocate memory", "enough memory"))
    if scarce or isinstance(error, MemoryError):
        return 2, "error: out of memory; lower --batchSize, --n_feats, --latent or the size of the images"
    if several and isinstance(error, RuntimeError) and any(name in words for name in ("gloo", "Gloo", "NCCL")):
        return 4, ("error: another process of the run is gone, its own message says why; to go on, add "
                   "--resume=auto to the same command")
    return 1, None


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


def _flush(file):
    """Flush an open file to the disk, where its file system can: some network and FUSE mounts cannot."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


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
            _flush(file)
        if keep and path.exists():
            keep.unlink(missing_ok=True)
            try:
                os.link(path, keep)  # not renamed: at every moment there is something at `path`
            except OSError:  # a file system without links
                shutil.copyfile(path, keep)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    with suppress(OSError):  # the file is there; Windows and some mounts cannot flush the folder as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append_line(path, line):
    """Append a line of text to the file `path` and flush it to disk. Raises InputError."""
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
            _flush(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_atomically(content, path, keep=None):
    """torch.save, atomically; `keep` as in write_atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), keep)


def read_checkpoint(path):
    """What torch.save or safetensors wrote to `path`, on the CPU. Never runs code from the file. Raises InputError.

    Objects other than tensors and plain containers come as StandIn.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such checkpoint file'}")
    if foreign := _no_checkpoint(path):
        raise InputError(f"{path}: is {foreign}")
    try:
        with open(path, "rb") as file:
            if file.read(9)[8:] == b"{":  # a header in JSON after its length
                return _read_safetensors(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def _no_checkpoint(path):
    """What the file `path` is, where it is no checkpoint: words, or None."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty; the download has failed, perhaps"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page (HTML or XML), not a checkpoint; download the file itself"
    for start, kind in (
        (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; fetch that with `git lfs pull`"),
        (b"\x89HDF\r\n", "an HDF5 file (Keras or MATLAB), not one of PyTorch"),
        (b"\x1f\x8b", "compressed by gzip; unpack it first"),
        (b"BZh", "compressed by bzip2; unpack it first"),
        (b"\xfd7zXZ", "compressed by xz; unpack it first"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
        (b"Rar!", "a RAR archive; unpack it first"),
    ):
        if head.startswith(start):
            return kind
    if tarfile.is_tarfile(path):
        return "a tar archive; unpack it and give the checkpoint in it"
    if zipfile.is_zipfile(path):  # whose checksums torch.load does not look at
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.partition("/")[2] for name in archive.namelist()}
                if "constants.pkl" in names:
                    return "a TorchScript program, not a checkpoint; save the state_dict() of its network"
                if "data.pkl" not in names:
                    return f"a zip archive of {archive.namelist()[:3]}; unpack it and give the checkpoint in it"
                if damaged := archive.testzip():
                    return f"damaged, at {damaged}"
        except Exception as error:  # of zipfile and zlib, which have many
            return f"damaged ({error})"
    return None


def _read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: is a safetensors file; to read it, pip install safetensors") from None
    return load_file(path)


class StandIn(dict):
    """In place of every object in a pickle but tensors and plain containers: it does nothing.

    A dict, so that what a subclass of dict holds is there; `state` is what the object's __dict__ would be.
    """

    stands_for, state = "", {}

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}

    def append(self, item):
        """What a list or set of a class of one's own holds is not kept."""

    add = append
    __hash__, __eq__ = object.__hash__, object.__eq__


class _Tensor:
    """Called as torch._utils._rebuild_tensor is. Without attributes, so that a pickle cannot change what it does."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *_):
        return torch._utils._rebuild_tensor(storage, offset, size, stride)


class _Parameter:
    """The tensor that a parameter is."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _InertPickle:
    """A pickle module for torch.load that calls nothing from outside this list, whatever the file asks for.

    In Python, as C's unpickler takes extension codes from a cache without asking find_class.
    """

    ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch._utils", "_rebuild_tensor"): _Tensor(),
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
        ("torch._utils", "_rebuild_parameter"): _Parameter(),
        ("torch._utils", "_rebuild_parameter_with_state"): _Parameter(),
        ("torch.nn.parameter", "Parameter"): _Parameter(),  # before PyTorch 0.4
        ("torch.autograd.variable", "Variable"): _Parameter(),
    }

    class Unpickler(pickle._Unpickler):
        def find_class(self, module, name):
            allowed = _InertPickle.ALLOWED.get((module, name))
            return allowed or type("StandIn", (StandIn,), {"stands_for": f"{module}.{name}"})

        def get_extension(self, code):
            raise pickle.UnpicklingError("it uses extension codes")

        def __setattr__(self, name, value):
            # torch.load's persistent_load compares a "module" with its source, and can write what differs to a file
            if name == "persistent_load":
                super().__setattr__(name, lambda saved: saved[1] if saved[0] == "module" else value(saved))
            else:
                super().__setattr__(name, value)

    @staticmethod
    def load(file, **options):
        return _InertPickle.Unpickler(file, **options).load()


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
    """Indented JSON, atomically. ASCII, so that names that are no Unicode survive."""
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode("ascii"))


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
    name = platform.machine()
    with suppress(OSError, StopIteration):  # only Linux has this file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def git_revision():
    """The commit of this repository, with -dirty where files differ; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
