"""Memory-mapped arrays whose 16 MiB blocks are verified against sha256 checksums before first use.

A block is read completely when a number of it is first requested in a process; later reads cost what the mapping costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.checksums import BLOCK
from t5_pipeline.core.errors import InputError


class CheckedArray:
    """An array in a file.

    Args:
        path: the file.
        dtype: type of the numbers.
        size: how many there are.
        blocks: sha256 of each 16 MiB (core.checksums); None disables verification.
        remedy: what to do about a damaged file; ends the error message.

    Raises:
        InputError: if the file has another size.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "numbers")
    >>> size = file.write_bytes(np.arange(4, dtype="<u2").tobytes())
    >>> CheckedArray(file, np.dtype("<u2"), 4, ["0" * 64], "write it again").read(1, 3)
    Traceback (most recent call last):
    t5_pipeline.core.errors.InputError: ...numbers: block 1 of 1 is damaged; write it again
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None, remedy: str) -> None:
        self.path = path
        self.remedy = remedy
        self.size = size
        if not path.is_file() or path.stat().st_size != size * dtype.itemsize:
            raise InputError(f"{path}: is damaged (it should have {size * dtype.itemsize:,} bytes); {remedy}")
        # A plain array over the mapping, because slicing a np.memmap is slow. An empty file cannot be mapped.
        mapped = np.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else np.zeros(0, dtype=dtype)
        self._array = np.asarray(mapped)
        self._per_block = BLOCK // dtype.itemsize
        self._blocks = blocks
        # One byte per block, not one bit: bytes are written atomically, so threads need no lock. At worst two threads
        # verify the same block.
        self._verified = bytearray(-(-size // self._per_block)) if blocks is not None else None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Numbers start … stop−1, a view of the file.

        Raises:
            InputError: if a block of them is damaged.
        """
        verified = self._verified
        if verified is not None and start < stop:
            first, last = start // self._per_block, (stop - 1) // self._per_block
            if not (verified[first] and (first == last or all(verified[first : last + 1]))):
                self._check(first, last)
        return self._array[start:stop]

    def _check(self, first: int, last: int) -> None:
        assert self._verified is not None
        assert self._blocks is not None
        for block in range(first, last + 1):
            if self._verified[block]:
                continue
            content = self._array[block * self._per_block : (block + 1) * self._per_block]
            if block >= len(self._blocks) or hashlib.sha256(content.data).hexdigest() != self._blocks[block]:
                raise InputError(f"{self.path}: block {block + 1} of {len(self._verified)} is damaged; {self.remedy}")
            self._verified[block] = 1
