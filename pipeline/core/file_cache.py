"""Bounded local cache of remote files, by any URL that fsspec supports (s3://, gs://, hf://, file://, …).

A file is fetched whole when it is first opened, and compared with its checksums on the way. The least recently used
files are evicted. The processes of a machine share the cache: each file has a lock and appears by rename. On Linux an
evicted file stays readable to processes that have mapped it, and its space is freed once they unmap it.

    T5_PIPELINE_CACHE        directory of the cache (default: ~/.cache/t5-pipeline)
    T5_PIPELINE_CACHE_GB     maximum size of the fetched files in GB (default: 100)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from t5_pipeline.core import checksums
from t5_pipeline.core.errors import InputError, one_line

_LOCKS = 256

Opened = TypeVar("Opened")


def is_url(location: str) -> bool:
    """Whether a location is a URL, not a path.

    >>> is_url("s3://bucket/c4/tokens"), is_url("runs/c4/tokens")
    (True, False)
    """
    return "://" in location


def cache_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("T5_PIPELINE_CACHE") or f"{cache}/t5-pipeline").expanduser().absolute()


def cache_bytes() -> int:
    """Size limit from the environment.

    Raises:
        InputError: if it is not a positive number.
    """
    given = os.environ.get("T5_PIPELINE_CACHE_GB", "100")
    try:
        size = int(float(given) * 1e9)
        if size > 0:
            return size
    except (ValueError, OverflowError):  # nan, inf
        pass
    raise InputError(f"T5_PIPELINE_CACHE_GB: must be a positive number of GB, not {given!r}")


def read_small(url: str, where: str, limit: int) -> bytes | None:
    """Content of a small file; None if it does not exist.

    Raises:
        InputError: if it cannot be read, or has more than `limit` bytes.
    """
    with remote_errors(url, where):
        try:
            with _open(url) as file:
                content = bytes(file.read(limit + 1))
        except FileNotFoundError:
            return None
    if len(content) > limit:
        raise InputError(f"{where}: {url} has more than {limit:,} bytes; check the URL")
    return content


def _open(url: str) -> Any:
    import fsspec

    return fsspec.open(url, "rb")


@contextlib.contextmanager
def remote_errors(url: str, where: str, verb: Literal["read", "write"] = "read") -> Iterator[None]:
    """Turn the exceptions of fsspec and its stores, except FileNotFoundError, into InputErrors of one line."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except ImportError as error:
        raise InputError(f"{where}: {url} needs a package that is not installed ({error})") from None
    except Exception as error:  # each store has its own exceptions
        reason = one_line(error)
        raise InputError(f"{where}: cannot {verb} {url} ({reason}); check the URL and your credentials") from None


class FileCache:
    """Fetched files, at most `limit` bytes in total, in a directory that several processes may share.

    A process waits for space while other processes fetch or open their files.

    Attributes:
        before_evicting: called before files are evicted; it must `touch` the files that are in use.
    """

    before_evicting: Callable[[], None] | None = None

    def __init__(self, directory: Path | None = None, limit: int | None = None) -> None:
        self.directory = directory or cache_directory() / "files"
        self.limit = limit or cache_bytes()

    def place(self, url: str, size: int, blocks: Sequence[str] | None) -> Path:
        """Path of a file in the cache, derived from its content."""
        name = hashlib.sha256(json.dumps([None if blocks else url, size, blocks]).encode()).hexdigest()
        return self.directory / name[:32]

    def open(self, url: str, size: int, blocks: Sequence[str] | None, open_: Callable[[Path], Opened]) -> Opened:
        """Fetch a file if needed and call `open_` with its local path; it is not evicted meanwhile.

        Args:
            size: bytes of the file.
            blocks: its block checksums; None if unknown.

        Raises:
            InputError: if it cannot be fetched, is damaged, or is larger than the cache.
        """
        place = self.place(url, size, blocks)
        with self._locked(place):
            if not place.is_file() or place.stat().st_size != size:
                if size > self.limit:
                    raise InputError(
                        f"{url}: has {size:,} bytes, more than the cache's limit of {self.limit:,}; raise"
                        " T5_PIPELINE_CACHE_GB"
                    )
                temporary = place.with_name(f"{place.name}.tmp")
                self._reserve(temporary, size)
                try:
                    self._fetch(url, size, blocks, temporary)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
                with self._lock_file("room", wait=True):  # a process that adds up sizes sees one of the two names
                    temporary.rename(place)
            self.touch(place)
            return open_(place)

    def touch(self, place: Path) -> None:
        """Mark a file as used most recently, if it is still in the cache."""
        now = time.time_ns()  # finer than the file system's own clock
        with contextlib.suppress(FileNotFoundError):
            os.utime(place, ns=(now, now))

    def _fetch(self, url: str, size: int, blocks: Sequence[str] | None, temporary: Path) -> None:
        read = number = 0
        with remote_errors(url, "the cache"), temporary.open("r+b") as to:
            try:
                with _open(url) as file:
                    while block := _whole_block(file):
                        if blocks is not None and (
                            number >= len(blocks) or hashlib.sha256(block).hexdigest() != blocks[number]
                        ):
                            raise InputError(
                                f"{url}: block {number + 1} of {len(blocks)} is damaged; upload the file again"
                            )
                        to.write(block)
                        read, number = read + len(block), number + 1
            except FileNotFoundError:
                raise InputError(f"{url}: does not exist; upload the file again") from None
            if read != size:
                raise InputError(f"{url}: is not {size:,} bytes long; upload the file again")
            to.flush()
            os.fsync(to.fileno())

    def _reserve(self, temporary: Path, size: int) -> None:
        """Create the temporary file at its full size once there is space, so that other processes count it."""
        while True:
            with self._lock_file("room", wait=True):
                temporary.unlink(missing_ok=True)  # of a process that was killed
                if self._make_room(size, temporary):
                    with temporary.open("wb") as file:
                        file.truncate(size)
                    return
            # The remaining files are being fetched or opened by other processes; wait for them.
            time.sleep(0.01)

    def _make_room(self, size: int, place: Path) -> bool:
        """Evict least recently used files until there is space; False if other processes lock too many."""
        files = self._files()
        if sum(stat.st_size for _, stat in files) + size > self.limit and self.before_evicting is not None:
            self.before_evicting()
            files = self._files()
        total = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if total + size <= self.limit:
                break
            # The lock that this process holds may guard this file, too.
            ours = _lock_of(path) == _lock_of(place)
            lock = contextlib.nullcontext() if ours else self._locked(path, wait=False)
            with contextlib.suppress(BlockingIOError), lock:
                path.unlink(missing_ok=True)
                total -= stat.st_size
        return total + size <= self.limit

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.directory.iterdir():
            if path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    found.append((path, path.stat()))
        return found

    def _locked(self, place: Path, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        return self._lock_file(_lock_of(place), wait)

    @contextlib.contextmanager
    def _lock_file(self, name: str, wait: bool) -> Iterator[None]:
        locks = self.directory / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"cannot write {self.directory} ({error.strerror}); set T5_PIPELINE_CACHE to a writable directory"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError as error:
                raise InputError(
                    f"{self.directory}: the file system does not support locks ({error.strerror}), without which"
                    " processes cannot share a cache; set T5_PIPELINE_CACHE to a directory on a local disk"
                ) from None
            yield
        finally:
            os.close(descriptor)


def _lock_of(place: Path) -> str:
    """Name of the lock of a file and its temporary file."""
    return str(int(place.name[:8], 16) % _LOCKS)


def _whole_block(file: Any) -> bytes:
    """The next 16 MiB block; a remote file may return fewer bytes than requested."""
    parts: list[bytes] = []
    left = checksums.BLOCK
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
