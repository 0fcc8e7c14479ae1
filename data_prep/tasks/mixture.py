"""Batches of several tasks for one model: multi-task model tuning.

Training examples fill slots in cycles of fixed length. In each cycle a task has a number of slots proportional to its
rate, in an order drawn from the seed; its rows fill them in seeded passes. The batch of a step is therefore a function
of (seed, step) alone. Source: Raffel et al. 2020, §3.5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.objectives.documents import Example, cache_recent
from t5_pipeline.data_prep.sampling.batches import Batch, collate
from t5_pipeline.data_prep.sampling.permutation import Permutation
from t5_pipeline.data_prep.tasks.batches import pass_orders, rows_at
from t5_pipeline.data_prep.tasks.encode import EncodedTask

CYCLE = 2**14  # slots; every task has at least one


def mixing_counts(rows: Sequence[int], mixing: Literal["proportional", "equal"], limit: int) -> npt.NDArray[np.int64]:
    """Slots of each task in a cycle: proportional to min(rows, limit) (T5's examples-proportional mixing), or equal.

    Rounded by largest remainder, with at least one slot per task.

    >>> mixing_counts([300, 100], "proportional", 2**19).tolist()
    [12288, 4096]
    >>> mixing_counts([1, 10**6], "proportional", 2**19).tolist()
    [1, 16383]
    """
    weights = np.minimum(np.asarray(rows, dtype=np.float64), limit) if mixing == "proportional" else np.ones(len(rows))
    shares = weights / weights.sum() * (CYCLE - len(rows))
    counts = np.floor(shares).astype(np.int64)
    rest = CYCLE - len(rows) - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:rest]] += 1
    return counts + 1


class MixedTaskBatches:
    """The batches of one model that learns one or more tasks; each token weighs 1/(target tokens of the batch)."""

    def __init__(
        self,
        tasks: Sequence[EncodedTask],
        batch_size: int,
        seed: int,
        mixing: Literal["proportional", "equal"] = "proportional",
        limit: int = 2**19,
    ) -> None:
        self.tasks = tasks
        self.batch_size = batch_size
        self._counts = mixing_counts([len(task) for task in tasks], mixing, limit)
        self._orders = [pass_orders(len(task), seed) for task in tasks]
        self._cycle = cache_recent(lambda number: self._slots(seed, number))

    def _slots(self, seed: int, number: int) -> npt.NDArray[np.int64]:
        """(task, index among the slots of that task) of each slot of a cycle, [CYCLE, 2]."""
        task_of = np.repeat(np.arange(len(self.tasks)), self._counts)
        task_S = task_of[Permutation(CYCLE, seed, f"task mixture {number}")(np.arange(CYCLE))]
        rank_S = np.empty(CYCLE, dtype=np.int64)
        for task, count in enumerate(self._counts):
            rank_S[task_S == task] = np.arange(count)
        return np.stack([task_S, rank_S], axis=1)

    def at(self, step: int) -> Batch:
        """The global batch of `step`. `ids_B` numbers the rows of all tasks consecutively."""
        begin = np.concatenate([[0], np.cumsum([len(task) for task in self.tasks])])
        examples: list[Example] = []
        ids = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            number, slot = divmod(position, CYCLE)
            task, rank = self._cycle(number)[slot].tolist()
            place = np.array([number * int(self._counts[task]) + rank])
            row = int(rows_at(place, len(self.tasks[task]), self._orders[task])[0])
            examples.append((self.tasks[task].inputs[row], self.tasks[task].targets[row]))
            ids.append(int(begin[task]) + row)
        return collate(examples, ids_B=ids, pad=self.tasks[0].pad)

    def ids(self, step: int) -> list[int]:
        """`ids_B` of the batch."""
        return [int(number) for number in self.at(step).ids_B]
