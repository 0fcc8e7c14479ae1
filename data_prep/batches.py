"""Batches: padded examples, and the batch of a step as a function of the step.

Suffixes: B rows of a batch, S input length, T target length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.objectives.segments import Example, Objective
from data_prep.permutation import Permutation
from pipeline.errors import InputError

_WIDTH_MULTIPLE = 8

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Examples padded with 0 to a common width, a multiple of 8.

    inputs_BS   ids of the inputs, EOS counted, int32
    targets_BT  ids of the targets, EOS counted, int32; a 0 is padding and never trained on
    weights_B   weight of every target token of the row in the loss: the loss is Σ_B weights·Σ_T token loss, float32
    prompt_B    which prompt of the bank the row names; 0 where there is none, int32
    ids_B       what tells the example from all others of its source, int64
    """

    inputs_BS: Ints
    targets_BT: Ints
    weights_B: npt.NDArray[np.float32]
    prompt_B: Ints
    ids_B: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs_BS)

    @property
    def input_tokens(self) -> int:
        """Ids of the inputs that are no padding."""
        return int(np.count_nonzero(self.inputs_BS))

    @property
    def target_tokens(self) -> int:
        """Ids of the targets that are no padding."""
        return int(np.count_nonzero(self.targets_BT))

    def rows(self, index: npt.ArrayLike) -> Batch:
        """These rows, in this order, trimmed to the longest of them. Weights stay: they belong to the whole batch."""
        chosen = np.asarray(index, dtype=np.int64)
        return Batch(
            _trimmed(self.inputs_BS[chosen]),
            _trimmed(self.targets_BT[chosen]),
            self.weights_B[chosen],
            self.prompt_B[chosen],
            self.ids_B[chosen],
        )

    def by_length(self) -> npt.NDArray[np.int64]:
        """The rows in the order of their input length, then target length, then place."""
        return np.lexsort((_lengths(self.targets_BT), _lengths(self.inputs_BS))).astype(np.int64)

    def microbatches(self, size: int) -> list[Batch]:
        """Parts of at most `size` rows of similar length, which saves padding; 0 means one part with all rows."""
        if size == 0 or size >= len(self):
            return [self]
        order = self.by_length()
        return [self.rows(order[start : start + size]) for start in range(0, len(self), size)]

    def shard(self, rank: int, world: int) -> Batch:
        """The rows of process `rank` of `world`: dealt out by length, so that all have about as much to do."""
        if world == 1:
            return self
        order = self.by_length()
        turn = np.arange(len(order)) % (2 * world)
        return self.rows(order[np.minimum(turn, 2 * world - 1 - turn) == rank])


def collate(
    examples: Sequence[Example],
    weights_B: npt.ArrayLike | None = None,
    prompt_B: npt.ArrayLike | None = None,
    ids_B: npt.ArrayLike | None = None,
) -> Batch:
    """A batch of (inputs, targets). Without weights, each token weighs 1/(target tokens of the batch): a mean.

    >>> batch = collate([(np.array([5, 1]), np.array([6, 7, 1])), (np.array([1]), np.array([8, 1]))])
    >>> batch.inputs_BS.tolist()
    [[5, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    >>> batch.weights_B.tolist()
    [0.20000000298023224, 0.20000000298023224]
    """
    size = len(examples)
    targets_BT = pad([targets for _, targets in examples])
    if weights_B is None:
        weights_B = np.full(size, 1 / max(1, int(np.count_nonzero(targets_BT))))
    return Batch(
        pad([inputs for inputs, _ in examples]),
        targets_BT,
        np.asarray(weights_B, dtype=np.float32),
        np.zeros(size, dtype=np.int32) if prompt_B is None else np.asarray(prompt_B, dtype=np.int32),
        np.arange(size, dtype=np.int64) if ids_B is None else np.asarray(ids_B, dtype=np.int64),
    )


def pad(sequences: Sequence[npt.NDArray[Any]]) -> Ints:
    """Sequences of ids as rows, int32, 0 after each one's end; the width is a multiple of 8."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    rows = np.zeros((len(sequences), _width(int(lengths.max(initial=1)))), dtype=np.int32)
    if len(sequences):
        rows[np.arange(rows.shape[1])[None, :] < lengths[:, None]] = np.concatenate(sequences)
    return rows


def _width(longest: int) -> int:
    return max(1, -(-longest // _WIDTH_MULTIPLE)) * _WIDTH_MULTIPLE


def _lengths(ids: Ints) -> npt.NDArray[np.int64]:
    return np.count_nonzero(ids, axis=1)


def _trimmed(ids: Ints) -> Ints:
    return np.ascontiguousarray(ids[:, : min(ids.shape[1], _width(int(_lengths(ids).max(initial=1))))])


class LMBatches:
    """The batches of an objective: step s takes the positions s·B … s·B+B−1 of an endless run of epochs.

    Each epoch is a pass over all examples in an order of its own (a seeded permutation, computed and not stored), and a
    batch may run over from one epoch into the next. So the batch of a step is known without those before it.
    """

    def __init__(self, objective: Objective, batch_size: int, seed: int) -> None:
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self._starts = [0]  # of the epochs counted so far, in positions
        if objective.count(0) == 0:
            raise InputError("the token shards hold no document to train on: prepare a corpus that does")

    def at(self, step: int) -> Batch:
        """The global batch of `step` (0, 1, …): B rows, weights 1/(target tokens of the batch)."""
        examples: list[Example] = []
        ids: list[npt.NDArray[np.int64]] = []
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        while position < stop:
            epoch, start, count = self._epoch_of(position)
            until = min(stop, start + count)
            order = Permutation(count, self.seed, f"epoch {epoch}")
            index = order(np.arange(position - start, until - start))
            examples += self.objective.examples(epoch, index)
            ids.append(start + index)
            position = until
        return collate(examples, ids_B=np.concatenate(ids))

    def _epoch_of(self, position: int) -> tuple[int, int, int]:
        """(epoch, its first position, its number of examples)."""
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + self.objective.count(len(self._starts) - 1))
        epoch = bisect_right(self._starts, position) - 1
        return epoch, self._starts[epoch], self._starts[epoch + 1] - self._starts[epoch]
