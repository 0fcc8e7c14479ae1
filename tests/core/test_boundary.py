"""Errors of the operating system, standard outputs that cannot be written, and limits of the process."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from t5_pipeline.core.boundary import boundary
from t5_pipeline.core.errors import InputError
from tests.tiny_run import COMMAND, Tiny


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/a"),
         "cannot write run/a (No space left on device); free some space and run again"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "run/a"),
         "cannot use run/a (Invalid cross-device link); keep the whole run on one file system"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"run/a"),
         "cannot use run/a (Is a directory); move the directory that is in the way, or choose another path"),
        (Exception('writing failed: Io(Os { code: 28 }) (os error 28)'),
         "cannot write to the disk (writing failed: Io(Os { code: 28 }) (os error 28)); free some space and run again"),
        (MemoryError(), "out of memory (no details); free some memory, or lower the batch size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.50"
                      " GiB is free. Process 7 has 77.60 GiB memory in use. If reserved but unallocated memory is large try"),
         "the GPU is out of memory (Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.50 GiB is"
         " free); end other programs on it (`nvidia-smi`), lower `microbatch_size` or the batch size, or set"
         " `recompute: true` or `cuda_graphs: false`"),
        (RuntimeError("NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
         "the GPU is out of memory ('out of memory'); end other programs on it (`nvidia-smi`), lower `microbatch_size` or"
         " the batch size, or set `recompute: true` or `cuda_graphs: false`"),
        (ImportError("libx.so: cannot open shared object file: Too many open files"),
         "cannot use a file (libx.so: cannot open shared object file: Too many open files); raise the number of open"
         " files with `ulimit -n 1024`"),
    ],
)  # fmt: skip
def test_one_line_for_errors_of_the_system(error: Exception, line: str) -> None:
    with pytest.raises(InputError) as raised, boundary():
        raise error
    assert str(raised.value) == line


def test_a_line_is_not_put_into_another_one() -> None:
    line = "cannot write run/model (an error (os error 28)); free some space and run again"
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"), boundary():
        raise InputError(line)


def test_names_that_are_not_utf8() -> None:
    with pytest.raises(InputError, match="is not UTF-8; rename the file"), boundary():
        "caf\udce9".encode()


def test_a_deleted_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with (
        pytest.raises(InputError, match=r"^the current directory was deleted; change to another directory$"),
        boundary(),
    ):
        raise AssertionError("a command has started")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), "x".encode])
def test_other_errors_keep_their_traceback(error: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)), boundary():
        raise error if isinstance(error, Exception) else TypeError


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("status RUN >/dev/full", 2, "cannot write the standard output (No space left on device); free some space"),
        ("status RUN 2>/dev/full", 0, ""),
        ("status /nowhere 2>/dev/full", 2, ""),
        ("status RUN >&-", 0, ""),
        ("status RUN | true", 0, ""),
        ("status RUN --json | head -c 1", 0, ""),
    ],
)
def test_standard_output(finished: Tiny, words: str, code: int, line: str) -> None:
    script = f"set -o pipefail; {shlex.quote(str(COMMAND))} {words.replace('RUN', shlex.quote(str(finished.run)))}"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=buffered)
    assert done.returncode == code, done
    assert done.stderr.startswith(f"error: {line}" if line else "")
    assert done.stderr.count("\n") == bool(line)


def test_few_open_files_and_ascii(finished: Tiny) -> None:
    script = f"ulimit -n 32; {COMMAND} status {finished.run}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2, "error: only 32 files may be open at a time; raise the limit with `ulimit -n 1024`\n"
    )  # fmt: skip
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "TMPDIR": "/proc"}
    words = [str(COMMAND), "plan", str(finished.recipe), "--run-dir", str(finished.run)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ascii_only)
    assert done.returncode == 0, done
    assert done.stdout.isascii()
