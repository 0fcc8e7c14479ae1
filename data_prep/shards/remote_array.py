"""Arrays in files on object storage: fetched into the local cache on first read, then memory-mapped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.file_cache import FileCache
from t5_pipeline.data_prep.shards.checked_array import CheckedArray


class RemoteArrayPool:
    """The remote arrays of one process. It protects files in use from eviction and unmaps evicted files."""

    def __init__(self, cache: FileCache | None = None) -> None:
        self.cache = cache or FileCache()
        self.cache.before_evicting = self._touch_used_files
        self.clock = itertools.count(1)
        self._mapped: list[RemoteArray] = []
        self._touched_at = 0

    def array(self, url: str, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None) -> RemoteArray:
        return RemoteArray(self, url, dtype, size, blocks)

    def register(self, array: RemoteArray, path: Path) -> None:
        """Record that `array` has mapped the cached file `path`, and release the arrays of evicted files."""
        array.path = path
        evicted = [other for other in self._mapped if not other.path.is_file()]
        for other in evicted:
            other.release()
        self._mapped = [*(other for other in self._mapped if other not in evicted), array]

    def _touch_used_files(self) -> None:
        """Touch the files used since the last call, least recently used first."""
        for array in sorted(self._mapped, key=lambda array: array.used_at):
            if array.used_at > self._touched_at:
                self.cache.touch(array.path)
        self._touched_at = next(self.clock)


class RemoteArray:
    """A CheckedArray of the file at a URL."""

    def __init__(
        self, pool: RemoteArrayPool, url: str, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None
    ) -> None:
        self.pool = pool
        self.url = url
        self.dtype = dtype
        self.size = size
        self.blocks = blocks
        self.path = Path()
        self.used_at = 0  # by the pool's clock
        self._array: CheckedArray | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Numbers start … stop−1, a view of the cached file.

        Raises:
            InputError: if the file cannot be fetched or is damaged.
        """
        if start >= stop:
            return np.zeros(0, dtype=self.dtype)
        array = self._array
        if array is None:
            array = self._array = self.pool.cache.open(
                self.url, self.size * self.dtype.itemsize, self.blocks, self._open
            )
            self.pool.register(self, array.path)
        self.used_at = next(self.pool.clock)
        return array.read(start, stop)

    def release(self) -> None:
        """Drop the mapping; the file is unmapped once no view of it is in use."""
        self._array = None

    def _open(self, path: Path) -> CheckedArray:
        remedy = f"remove it and run again to fetch {self.url} again"
        return CheckedArray(path, self.dtype, self.size, self.blocks, remedy)
