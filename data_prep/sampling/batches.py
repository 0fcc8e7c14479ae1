"""Batches: padded examples, and the batch of a step as a function of the step.

Suffixes: B rows of a batch, S input length, T target length, N examples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.documents import Example, Objective
from t5_pipeline.data_prep.sampling.microbatching import CPU, GPU, min_padding_microbatches
from t5_pipeline.data_prep.sampling.packing import first_fit
from t5_pipeline.data_prep.sampling.permutation import Permutation

_WIDTH_MULTIPLE = 8
_PACKED_AT_MOST = 0.9  # rows for each example

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Examples padded with 0 to a common width, a multiple of 8.

    inputs_BS   ids of the inputs, EOS counted, int32
    targets_BT  ids of the targets, EOS counted, int32; a 0 is padding and never trained on
    weights_B   weight of every target token of the row in the loss: the loss is Σ_B weights·Σ_T token loss, float32
    prompt_B    which prompt of the bank the row names; 0 where there is none, int32
    ids_B       what tells the example (of a packed row: its first) from all others of its source, int64
    segments    of packed rows, which example of its row each position of inputs_BS and targets_BT belongs to: 1, 2, …
                in turn, 0 at padding, int32; None where each row is one example
    """

    inputs_BS: Ints
    targets_BT: Ints
    weights_B: npt.NDArray[np.float32]
    prompt_B: Ints
    ids_B: npt.NDArray[np.int64]
    segments: tuple[Ints, Ints] | None = None

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
        segments = None
        if self.segments is not None:
            segments = _trimmed(self.segments[0][chosen]), _trimmed(self.segments[1][chosen])
        return Batch(
            _trimmed(self.inputs_BS[chosen]),
            _trimmed(self.targets_BT[chosen]),
            self.weights_B[chosen],
            self.prompt_B[chosen],
            self.ids_B[chosen],
            segments,
        )

    def by_length(self) -> npt.NDArray[np.int64]:
        """The rows in the order of their input length, then target length, then place."""
        return np.lexsort((_lengths(self.targets_BT), _lengths(self.inputs_BS))).astype(np.int64)

    def microbatches(self, size: int, device: str = "cpu") -> list[Batch]:
        """Parts of rows of similar length, which saves padding: of at most `size` rows, or for 0 where it costs least.

        `device` is the kind of device that the parts pass through ("cpu", "cuda"), on which the costs depend.

        Only the order of the sum over rows depends on the parts.
        """
        if len(self) <= max(1, size):
            return [self]
        order = self.by_length()
        if size:
            return [self.rows(order[start : start + size]) for start in range(0, len(self), size)]
        inputs_N, targets_N = (
            [_width(int(length)) for length in _lengths(ids)[order]] for ids in (self.inputs_BS, self.targets_BT)
        )
        return [
            self.rows(order[begin:end])
            for begin, end in min_padding_microbatches(inputs_N, targets_N, CPU if device == "cpu" else GPU)
        ]

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


def collate_packed(examples: Sequence[Example], ids_N: npt.ArrayLike, widths: tuple[int, int]) -> Batch:
    """A batch whose rows of at most `widths` (inputs, targets) hold several examples each, one behind another.

    Each token weighs 1/(target tokens of the batch), as without packing: the loss is the same sum in another order.
    Where that saves less than a tenth of the rows, as with long documents, each example keeps a row of its own: it
    would cost the short rows of microbatches(), and larger masks.

    >>> examples = [(np.array([5, 1]), np.array([6, 7, 1])), (np.array([4, 1]), np.array([8, 1]))]
    >>> batch = collate_packed(examples, [0, 1], widths=(8, 8))
    >>> batch.inputs_BS.tolist(), batch.targets_BT.tolist()
    ([[5, 1, 4, 1, 0, 0, 0, 0]], [[6, 7, 1, 8, 1, 0, 0, 0]])
    >>> [numbers.tolist() for numbers in batch.segments]
    [[[1, 1, 2, 2, 0, 0, 0, 0]], [[1, 1, 1, 2, 2, 0, 0, 0]]]
    """
    lengths_N2 = np.array([(len(inputs), len(targets)) for inputs, targets in examples], dtype=np.int64).reshape(-1, 2)
    row_N = first_fit(lengths_N2[:, 0], lengths_N2[:, 1], widths)
    if int(row_N.max(initial=0)) + 1 > _PACKED_AT_MOST * len(examples):
        return collate(examples, ids_B=ids_N)
    members = np.split(np.argsort(row_N, kind="stable"), np.cumsum(np.bincount(row_N))[:-1])
    joined, numbered = [], []
    for side in (0, 1):
        joined.append([np.concatenate([examples[i][side] for i in row.tolist()]) for row in members])
        numbered.append(pad([np.repeat(np.arange(1, len(row) + 1), lengths_N2[row, side]) for row in members]))
    ids = np.asarray(ids_N, dtype=np.int64)[[row[0] for row in members]]
    return replace(
        collate(list(zip(*joined, strict=True)), ids_B=ids),
        segments=(numbered[0], numbered[1]),
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
    """The batches of an objective: step s takes the positions s·N … s·N+N−1 of an endless run of epochs.

    Each epoch is a pass over all examples in an order of its own (a seeded permutation, computed and not stored), and a
    batch may run over from one epoch into the next. So the batch of a step is known without those before it.

    pack_to  (input, target) width of rows that hold several examples each; None: a row for every example. Examples,
             weights and so the loss of a step are the same.
    """

    def __init__(
        self, objective: Objective, batch_size: int, seed: int, pack_to: tuple[int, int] | None = None
    ) -> None:
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self.pack_to = pack_to
        self._starts = [0]  # of the epochs counted so far, in positions
        if objective.count(0) == 0:
            raise InputError(
                "the token shards hold no document to train on, or too little text for one example: prepare more"
            )

    def at(self, step: int) -> Batch:
        """The global batch of `step` (0, 1, …): `batch_size` examples, weights 1/(target tokens of the batch)."""
        examples: list[Example] = []
        ids: list[int] = []
        for epoch, start, index_N in self._places(step):
            examples += self.objective.examples(epoch, index_N)
            ids += (start + index_N).tolist()
        return collate_packed(examples, ids, self.pack_to) if self.pack_to else collate(examples, ids_B=ids)

    def ids(self, step: int) -> list[int]:
        """What tells each example of the batch from all others of all epochs."""
        return [number for _, start, index_N in self._places(step) for number in (start + index_N).tolist()]

    def _places(self, step: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        """The examples of a step by epochs: epoch, its first position, which of its examples."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        while position < stop:
            epoch, start, count = self._epoch_of(position)
            until = min(stop, start + count)
            order = Permutation(count, self.seed, f"epoch {epoch}")
            yield epoch, start, order(np.arange(position - start, until - start))
            position = until

    def _epoch_of(self, position: int) -> tuple[int, int, int]:
        """(epoch, its first position, its number of examples)."""
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + self.objective.count(len(self._starts) - 1))
        epoch = bisect_right(self._starts, position) - 1
        return epoch, self._starts[epoch], self._starts[epoch + 1] - self._starts[epoch]
