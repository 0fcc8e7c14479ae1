"""Batches of padded examples, and the batch of a step as a function of the step.

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
from t5_pipeline.data_prep.sampling.microbatching import CPU, Device, min_padding_microbatches
from t5_pipeline.data_prep.sampling.packed_rows import PackedRows
from t5_pipeline.data_prep.sampling.packing import first_fit
from t5_pipeline.data_prep.sampling.permutation import Permutation

_WIDTH_MULTIPLE = 8
_MAX_PACKED_ROWS = 0.9  # per example

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Examples padded to a common width, a multiple of 8.

    Attributes:
        inputs_BS: ids of the inputs with EOS, int32.
        targets_BT: ids of the targets with EOS, int32; padding is not trained on.
        weights_B: loss weight of each target token of a row, float32; the loss is Σ_B weights·Σ_T token loss.
        prompt_B: index of the row's prompt in the prompt bank, int32; 0 without prompts.
        ids_B: unique id of the example (in a packed row: of its first one) in its source, int64.
        segments: for packed rows, the number (1, 2, …; 0 for padding) of the example at each position of inputs_BS and
            targets_BT, int32; None if each row is one example.
        pad: id of padding.
    """

    inputs_BS: Ints
    targets_BT: Ints
    weights_B: npt.NDArray[np.float32]
    prompt_B: Ints
    ids_B: npt.NDArray[np.int64]
    segments: tuple[Ints, Ints] | None = None
    pad: int = 0

    def __len__(self) -> int:
        return len(self.inputs_BS)

    @property
    def input_tokens(self) -> int:
        """Number of input ids, without padding."""
        return int(np.count_nonzero(self.inputs_BS != self.pad))

    @property
    def target_tokens(self) -> int:
        """Number of target ids, without padding."""
        return int(np.count_nonzero(self.targets_BT != self.pad))

    def rows(self, index: npt.ArrayLike) -> Batch:
        """These rows in this order, trimmed to the longest of them. They keep their weights in the whole batch."""
        chosen = np.asarray(index, dtype=np.int64)
        segments = None
        if self.segments is not None:
            segments = _trimmed(self.segments[0][chosen], 0), _trimmed(self.segments[1][chosen], 0)
        return Batch(
            _trimmed(self.inputs_BS[chosen], self.pad),
            _trimmed(self.targets_BT[chosen], self.pad),
            self.weights_B[chosen],
            self.prompt_B[chosen],
            self.ids_B[chosen],
            segments,
            self.pad,
        )

    def by_length(self) -> npt.NDArray[np.int64]:
        """The indices of the rows, sorted by input length, target length and index."""
        lengths = (_lengths(self.targets_BT, self.pad), _lengths(self.inputs_BS, self.pad))
        return np.lexsort(lengths).astype(np.int64)

    def microbatches(self, size: int, device: Device = CPU) -> list[Batch]:
        """Split into parts of rows of similar length, to save padding. Only the order of sums over rows depends on it.

        Args:
            size: maximum rows of a part; 0 chooses the cheapest parts.
            device: costs of the device that will process them.
        """
        if len(self) <= max(1, size):
            return [self]
        order = self.by_length()
        if size:
            return [self.rows(order[start : start + size]) for start in range(0, len(self), size)]
        inputs_N, targets_N = (
            [_width(int(length)) for length in _lengths(ids, self.pad)[order]]
            for ids in (self.inputs_BS, self.targets_BT)
        )
        return [self.rows(order[begin:end]) for begin, end in min_padding_microbatches(inputs_N, targets_N, device)]

    def shard(self, rank: int, world: int) -> Batch:
        """The rows of process `rank` of `world`, dealt out by length to balance the work."""
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
    pad: int = 0,
) -> Batch:
    """Make a batch of (inputs, targets), padded with the id `pad`.

    By default each token weighs 1/(target tokens of the batch), a mean.

    >>> batch = collate([(np.array([5, 1]), np.array([6, 7, 1])), (np.array([1]), np.array([8, 1]))])
    >>> batch.inputs_BS.tolist()
    [[5, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    >>> batch.weights_B.tolist()
    [0.20000000298023224, 0.20000000298023224]
    """
    size = len(examples)
    if weights_B is None:
        weights_B = np.full(size, 1 / max(1, sum(len(targets) for _, targets in examples)))
    return Batch(
        padded([inputs for inputs, _ in examples], pad),
        padded([targets for _, targets in examples], pad),
        np.asarray(weights_B, dtype=np.float32),
        np.zeros(size, dtype=np.int32) if prompt_B is None else np.asarray(prompt_B, dtype=np.int32),
        np.arange(size, dtype=np.int64) if ids_B is None else np.asarray(ids_B, dtype=np.int64),
        pad=pad,
    )


def collate_packed(examples: Sequence[Example], ids_N: npt.ArrayLike, widths: tuple[int, int], pad: int = 0) -> Batch:
    """Make a batch of packed rows: several examples per row of at most `widths` (inputs, targets) positions.

    Each token weighs 1/(target tokens of the batch), so the loss is the same sum as without packing, in another order.
    If packing saves less than a tenth of the rows, as with long documents, every example gets its own row, because
    packed rows need larger masks and prevent short rows in microbatches().

    >>> examples = [(np.array([5, 1]), np.array([6, 7, 1])), (np.array([4, 1]), np.array([8, 1]))]
    >>> batch = collate_packed(examples, [0, 1], widths=(8, 8))
    >>> batch.inputs_BS.tolist(), batch.targets_BT.tolist()
    ([[5, 1, 4, 1, 0, 0, 0, 0]], [[6, 7, 1, 8, 1, 0, 0, 0]])
    >>> [numbers.tolist() for numbers in batch.segments]
    [[[1, 1, 2, 2, 0, 0, 0, 0]], [[1, 1, 1, 2, 2, 0, 0, 0]]]
    """
    lengths_N2 = np.array([(len(inputs), len(targets)) for inputs, targets in examples], dtype=np.int64).reshape(-1, 2)
    row_N = first_fit(lengths_N2[:, 0], lengths_N2[:, 1], widths)
    if int(row_N.max(initial=0)) + 1 > _MAX_PACKED_ROWS * len(examples):
        return collate(examples, ids_B=ids_N, pad=pad)
    members = np.split(np.argsort(row_N, kind="stable"), np.cumsum(np.bincount(row_N))[:-1])
    joined, numbered = [], []
    for side in (0, 1):
        joined.append([np.concatenate([examples[i][side] for i in row.tolist()]) for row in members])
        numbered.append(padded([np.repeat(np.arange(1, len(row) + 1), lengths_N2[row, side]) for row in members], 0))
    ids = np.asarray(ids_N, dtype=np.int64)[[row[0] for row in members]]
    return replace(
        collate(list(zip(*joined, strict=True)), ids_B=ids, pad=pad),
        segments=(numbered[0], numbered[1]),
    )


def padded(sequences: Sequence[npt.NDArray[Any]], pad: int) -> Ints:
    """Pad sequences of ids with `pad` to rows of a common width, a multiple of 8, int32."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    rows = np.full((len(sequences), _width(int(lengths.max(initial=1)))), pad, dtype=np.int32)
    if len(sequences):
        rows[np.arange(rows.shape[1])[None, :] < lengths[:, None]] = np.concatenate(sequences)
    return rows


def _width(longest: int) -> int:
    return max(1, -(-longest // _WIDTH_MULTIPLE)) * _WIDTH_MULTIPLE


def _lengths(ids: Ints, pad: int) -> npt.NDArray[np.int64]:
    return np.count_nonzero(ids != pad, axis=1)


def _trimmed(ids: Ints, pad: int) -> Ints:
    return np.ascontiguousarray(ids[:, : min(ids.shape[1], _width(int(_lengths(ids, pad).max(initial=1))))])


class LMBatches:
    """The batches of an objective: step s takes the positions s·N … s·N+N−1 of an endless sequence of epochs.

    Each epoch is a pass over all examples in its own order (a seeded permutation, computed and not stored), and a batch
    may span two epochs. The batch of a step is therefore known without the batches before it.

    Args:
        objective: the source of examples.
        batch_size: N, examples per step; with `rows`, rows per step.
        seed: seed of the orders.
        pack_to: (input, target) width of packed rows; None gives every example its own row. Packing changes neither the
            examples of a step nor their weights, so the loss is the same.
        pad: id of padding.
        rows: the rows that a step counts and an epoch permutes, instead of examples. Their examples are packed again
            with those of the whole batch, which needs fewer rows.

    Raises:
        InputError: if there is no example.
    """

    def __init__(
        self,
        objective: Objective,
        batch_size: int,
        seed: int,
        pack_to: tuple[int, int] | None = None,
        rows: PackedRows | None = None,
        pad: int = 0,
    ) -> None:
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self.pack_to = pack_to
        self.pad = pad
        self.rows = rows
        self._starts = [0]  # first position of each epoch so far
        self._first_ids = [0]  # id of its first example
        if objective.count(0) == 0:
            raise InputError("tokens: the shards contain too little text for one example; prepare a larger corpus")

    def at(self, step: int) -> Batch:
        """The global batch of `step` (0, 1, …): weights 1/(target tokens of the batch)."""
        examples, ids = self.take(step * self.batch_size, (step + 1) * self.batch_size)
        if self.pack_to:
            return collate_packed(examples, ids, self.pack_to, self.pad)
        return collate(examples, ids_B=ids, pad=self.pad)

    def ids(self, step: int) -> list[int]:
        """An id of each example of the batch that is unique over all epochs."""
        return self.numbers(step * self.batch_size, (step + 1) * self.batch_size)

    def take(self, start: int, stop: int) -> tuple[list[Example], list[int]]:
        """The examples at the positions `start` to `stop` − 1 of the endless sequence, and their `numbers`."""
        examples: list[Example] = []
        numbers: list[int] = []
        for epoch, first_id, index_N in self._places(start, stop):
            examples += self.objective.examples(epoch, index_N)
            numbers += (first_id + index_N).tolist()
        return examples, numbers

    def numbers(self, start: int, stop: int) -> list[int]:
        """Ids of the examples at these positions, unique over all epochs."""
        return [
            number for _, first_id, index_N in self._places(start, stop) for number in (first_id + index_N).tolist()
        ]

    def _places(self, position: int, stop: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        """The examples of positions by epoch: (epoch, id of its first example, indices of the examples)."""
        while position < stop:
            epoch = self._epoch_of(position)
            start, end = self._starts[epoch : epoch + 2]
            until = min(stop, end)
            index_N = Permutation(end - start, self.seed, f"epoch {epoch}")(np.arange(position - start, until - start))
            yield epoch, self._first_ids[epoch], self.rows.examples_of(epoch, index_N) if self.rows else index_N
            position = until

    def _epoch_of(self, position: int) -> int:
        while self._starts[-1] <= position:
            epoch = len(self._starts) - 1
            self._starts.append(self._starts[-1] + (self.rows or self.objective).count(epoch))
            self._first_ids.append(self._first_ids[-1] + self.objective.count(epoch))
        return bisect_right(self._starts, position) - 1
