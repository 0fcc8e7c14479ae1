"""Joint batches of many prompts.

Suffixes: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.objectives.documents import Example, cache_recent
from t5_pipeline.data_prep.sampling.batches import Batch, collate
from t5_pipeline.data_prep.sampling.permutation import Permutation
from t5_pipeline.data_prep.tasks.encode import EncodedTask


class TaskBatches:
    """Joint batches of many prompts; prompt c trains on tasks[c], in its own order.

    A prompt's rows of step s depend only on its own task, batch size and seed and on s, not on the other prompts. Each
    pass over a task is a seeded permutation of its examples, and a batch may span two passes.

    Args:
        tasks: the task of each prompt.
        batch_sizes: rows of each prompt in a batch.
        seeds: seed of each prompt's order.
        loss: "mean" weighs a token by 1/(target tokens of its prompt's part of the batch); "sum" by 1.
        turn: step of the run → the step of the prompts in its batch, and their indices; default: the same step, all.
    """

    def __init__(
        self,
        tasks: Sequence[EncodedTask],
        batch_sizes: Sequence[int],
        seeds: Sequence[int],
        loss: Literal["mean", "sum"] = "mean",
        turn: Callable[[int], tuple[int, Sequence[int]]] | None = None,
    ) -> None:
        if not len(tasks) == len(batch_sizes) == len(seeds):
            raise ValueError(
                f"{len(tasks)} tasks, {len(batch_sizes)} batch sizes and {len(seeds)} seeds; give one each per prompt"
            )
        self.tasks = tasks
        self.batch_sizes = batch_sizes
        self._orders = [pass_orders(len(task), seed) for task, seed in zip(tasks, seeds, strict=True)]
        self.loss = loss
        self._turn = turn or (lambda step: (step, range(len(tasks))))

    def at(self, step: int) -> Batch:
        """The global batch of `step`: the rows of each active prompt in turn."""
        step, active = self._turn(step)
        examples: list[Example] = []
        weights: list[npt.NDArray[np.float64]] = []
        ids: list[npt.NDArray[np.int64]] = []
        for task, size, order in ((self.tasks[c], self.batch_sizes[c], self._orders[c]) for c in active):
            index = rows_at(np.arange(step * size, (step + 1) * size), len(task), order)
            examples += [(task.inputs[i], task.targets[i]) for i in index.tolist()]
            tokens = sum(len(task.targets[i]) for i in index.tolist())
            weights.append(np.full(size, 1.0 if self.loss == "sum" else 1 / max(1, tokens)))
            ids.append(index)
        prompts = np.repeat(np.array(active), [self.batch_sizes[c] for c in active])
        return collate(examples, np.concatenate(weights), prompts, np.concatenate(ids), self.tasks[0].pad)

    def ids(self, step: int) -> list[int]:
        """`ids_B` of the batch."""
        return [int(number) for number in self.at(step).ids_B]


def pass_orders(rows: int, seed: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """pass → the order of the rows in it. The most recent orders are cached, because a step needs one or two."""
    return cache_recent(lambda number: Permutation(rows, seed, f"task pass {number}")(np.arange(rows)))


def rows_at(
    position_B: npt.NDArray[np.int64], rows: int, order: Callable[[int], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """The row at each position of an endless sequence of passes over `rows` rows, each in its own order."""
    pass_B = position_B // rows
    index_B = np.empty_like(position_B)
    for number in range(int(pass_B[0]), int(pass_B[-1]) + 1):
        in_pass = pass_B == number
        index_B[in_pass] = order(number)[position_B[in_pass] % rows]
    return index_B
