"""Batches from several objectives, mixed by rate.

The places of an endless sequence are dealt to the objectives in blocks of 1,024: each has its share of every block, to
within one example, in an order that is drawn for the block. An objective takes its own examples in its own order, as
LMBatches gives them. The batch of a step is therefore known without the batches before it, and the shares are those
of the rates at every step.

Suffixes: K objectives, M places of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5_pipeline.data_prep.objectives.documents import Example, Ints
from t5_pipeline.data_prep.sampling.batches import Batch, LMBatches, collate, collate_packed
from t5_pipeline.data_prep.sampling.counter_rng import bits

BLOCK = 1024  # places


class Places:
    """The objective at each place of an endless sequence.

    Args:
        rates: relative shares of the objectives, which need not sum to 1. Each is at least 1/1024 of their sum: the
            examples of a smaller share, rounded at the end of each block, could decrease.
        seed: seed of the orders within blocks.

    >>> places = Places([3, 1], seed=0)
    >>> places.before(1024).tolist(), places.before(4096).tolist()
    ([768, 256], [3072, 1024])
    >>> int(places.before(10).sum())
    10
    """

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        self.cumulative_K = np.cumsum(rates, dtype=np.float64) / np.sum(rates)
        self.seed = seed

    def before(self, place: int) -> Ints:
        """Examples of each objective among the places before `place`."""
        block, within = divmod(place, BLOCK)
        started_K = self._of_blocks(block)
        if not within:
            return started_K
        counts_K = self._of_blocks(block + 1) - started_K
        owners_M = np.repeat(np.arange(len(counts_K)), counts_K)
        order_M = np.argsort(bits(self.seed, "mixture/order", block, np.arange(BLOCK)), kind="stable")
        return started_K + np.bincount(owners_M[order_M[:within]], minlength=len(counts_K))

    def _of_blocks(self, blocks: int) -> Ints:
        """Examples of each objective in the first `blocks` blocks: the nearest whole numbers with the right sum."""
        ends_K = np.rint(self.cumulative_K * (blocks * BLOCK)).astype(np.int64)
        return np.diff(ends_K, prepend=0)


@dataclass(frozen=True)
class MixedBatches:
    """The batches of several objectives.

    Attributes:
        parts: the batches of each objective alone, of which the examples are taken.
        places: the objective at each place.
        batch_size: examples per step.
        pack_to, pad: as in LMBatches.
    """

    parts: Sequence[LMBatches]
    places: Places
    batch_size: int
    pack_to: tuple[int, int] | None = None
    pad: int = 0

    def at(self, step: int) -> Batch:
        """The global batch of `step` (0, 1, …): weights 1/(target tokens of the batch)."""
        examples: list[Example] = []
        ids: list[int] = []
        for index, part, start, stop in self._shares(step):
            taken, numbers = part.take(start, stop)
            examples += taken
            ids += self._unique(index, numbers)
        if self.pack_to:
            return collate_packed(examples, ids, self.pack_to, self.pad)
        return collate(examples, ids_B=ids, pad=self.pad)

    def ids(self, step: int) -> list[int]:
        """An id of each example of the batch that is unique over all epochs and objectives."""
        shares = self._shares(step)
        return [i for index, part, start, stop in shares for i in self._unique(index, part.numbers(start, stop))]

    def _unique(self, index: int, numbers: Sequence[int]) -> list[int]:
        return [number * len(self.parts) + index for number in numbers]

    def _shares(self, step: int) -> list[tuple[int, LMBatches, int, int]]:
        """Each objective, with its number, and the range of its own examples that a step takes."""
        starts_K, stops_K = (self.places.before(place * self.batch_size) for place in (step, step + 1))
        return [*zip(range(len(self.parts)), self.parts, starts_K.tolist(), stops_K.tolist(), strict=True)]


def seed_of(seed: int, number: int) -> int:
    """The seed of one of several objectives, so that they do not read the same text at the same time."""
    return int(bits(seed, "mixture/seed", number)) >> 1
