"""What objectives are built on: documents, the random chunk of a long one, and examples counted along them.

Suffixes: N documents, G groups of documents that are cut as one, B examples asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from data_prep.counter_rng import bits, uniform_int

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]]
Example = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

Result = TypeVar("Result")

CHUNK = 65_536  # tokens; seqio's select_random_chunk


class Documents(Protocol):
    """Token documents without EOS, as TokenShards has them."""

    @property
    def lengths_N(self) -> Ints: ...

    def document(self, i: int, /) -> Tokens: ...


class Objective(Protocol):
    """Makes `count(epoch)` examples in each pass over the documents; example i of it is a function of (epoch, i)."""

    def count(self, epoch: int) -> int: ...

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]: ...


def random_chunks(lengths_N: npt.ArrayLike, seed: int, epoch: int) -> tuple[Ints, Ints]:
    """(start, length) of the chunk of each document: at most 65,536 tokens, one of the document's whole multiples.

    S = ⌈n/65,536⌉, start = 65,536·U{0..S−1} (seqio's select_random_chunk). Chosen anew in every epoch.

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
        starts[long] = CHUNK * uniform_int(bits(seed, "chunk", epoch, long), chunks)
    return starts, np.minimum(lengths - starts, CHUNK)


class Chunks:
    """The random chunks of every document, of the epochs asked for last."""

    def __init__(self, documents: Documents, seed: int) -> None:
        self.documents = documents
        self.lengths_N = documents.lengths_N
        self.seed = seed
        self._any_long = bool((self.lengths_N > CHUNK).any())
        self.of_epoch = last_epochs(self._of_epoch)

    def key(self, epoch: int) -> int:
        """What tells one epoch's chunks from another's; without long documents all epochs have the same."""
        return epoch if self._any_long else 0

    def _of_epoch(self, key: int) -> tuple[Ints, Ints]:
        return random_chunks(self.lengths_N, self.seed, key)


def last_epochs(compute: Callable[[int], Result], keep: int = 2) -> Callable[[int], Result]:
    """`compute` with its last results kept: a batch lies in one epoch or in two."""
    kept: OrderedDict[int, Result] = OrderedDict()

    def of_epoch(key: int) -> Result:
        if key not in kept:
            kept[key] = compute(key)
            if len(kept) > keep:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return of_epoch


def locate(ends_N: Ints, index_B: npt.ArrayLike) -> tuple[Ints, Ints]:
    """(owner, offset) of each index, where owner i has the indices ends[i−1] … ends[i]−1.

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
