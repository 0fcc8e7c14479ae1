"""The rows into which T5 packs examples, the unit in which the paper counts a batch.

T5 fills a row with one example after another; the first that does not fit begins the next row. Which examples share a
row depends on their order, so the examples of an epoch are divided into blocks of 128 consecutive ones, and each block
is shuffled and packed by itself. The rows of a step then follow from the lengths of a few blocks, without the steps
before it and without reading tokens.

Memory: 8 bytes per block. A pass over all lengths counts the rows of an epoch.

Suffixes: B blocks, M examples of some blocks, R rows.

Source: `trim_and_pack_dataset` of seqio.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.objectives.documents import Ints, cache_recent, locate
from t5_pipeline.data_prep.sampling.counter_rng import bits

BLOCK = 128  # examples; fewer would leave more rows unfilled at the ends of blocks
_BLOCKS_AT_ONCE = 2**13


class MeasuredExamples(Protocol):
    """Examples whose lengths are known without reading tokens, such as those of PrefixLM."""

    def count(self, epoch: int) -> int: ...

    def lengths(self, epoch: int, index_N: npt.ArrayLike) -> tuple[Ints, Ints]: ...


class PackedRows:
    """The packed rows of each epoch; every example is in exactly one of them.

    Args:
        examples: the examples.
        seed: seed of their order within blocks.
        widths: (input, target) positions of a row; a longer example has a row of its own.

    >>> class Four:
    ...     def count(self, epoch): return 4
    ...     def lengths(self, epoch, index_N): return np.array([5, 5, 5, 5])[index_N], np.array([3, 3, 3, 3])[index_N]
    >>> rows = PackedRows(Four(), seed=0, widths=(10, 8))
    >>> rows.count(epoch=0), len(rows.examples_of(0, [1]))
    (2, 2)
    >>> sorted(rows.examples_of(0, [0, 1]).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, examples: MeasuredExamples, seed: int, widths: tuple[int, int]) -> None:
        self.examples = examples
        self.seed = seed
        self.widths = widths
        self._ends_B = cache_recent(self._ends_of)

    def count(self, epoch: int) -> int:
        """Rows of this pass over the documents."""
        ends_B = self._ends_B(epoch)
        return int(ends_B[-1]) if len(ends_B) else 0

    def examples_of(self, epoch: int, row_R: npt.ArrayLike) -> Ints:
        """The indices of the examples in these rows (integers in [0, count(epoch))), row after row."""
        block_R, within_R = locate(self._ends_B(epoch), row_R)
        block_U, place_R = np.unique(block_R, return_inverse=True)
        index_M, starts, rows_U = self._pack(epoch, block_U)
        stops = np.append(starts[1:], len(index_M))
        found_R = (np.cumsum(rows_U) - rows_U)[place_R] + within_R
        return np.concatenate([index_M[starts[row] : stops[row]] for row in found_R.tolist()])

    def _ends_of(self, epoch: int) -> Ints:
        blocks = -(-self.examples.count(epoch) // BLOCK)
        counts = [
            self._pack(epoch, np.arange(first, min(first + _BLOCKS_AT_ONCE, blocks)))[2]
            for first in range(0, blocks, _BLOCKS_AT_ONCE)
        ]
        return np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *counts]))

    def _pack(self, epoch: int, block_U: Ints) -> tuple[Ints, Ints, Ints]:
        """Pack blocks, given in ascending order.

        Returns:
            Their examples, in the order in which they fill rows; the place of each row's first example among these; the
            number of rows of each block.
        """
        stored_UM = block_U[:, None] * BLOCK + np.arange(BLOCK)
        shuffled_UM = np.argsort(bits(self.seed, "packed_rows/order", epoch, stored_UM), axis=1, kind="stable")
        stored_M = stored_UM.reshape(-1)
        stored_M = stored_M[stored_M < self.examples.count(epoch)]
        order_M = (np.arange(len(block_U))[:, None] * BLOCK + shuffled_UM).reshape(-1)
        order_M = order_M[order_M < len(stored_M)]
        next_M = np.full(len(order_M), len(order_M))  # first example that does not fit into a row that begins here
        for lengths_M, width in zip(self.examples.lengths(epoch, stored_M), self.widths, strict=True):
            ends_M = np.cumsum(lengths_M[order_M])
            next_M = np.minimum(next_M, np.searchsorted(ends_M, ends_M - lengths_M[order_M] + width, side="right"))
        next_M = np.maximum(next_M, np.arange(1, len(order_M) + 1))
        first_U = np.arange(len(block_U)) * BLOCK
        begins_M = np.zeros(len(order_M), dtype=np.int64)
        at, stop = first_U, np.minimum(first_U + BLOCK, len(order_M))
        while len(at):
            begins_M[at] = 1
            at = next_M[at]
            at, stop = at[at < stop], stop[at < stop]
        return stored_M[order_M], np.flatnonzero(begins_M), np.add.reduceat(begins_M, first_U)
