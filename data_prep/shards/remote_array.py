"""Arrays in files on object storage: fetched into the local cache when they are first read, then memory-mapped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.file_cache import FileCache
from t5_pipeline.data_prep.shards.checked_array import CheckedArray


class RemoteArrays:
    """The arrays of one process that share its cache: those it uses stay there, those that were removed are let go."""

    def __init__(self, cache: FileCache | None = None) -> None:
        self.cache = cache or FileCache()
        self.cache.before_evicting = self._tell
        self.clock = itertools.count(1)
        self._mapped: list[RemoteArray] = []
        self._told = 0

    def array(self, url: str, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None) -> RemoteArray:
        return RemoteArray(self, url, dtype, size, blocks)

    def mapped(self, array: RemoteArray, path: Path) -> None:
        """Note that an array has its file open, and let go of files that were removed from the cache meanwhile."""
        array.place = path
        gone = [one for one in self._mapped if not one.place.is_file()]
        for one in gone:
            one.let_go()
        self._mapped = [*(one for one in self._mapped if one not in gone), array]

    def _tell(self) -> None:
        """Which files were used since the last time, in the order in which they were used last."""
        for array in sorted(self._mapped, key=lambda one: one.used):
            if array.used > self._told:
                self.cache.touch(array.place)
        self._told = next(self.clock)


class RemoteArray:
    """As CheckedArray, of a file at a URL. InputError from `read` if it cannot be fetched or is damaged."""

    def __init__(
        self, company: RemoteArrays, url: str, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None
    ) -> None:
        self.company = company
        self.url = url
        self.dtype = dtype
        self.size = size
        self.blocks = blocks
        self.place = Path()
        self.used = 0  # when, by the clock of its company
        self._array: CheckedArray | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Numbers start … stop−1: a view of the cached file."""
        if start >= stop:
            return np.zeros(0, dtype=self.dtype)
        array = self._array
        if array is None:
            array = self._array = self.company.cache.open(
                self.url, self.size * self.dtype.itemsize, self.blocks, self._open
            )
            self.company.mapped(self, array.path)
        self.used = next(self.company.clock)
        return array.read(start, stop)

    def let_go(self) -> None:
        """Unmap the file, once nothing that was read of it is in use."""
        self._array = None

    def _open(self, path: Path) -> CheckedArray:
        mend = f"it is a copy of {self.url}, remove it and run again"
        return CheckedArray(path, self.dtype, self.size, self.blocks, mend)
