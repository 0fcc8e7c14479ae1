"""Token shards on object storage: a URL that fsspec knows (s3://, gs://, hf://, file://, …), and a local cache of it.

What is small is copied when the location is looked at, into a directory that stands for the remote one:

    CACHE/tokens/DIGEST/tokens.json, tokenizer/      with `remote`, where the shards lie

Their files are fetched whole, the first time that something in one is read, and compared with their checksums on the
way. Those used least recently make room for others. Processes of one machine share the cache: each file has a lock, and
appears by rename. On Linux a file that is removed stays readable to those who have mapped it, and its room is free once
they have let go.

    T5_PIPELINE_CACHE        the cache; ~/.cache/t5-pipeline
    T5_PIPELINE_CACHE_GB     what the fetched files may take, in GB; 100
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
from typing import Any, TypeVar

from t5_pipeline.core import checksums
from t5_pipeline.core.errors import InputError

_LOCKS = 256

Opened = TypeVar("Opened")


def is_url(location: str) -> bool:
    """
    >>> is_url("s3://bucket/c4/tokens"), is_url("runs/c4/tokens")
    (True, False)
    """
    return "://" in location


def cache_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("T5_PIPELINE_CACHE") or f"{cache}/t5-pipeline").expanduser().absolute()


def cache_bytes() -> int:
    """InputError if the environment does not give a number."""
    given = os.environ.get("T5_PIPELINE_CACHE_GB", "100")
    try:
        size = float(given)
        if size > 0:
            return int(size * 1e9)
    except ValueError:
        pass
    raise InputError(f"T5_PIPELINE_CACHE_GB: must be a number of GB above 0, not {given!r}")


def read_small(url: str, where: str) -> bytes | None:
    """Content of a small file; None where there is none."""
    with _reasons(url, where):
        try:
            with _open(url) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None


def _open(url: str) -> Any:
    import fsspec

    return fsspec.open(url, "rb")


@contextlib.contextmanager
def _reasons(url: str, where: str) -> Iterator[None]:
    """Whatever fsspec and the stores behind it raise, as one line."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except ImportError as error:
        raise InputError(f"{where}: {url} needs a package that is not installed ({error})") from None
    except Exception as error:  # each store has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: {url} cannot be read ({reason}); see to the address and to what it takes") from None


class FileCache:
    """Files fetched by URL, of at most `limit` bytes together, in a directory that several processes may share.

    A process for whose file there is no room waits while the others are at theirs.

    before_evicting  called before files are removed: says which are in use, by `touch`
    """

    def __init__(
        self, directory: Path | None = None, limit: int | None = None, before_evicting: Callable[[], None] | None = None
    ) -> None:
        self.directory = directory or cache_directory() / "files"
        self.limit = limit or cache_bytes()
        self.before_evicting = before_evicting

    def place(self, url: str, size: int, blocks: Sequence[str] | None) -> Path:
        """Where a file lies when it is here; its name says its content."""
        name = hashlib.sha256(json.dumps([None if blocks else url, size, blocks]).encode()).hexdigest()
        return self.directory / name[:32]

    def open(self, url: str, size: int, blocks: Sequence[str] | None, open_: Callable[[Path], Opened]) -> Opened:
        """`open_` of the file at `url`, which has `size` bytes and these checksums (None: no one knows them).

        While `open_` runs, nobody removes the file.

        Raises:
            InputError: it cannot be fetched, is damaged, or is larger than the cache.
        """
        place = self.place(url, size, blocks)
        with self._locked(place):
            if not place.is_file() or place.stat().st_size != size:
                if size > self.limit:
                    raise InputError(
                        f"{url} has {size:,} bytes, more than the cache may hold ({self.limit:,}): raise"
                        " T5_PIPELINE_CACHE_GB"
                    )
                temporary = place.with_name(f"{place.name}.tmp")
                self._reserve(temporary, size)
                try:
                    self._fetch(url, size, blocks, temporary)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
                with self._lock_file("room", wait=True):  # whoever counts the files meets one of its two names
                    temporary.rename(place)
            self.touch(place)
            return open_(place)

    def touch(self, place: Path) -> None:
        """The file is used; if it is still here, it is the last to be removed."""
        now = time.time_ns()  # finer than the clock that the file system would take
        with contextlib.suppress(FileNotFoundError):
            os.utime(place, ns=(now, now))

    def _fetch(self, url: str, size: int, blocks: Sequence[str] | None, temporary: Path) -> None:
        read = number = 0
        with _reasons(url, "tokens"), temporary.open("r+b") as to:
            try:
                with _open(url) as file:
                    while block := _whole_block(file):
                        if blocks is not None and (
                            number >= len(blocks) or hashlib.sha256(block).hexdigest() != blocks[number]
                        ):
                            raise InputError(
                                f"{url}: block {number + 1} of {len(blocks)} is damaged, it is not what was written:"
                                " put the file there again"
                            )
                        to.write(block)
                        read, number = read + len(block), number + 1
            except FileNotFoundError:
                raise InputError(f"{url} is not there: put the token shards there again") from None
            if read != size:
                raise InputError(f"{url} is not {size:,} bytes long as it was written: put the file there again")
            to.flush()
            os.fsync(to.fileno())

    def _reserve(self, temporary: Path, size: int) -> None:
        """Make the temporary file as large as it will be, as soon as there is room for it.

        It then counts for every process, so that together they stay within the bound.
        """
        while True:
            with self._lock_file("room", wait=True):
                temporary.unlink(missing_ok=True)  # of a process that was killed
                if self._make_room(size, temporary):
                    with temporary.open("wb") as file:
                        file.truncate(size)
                    return
            # What is left is being fetched or opened by others, who will soon be done.
            time.sleep(0.01)

    def _make_room(self, size: int, place: Path) -> bool:
        """Remove what was used least recently until there is room; False where too much is locked by others."""
        files = self._files()
        if sum(stat.st_size for _, stat in files) + size > self.limit and self.before_evicting is not None:
            self.before_evicting()
            files = self._files()
        held = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if held + size <= self.limit:
                break
            # One and the same lock may guard it that this process holds already.
            ours = _lock_of(path) == _lock_of(place)
            lock = contextlib.nullcontext() if ours else self._locked(path, wait=False)
            with contextlib.suppress(BlockingIOError), lock:
                path.unlink(missing_ok=True)
                held -= stat.st_size
        return held + size <= self.limit

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
                f"{self.directory}: cannot be written ({error.strerror}); set T5_PIPELINE_CACHE to a directory that can"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(descriptor)


def _lock_of(place: Path) -> str:
    """Name of the lock of a file and of its temporary one."""
    return str(int(place.name[:8], 16) % _LOCKS)


def _whole_block(file: Any) -> bytes:
    """The next 16 MiB: a remote file may give less than it is asked for."""
    parts: list[bytes] = []
    left = checksums.BLOCK
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
