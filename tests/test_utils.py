"""Files, text and exits on other machines: Windows, file systems that cannot flush, terminals without Unicode."""

import errno
import io
import json
import os
import sys
import warnings
from unittest import mock

import pytest
import torch

import utils
from utils import InputError, append_line, refusing, run_script, save_json, write_atomically

ODD = "\u0416\udcff"  # not in Latin-1; and a byte of a file name that is no UTF-8


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])  # others: test_interruption.py
def test_a_file_system_that_cannot_flush(monkeypatch, tmp_path, number):
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    write_atomically(tmp_path / "a", b"new\n")
    append_line(tmp_path / "a", "line")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"new\nline\n"}


@pytest.mark.parametrize("error, words", [
    (ValueError("a\nb"), "a.png: no image (ValueError: a); sorry"), (InputError("another line"), "another line"),
    (MemoryError(), "a.png: no image (MemoryError); sorry"), (OSError(28, "full"), "a.png: no image (full); sorry"),
    (OSError("\n"), "a.png: no image (OSError); sorry")])
def test_what_goes_wrong_is_refused_in_one_line(recwarn, error, words):
    with pytest.raises(InputError) as refused, refusing("a.png: no image", "; sorry"):
        warnings.warn("dropped")
        raise error
    assert str(refused.value) == words and not recwarn


def test_writing_refuses_no_bug_and_shows_no_warning_again(recwarn, tmp_path):
    seen = {}
    for write, content, bug in ((write_atomically, b"", "no bytes"), (append_line, "", b"no text")):
        with pytest.raises(TypeError):
            write(tmp_path / "a", bug)
        for _ in range(2):
            warnings.warn_explicit("once", UserWarning, __file__, 1, registry=seen)
            write(tmp_path / "a", content)
    assert len(recwarn) == 1


@pytest.mark.parametrize("encoding, shown", [("utf-8", "\u0416\\udcff"), ("cp1252", "\\u0416\\udcff")])
def test_names_that_the_terminal_or_a_file_cannot_show(monkeypatch, tmp_path, encoding, shown):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main(args):
        print(ODD)
        raise InputError(ODD)

    with pytest.raises(SystemExit):
        run_script(main, None)
    for stream in streams.values():
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding).strip().endswith(shown)
    save_json({ODD: ODD}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="ascii")) == {ODD: ODD}
    append_line(tmp_path / "a.txt", ODD)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "\u0416\\udcff\n"


@pytest.mark.parametrize("processes, error, ends", [
    (1, None, [0]), (1, MemoryError(), [2]), (1, utils.Stopped(2, True), [130]), (2, None, ["destroyed", 0]),
    (2, SystemExit(0), ["destroyed", 0]), (2, InputError("x"), [2]), (2, utils.NotFinite("x"), [3]),
    (2, RuntimeError("gloo: connection closed"), [4]), (2, KeyboardInterrupt(), [130]),
    (2, ZeroDivisionError("a bug"), [1])])
def test_how_one_of_several_processes_ends(monkeypatch, capsys, processes, error, ends):
    """Regularly without its process group, whose threads abort; else at once, without waiting for the others."""
    ended = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: not ended)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append("destroyed"))
    monkeypatch.setattr(os, "_exit", ended.append)
    main = mock.Mock(side_effect=error)
    if processes == 1:
        with pytest.raises(SystemExit) as stop:
            run_script(main, None)
        ended.append(stop.value.code)
    else:
        run_script(main, None)
    assert ended == ends
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_every_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    for several, words in (("1", "--device cuda:66: not usable here"), ("2", "more processes than the .* GPUs here")):
        for name, value in (("WORLD_SIZE", several), ("LOCAL_RANK", "77")):
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=words):
            utils.choose_device("cuda:66")
