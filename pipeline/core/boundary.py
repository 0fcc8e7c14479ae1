"""The boundary of every command: errors of the operating system end it with one line and exit code 2.

Also prepares what a command needs of its process: a standard output that accepts any text, enough open files, and a
current directory that exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from t5_pipeline.core.errors import InputError, OutOfMemory, ProcessLost, errno_of, remedy, write_error
from t5_pipeline.core.printable import finish_stdout

_OPEN_FILES = 256  # a stage with its libraries, data and checkpoints
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# gloo, and torch's description of errors of NCCL.
_PEER = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Timed out waiting \d+ms|ncclRemoteError|ncclSystemError"
)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|Unable to allocate")
# Of torch, CUDA, cuBLAS and NCCL.
_NO_GPU_MEMORY = re.compile(r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|'out of memory'|STATUS_ALLOC_FAILED")


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """The context of a command.

    Raises:
        InputError: in place of errors of the operating system.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _allow_open_files()
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the current directory was deleted; change to another directory") from None
    try:
        yield
        finish_stdout()
    except SystemExit:  # after --help
        finish_stdout()
        raise
    except (InputError, BrokenPipeError):
        raise
    except Exception as error:
        found = input_error(error)
        if found is None:
            raise
        raise found from error


def input_error(error: BaseException) -> InputError | None:
    """The InputError for an error of the operating system; None for any other error.

    >>> print(input_error(OSError(errno.EISDIR, "Is a directory", "run/model")))
    cannot use run/model (Is a directory); move the directory that is in the way, or choose another path
    >>> print(input_error(RuntimeError("[…/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:61542")))
    lost the connection to another process (Connection closed by peer); run the same command to resume
    """
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and (found := _NO_GPU_MEMORY.search(text)):
        # torch's own message continues with advice about its allocator.
        sizes = re.search(r"Tried to allocate .*? is free", text)
        return OutOfMemory(
            f"the GPU is out of memory ({sizes[0] if sizes else found[0]}); end other programs on it (`nvidia-smi`),"
            " lower `microbatch_size` or the batch size, or set `recompute: true` or `cuda_graphs: false`"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return OutOfMemory(f"out of memory ({text or 'no details'}); free some memory, or lower the batch size")
    if isinstance(error, UnicodeEncodeError):
        return _not_utf8(error)
    if isinstance(error, RuntimeError) and (lost := _PEER.search(text)):
        return ProcessLost(f"lost the connection to another process ({lost[0]}); run the same command to resume")
    number = errno_of(error)
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in text:
        number = errno.EMFILE
    place = getattr(error, "filename", None)
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    if not isinstance(error, OSError) and number is None:
        return None
    if number in _WRITING:
        return write_error(place or "to the disk", error)
    reason = getattr(error, "strerror", None) or text
    return InputError(f"cannot use {place or 'a file'} ({reason}); {remedy(number)}")


def _not_utf8(error: UnicodeEncodeError) -> InputError | None:
    """For names of files that are not UTF-8, which Python represents by surrogates."""
    if not re.search(r"[\ud800-\udfff]", error.object):
        return None
    begin = max(error.start - 40, 0)
    return InputError(f"{error.object[begin : error.end + 40]}: is not UTF-8; rename the file, or fix the text")


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        raise InputError(f"only {hard} files may be open at a time; raise the limit with `ulimit -n 1024`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))
