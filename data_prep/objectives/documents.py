"""The common ground of objectives: documents, random chunks of long ones, and segments counted by document groups.

Suffixes: N documents, G groups of documents, U requested groups, D documents of a group, B requested examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform_int

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]]
Example = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

CHUNK = 65_536  # tokens; seqio's select_random_chunk
GROUP = 128  # documents
_GROUPS_PER_BATCH = 2**13


class Lengths(Protocol):
    """Number of tokens of each document: an array, or a reader of files such as ShardLengths."""

    def __len__(self) -> int: ...

    def __getitem__(self, documents: slice, /) -> Ints: ...


class Documents(Protocol):
    """Token documents without EOS, such as TokenShards."""

    @property
    def lengths_N(self) -> Lengths: ...

    def document(self, i: int, /) -> Tokens: ...


class Objective(Protocol):
    """Provides `count(epoch)` examples per pass over the documents; example i is a function of (epoch, i)."""

    def count(self, epoch: int) -> int: ...

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]: ...


def random_chunks(
    lengths_N: npt.ArrayLike, seed: int, epoch: int, numbers_N: npt.ArrayLike | None = None
) -> tuple[Ints, Ints]:
    """(start, length) of one random chunk per document: at most 65,536 tokens, starting at a multiple of 65,536.

    start = 65,536·U{0..S−1} with S = ⌈n/65,536⌉, redrawn in every epoch (seqio's select_random_chunk).

    Args:
        lengths_N: tokens of each document.
        seed: seed of the draws.
        epoch: pass over the documents.
        numbers_N: indices of the documents in the corpus; None: 0 … N−1.

    >>> start, length = random_chunks([10, 0, 70_000], seed=0, epoch=0)
    >>> start[:2].tolist(), length[:2].tolist()
    ([0, 0], [10, 0])
    >>> (int(start[2]), int(length[2])) in {(0, 65_536), (65_536, 4_464)}
    True
    """
    lengths = np.asarray(lengths_N, dtype=np.int64)
    starts = np.zeros_like(lengths)
    long = np.flatnonzero(lengths > CHUNK)
    if len(long):
        chunks = -(-lengths[long] // CHUNK)
        numbers = long if numbers_N is None else np.asarray(numbers_N)[long]
        starts[long] = CHUNK * uniform_int(bits(seed, "chunk", epoch, numbers), chunks)
    return starts, np.minimum(lengths - starts, CHUNK)


class DocumentGroups:
    """The segments of an objective, counted by groups of 128 documents in stored order.

    Memory: 8 bytes per group. Per-document values are recomputed on demand from the lengths on disk.

    Args:
        documents: the documents.
        seed: seed of the random chunks.
        segments_of: lengths of the chunks of each group [G, 128] (0 past the last document) → segments of it [G].
    """

    def __init__(self, documents: Documents, seed: int, segments_of: Callable[[Ints], Ints]) -> None:
        self.lengths_N = documents.lengths_N
        self.seed = seed
        self.segments_of = segments_of
        groups = -(-len(self.lengths_N) // GROUP)
        self._counts_G = np.zeros(groups, dtype=np.int64)
        # Groups with a document of more than one chunk; their segments depend on the epoch.
        long: list[Ints] = []
        for first in range(0, groups, _GROUPS_PER_BATCH):
            batch_G = np.arange(first, min(first + _GROUPS_PER_BATCH, groups))
            lengths_GD = self._lengths(batch_G)
            self._counts_G[batch_G] = segments_of(lengths_GD)  # those of groups with a long document are not used
            long.append(batch_G[(lengths_GD > CHUNK).any(axis=1)])
        self._long_G = np.concatenate([np.zeros(0, dtype=np.int64), *long])
        self._long_lengths_GD = self._lengths(self._long_G)
        self._without_long = int(self._counts_G.sum() - self._counts_G[self._long_G].sum())
        self._ends_G = cache_recent(self._ends_of)

    def count(self, epoch: int) -> int:
        """Segments of this pass over the documents."""
        return self._without_long + int(self._long_counts(epoch).sum())

    def locate(self, epoch: int, index_B: npt.ArrayLike) -> tuple[Ints, Ints]:
        """(group, segment within it) of each index in [0, count(epoch))."""
        return locate(self._ends_G(epoch if len(self._long_G) else 0), index_B)

    def chunks(self, epoch: int, group_U: Ints) -> tuple[Ints, Ints]:
        """(start, length) of the chunk of each document of these groups, [U, 128] each; length 0 past the end."""
        return self._chunks(epoch, group_U, self._lengths(group_U))

    def _chunks(self, epoch: int, group_U: Ints, lengths_UD: Ints) -> tuple[Ints, Ints]:
        numbers_UD = group_U[:, None] * GROUP + np.arange(GROUP)
        starts, lengths = random_chunks(lengths_UD.reshape(-1), self.seed, epoch, numbers_UD.reshape(-1))
        return starts.reshape(lengths_UD.shape), lengths.reshape(lengths_UD.shape)

    def _long_counts(self, epoch: int) -> Ints:
        return self.segments_of(self._chunks(epoch, self._long_G, self._long_lengths_GD)[1])

    def _ends_of(self, epoch: int) -> Ints:
        counts_G = self._counts_G.copy()
        counts_G[self._long_G] = self._long_counts(epoch)
        return np.cumsum(counts_G)

    def _lengths(self, group_U: Ints) -> Ints:
        """Tokens of each document of these groups, [U, 128]."""
        lengths_UD = np.zeros((len(group_U), GROUP), dtype=np.int64)
        if len(group_U) and group_U[-1] - group_U[0] + 1 == len(group_U):  # consecutive groups are read at once
            found = self.lengths_N[int(group_U[0]) * GROUP : (int(group_U[-1]) + 1) * GROUP]
            lengths_UD.reshape(-1)[: len(found)] = found
            return lengths_UD
        for row, group in enumerate(group_U.tolist()):
            found = self.lengths_N[group * GROUP : (group + 1) * GROUP]
            lengths_UD[row, : len(found)] = found
        return lengths_UD


# A batch can span two epochs. The ids of a batch are also computed while another thread prefetches later ones.
cache_recent = lru_cache(maxsize=2)


def locate(ends_N: Ints, index_B: npt.ArrayLike) -> tuple[Ints, Ints]:
    """(owner, offset) of each index; owner i has the indices ends[i−1] … ends[i]−1.

    >>> owner, offset = locate(np.array([2, 2, 5]), [0, 1, 2, 4])
    >>> owner.tolist(), offset.tolist()
    ([0, 0, 2, 2], [0, 1, 0, 2])
    """
    index = np.asarray(index_B, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= (ends_N[-1] if len(ends_N) else 0)):
        raise IndexError(f"index outside 0..{int(ends_N[-1]) - 1 if len(ends_N) else -1}")
    owner = np.searchsorted(ends_N, index, side="right")
    before = np.where(owner > 0, ends_N[owner - 1], 0)
    return owner, index - before


def with_eos(tokens: Tokens, eos: int, length: int) -> npt.NDArray[np.int32]:
    """At most `length` ids: the first length−1 tokens, then EOS (seqio's append_eos_after_trim).

    >>> with_eos(np.array([7, 8, 9]), eos=1, length=3).tolist()
    [7, 8, 1]
    """
    kept = min(len(tokens), length - 1)
    out = np.empty(kept + 1, dtype=np.int32)
    out[:kept] = tokens[:kept]
    out[kept] = eos
    return out
