"""Arrays in files, memory-mapped, each block of which is compared with its checksum before anything of it is used.

Blocks are those of `core.checksums`: sha256 of each 16 MiB. A block is read whole when something in it is
asked for the first time in a process; after that, reading costs what the mapping costs.
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
    """`size` numbers of type `dtype` in the file `path`, of which `blocks` are the checksums; None: there are none.

    InputError at once if the file has another size, and from `read` if a block is not as it was written; `mend` says
    what to do then.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "numbers")
    >>> size = file.write_bytes(np.arange(4, dtype="<u2").tobytes())
    >>> CheckedArray(file, np.dtype("<u2"), 4, ["0" * 64], "write it again").read(1, 3)
    Traceback (most recent call last):
    t5_pipeline.core.errors.InputError: ...numbers: block 1 of 1 is damaged, it is not what was written: write it again
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], size: int, blocks: Sequence[str] | None, mend: str) -> None:
        self.path = path
        self.mend = mend
        self.size = size
        if not path.is_file() or path.stat().st_size != size * dtype.itemsize:
            raise InputError(f"{path} is not {size * dtype.itemsize:,} bytes long as it was written: {mend}")
        # A plain array over the mapping: slicing a np.memmap costs several times as much. Nothing maps an empty file.
        mapped = np.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else np.zeros(0, dtype=dtype)
        self._array = np.asarray(mapped)
        self._per_block = BLOCK // dtype.itemsize
        self._blocks = blocks
        # One byte a block, not one bit: a byte is set whole, so threads need no lock. Two may compare the same block.
        self._seen = bytearray(-(-size // self._per_block)) if blocks is not None else None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Numbers start … stop−1: a view of the file."""
        seen = self._seen
        if seen is not None and start < stop:
            first, last = start // self._per_block, (stop - 1) // self._per_block
            if not (seen[first] and (first == last or all(seen[first : last + 1]))):
                self._check(first, last)
        return self._array[start:stop]

    def _check(self, first: int, last: int) -> None:
        assert self._seen is not None
        assert self._blocks is not None
        for block in range(first, last + 1):
            if self._seen[block]:
                continue
            content = self._array[block * self._per_block : (block + 1) * self._per_block]
            if block >= len(self._blocks) or hashlib.sha256(content.data).hexdigest() != self._blocks[block]:
                raise InputError(
                    f"{self.path}: block {block + 1} of {len(self._seen)} is damaged, it is not what was written:"
                    f" {self.mend}"
                )
            self._seen[block] = 1
