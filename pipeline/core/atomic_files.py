"""Atomic file writes: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import math
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from t5_pipeline.core.errors import InputError, errno_of, write_error
from t5_pipeline.core.printable import finish_stdout, show_bytes

STDOUT = "-"
_ABANDONED_AFTER_S = 24 * 3600.0
# AT_FDCWD and RENAME_EXCHANGE of Linux.
_WORKING_DIRECTORY, _EXCHANGE = -100, 2


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_tree(path: Path) -> None:
    """fsync every file and directory below `path`."""
    for directory, _, names in os.walk(path):
        for name in names:
            fsync_file(Path(directory, name))
        fsync_directory(Path(directory))


def write_text(path: Path, text: str) -> None:
    """Atomically replace a file with this text; a reader sees the old or the new content."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically replace a file with these bytes."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def check_output(output: str | Path) -> None:
    """Check the value of `--output` before any work: a file, `-`, a character device or a FIFO.

    Raises:
        InputError: if it is a directory or cannot be written.
    """
    path = Path(output)
    if str(output) == STDOUT:
        return
    if path.exists() and not path.is_file():
        fits = is_stream(path) and os.access(path, os.W_OK)
    else:
        folder = Path(os.path.realpath(path)).parent
        fits = folder.is_dir() and os.access(folder, os.W_OK)
    if not fits:
        raise InputError(
            f"--output: cannot write {output}; give a file in an existing writable directory, or - for stdout"
        )


def write_output(output: str | Path, content: bytes) -> None:
    """Write what a command was asked for with `--output`.

    `-` is the standard output. Character devices and FIFOs are written to. Files are replaced atomically; if the path
    is a symbolic link, its target is replaced.

    Raises:
        InputError: if it is a directory or cannot be written.
    """
    with open_output(output) as write:
        write(content)


@contextlib.contextmanager
def open_output(output: str | Path, partial: Path | None = None, keep: int = 0) -> Iterator[Callable[[bytes], None]]:
    """Write what a command was asked for with `--output` piece by piece, as `write_output` does at once.

    A piece is out, or safe on disk, when the call returns. A file is replaced when the block ends; until then it grows
    under another name.

    Args:
        partial: the other name; this file stays if the block raises an exception (default: a temporary file).
        keep: bytes at the beginning of an existing `partial` to continue after.

    Raises:
        InputError: if the output cannot be written, or another process writes `partial` or has finished it since its
            first `keep` bytes were read.
    """
    check_output(output)
    try:
        if str(output) == STDOUT:
            yield _write_stdout
        elif is_stream(Path(output)):
            with Path(output).open("wb") as stream:
                yield functools.partial(_send, stream)
        elif partial is None:
            path = Path(os.path.realpath(output))
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with temporary.open("wb") as file:
                    yield functools.partial(_append, file)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            fsync_directory(path.parent)
        else:
            path = Path(os.path.realpath(output))
            with partial.open("ab") as file:
                _lock(file, output)
                # The lock is kept until the end: whoever gets it next must see that `partial` is another file, or none.
                try:
                    _check_unfinished(file, partial, keep, output)
                    file.truncate(keep)
                    yield functools.partial(_append, file)
                    partial.rename(path)
                finally:
                    if not os.fstat(file.fileno()).st_size and _is_open(file, partial):
                        partial.unlink()
            fsync_directory(path.parent)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(output, error) from error


def _lock(file: IO[bytes], output: str | Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"--output: another process is writing {output}; wait for it, or choose another file"
        ) from None
    except OSError:  # the file system does not support locks
        return


def _check_unfinished(file: IO[bytes], partial: Path, keep: int, output: str | Path) -> None:
    """Check that no process renamed or removed a partial file before it was opened and locked here."""
    if not _is_open(file, partial) or os.fstat(file.fileno()).st_size < keep:
        raise InputError(f"--output: another process was just writing {output}; run the same command again")


def _is_open(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _append(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(content)  # buffered: the operating system may take only a part, as after SIGSTOP and SIGCONT
    stream.flush()


def _write_stdout(content: bytes) -> None:
    show_bytes(content)
    finish_stdout()


def is_stream(path: Path) -> bool:
    """Whether a path is a character device or a FIFO."""
    if not path.exists():
        return False
    mode = path.stat().st_mode
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def write_directory(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary directory with `fill(directory)`, then move it to `path`, replacing an existing directory.

    Missing parents are created.

    Raises:
        InputError: if it cannot be written.
    """
    path = path.absolute()  # so that "." has a name
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        move_directory(temporary, path)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or errno_of(error) is not None:
            raise write_error(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_directory(source: Path, path: Path) -> None:
    """Move a complete directory to `path`, replacing an existing directory.

    After an interruption, the old or the new one is at `path`; where the file system cannot exchange two directories,
    there may be none. If several processes do this at once, the last one wins.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):  # asked once: another process may move it in between
            raise InputError(f"{path}: is not a directory; move it away, or choose another path")
    fsync_tree(source)
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        while not _moved(source, path):
            shutil.rmtree(old, ignore_errors=True)  # another process has just published there
            with contextlib.suppress(FileNotFoundError):  # another process is replacing it, too
                if _exchanged(source, path):
                    old = source
                    break
                path.rename(old)
    except BaseException:
        with contextlib.suppress(OSError):  # nothing was replaced
            old.rename(path)
        raise
    fsync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _moved(source: Path, path: Path) -> bool:
    """Rename a directory, unless there is one with content at `path`."""
    try:
        source.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchanged(source: Path, path: Path) -> bool:
    """Exchange two directories in one step, if the operating system and the file system can (Linux: renameat2(2))."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(_WORKING_DIRECTORY, os.fsencode(source), _WORKING_DIRECTORY, os.fsencode(path), _EXCHANGE) == 0


def sweep(directory: Path) -> None:
    """Remove temporary files of killed writers, at any depth. Only the process with the lock may call this."""
    for place, folders, files in os.walk(directory):
        removed = _remove_temporary(Path(place), [*folders, *files])
        folders[:] = [name for name in folders if name not in removed]


def sweep_shared(directory: Path) -> None:
    """Remove temporary files of killed writers from a directory to which commands also write without the lock.

    Files younger than a day may belong to a running command, so they stay. Subdirectories are left alone.
    """
    _remove_temporary(directory, [path.name for path in directory.iterdir()], time.time() - _ABANDONED_AFTER_S)


def _remove_temporary(directory: Path, names: Iterable[str], before: float = math.inf) -> set[str]:
    """Remove the temporary files and directories that were last changed before a time; return their names."""
    removed = set()
    for path in (directory / name for name in names if name.startswith(".") and name.endswith(".tmp")):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime >= before:
                continue
            removed.add(path.name)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    return removed
