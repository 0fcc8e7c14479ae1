"""Checkpoint selection: the best step by the average of a task's metrics on its validation split.

Each cell is scored every `every` steps. The best weights so far are kept on the CPU and saved in the checkpoints, so a
resumed run makes the same choice. Of equal scores the one with the lower validation loss wins, then the later step.

Source: Lester et al. 2021, §3.1 ("the average of metrics for datasets evaluated with multiple metrics").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.modeling.prompt_bank import PromptedT5
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard, assemble, named_whole
from t5_pipeline.training.distributed.engine import MODEL, Engine
from t5_pipeline.training.halving import Halving

SELECTION = "selection/"

Scores = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """The validation of one cell.

    Attributes:
        scores: every metric, as published.
        score: their average, which decides. Larger is better.
        loss: mean loss of the targets, which breaks ties.
    """

    scores: Scores
    score: float
    loss: float = math.inf

    def beats(self, other: Measured) -> bool:
        """Whether it replaces an earlier one: a higher score, or an equal score and no higher loss."""
        return self.score > other.score or (self.score == other.score and not self.loss > other.loss)


@dataclass(frozen=True)
class Best:
    """The best step of a cell: step, its validation, and this process's shards of the kept tensors."""

    step: int
    measured: Measured
    shards: list[TensorShard] = field(default_factory=list)

    @property
    def scores(self) -> Scores:
        return self.measured.scores

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The kept tensors, if every process has all of them."""
        return assemble(self.shards)


def prompt_rows(model: PromptedT5, index: int) -> dict[str, Tensor]:
    """`kept` of a bank of prompts: the rows of one prompt."""
    return {"rows": model.bank.prompt(index)}


class Selection:
    """The best step of each cell so far.

    Args:
        cells: names of the cells in metrics.jsonl.
        measure: (model) → validation of each cell. Called in evaluation mode on every process. With several stretches,
            (model, cells) → that of the cells with these indices.
        kept: (model, index of a cell) → the tensors to keep of it, whole; None keeps all trained parameters, each
            process its own shards.
        every: steps between measurements.
        patience: early stopping: measurements in a row without a higher score after which a cell accepts no later
            step; 0 never stops.
        halving: which cells train in which steps, and are dropped at which; default: all of them, none.
    """

    def __init__(
        self,
        cells: Sequence[str],
        measure: Callable[[Any], list[Measured]],
        kept: Callable[[Any, int], Mapping[str, Tensor]] | None,
        *,
        every: int,
        patience: int = 0,
        halving: Halving | None = None,
    ) -> None:
        self.cells = cells
        self.measure = measure
        self.kept = kept
        self.every = every
        self.patience = patience
        self.halving = halving or Halving(range(len(cells)))
        self.dropped: list[str] = []  # at the last step that was measured
        self._best: list[Best | None] = [None] * len(cells)
        self._without_higher = [0] * len(cells)
        self._validations = [0] * len(cells)

    def due(self, step: int) -> bool:
        """Whether this step is measured; independent of the total number of steps."""
        return step > 0 and (self.halving.trained(step).step % self.every == 0 or step in self.halving.ends)

    @property
    def exhausted(self) -> bool:
        """True once the patience of every cell has run out."""
        return all(self._is_exhausted(index) for index in self.halving.left())

    def _is_exhausted(self, index: int) -> bool:
        return 0 < self.patience <= self._without_higher[index]

    @torch.no_grad()
    def update(self, step: int, engine: Engine) -> dict[str, Measured]:
        """Measure the cells that trained last, keep what is better than before, drop cells at a rung.

        Args:
            step: of the run. A cell's own step, which `Best` names, is another one if cells take turns.

        Returns:
            The validation of each measured cell.
        """
        of_cells, active = self.halving.trained(step)
        measured = self._measured(active, engine)
        for index, now in zip(active, measured, strict=True):
            if self._is_exhausted(index):
                continue
            before = self._best[index]
            self._validations[index] += 1
            if before is None or now.score > before.measured.score:
                self._without_higher[index] = 0
            elif of_cells % self.every == 0:  # a rung between these steps does not count
                self._without_higher[index] += 1
            self._best[index] = self._better(before, index, of_cells, now, engine)
        best = [None if found is None else (found.measured.score, found.measured.loss) for found in self._best]
        self.dropped = [self.cells[index] for index in self.halving.drop(step, best)]
        return dict(zip([self.cells[index] for index in active], measured, strict=True))

    def _measured(self, active: list[int], engine: Engine) -> list[Measured]:
        """The validation of rank 0, broadcast so that all ranks make the same choice."""
        some = [active] if len(self.halving.stretches) > 1 else []
        measured: list[Measured] = engine.call(self.measure, *some)
        numbers = [number for each in measured for number in (each.score, each.loss, *each.scores.values())]
        shared = iter(engine.group.broadcast_list(numbers))
        return [
            Measured(score=next(shared), loss=next(shared), scores={name: next(shared) for name in each.scores})
            for each in measured
        ]

    @torch.no_grad()
    def finalize(self, step: int, engine: Engine) -> list[Best]:
        """The best of each cell at the end of training.

        If the last step was not due for validation, it is scored too, unless patience has run out, but the result is
        not stored, so extending the run later is not affected.
        """
        best = list(self._best)
        of_cells, active = self.halving.trained(step)
        last = [index for index in active if self._validates_last(index, step)]
        if last:
            for index, now in zip(active, self._measured(active, engine), strict=True):
                if index in last:
                    best[index] = self._better(best[index], index, of_cells, now, engine)
        return [found for found in best if found is not None]

    def validations(self, step: int) -> list[int]:
        """Number of validations that count for each cell, once training has ended after `step` steps."""
        active = self.halving.trained(step).prompts
        return [
            count + (index in active and self._validates_last(index, step))
            for index, count in enumerate(self._validations)
        ]

    def _validates_last(self, index: int, step: int) -> bool:
        return not self.due(step) and not self._is_exhausted(index)

    def _better(self, before: Best | None, index: int, step: int, now: Measured, engine: Engine) -> Best:
        """The best step so far or this one, with a copy of its tensors."""
        if before is not None and not now.beats(before.measured):
            return before
        return Best(step, now, [shard.copied() for shard in self._kept(index, engine)])

    def _kept(self, index: int, engine: Engine) -> list[TensorShard]:
        """The tensors to keep of a cell, as they are now."""
        if self.kept is not None:
            return named_whole("", engine.call(self.kept, index))
        return [shard.named(shard.name.removeprefix(MODEL)) for shard in engine.weights()]

    def shards(self) -> list[TensorShard]:
        """The tensors of a checkpoint: `selection/<index of the cell>/<name>`."""
        return [
            shard.named(f"{SELECTION}{index}/{shard.name}")
            for index, best in enumerate(self._best)
            if best is not None
            for shard in best.shards
        ]

    def scalars(self) -> list[dict[str, Any] | None]:
        each = zip(self._best, self._without_higher, self._validations, self.halving.dropped_at, strict=True)
        return [
            None
            if best is None
            else asdict(best.measured)
            | {"step": best.step, "without_higher": count, "validations": validations, "dropped": at}
            for best, count, validations, at in each
        ]

    def load(self, saved: SavedTensors, scalars: Sequence[Mapping[str, Any] | None], engine: Engine) -> None:
        """Restore what `shards()` and `scalars()` returned, whichever engine saved it."""
        for index, found in enumerate(scalars):
            self._without_higher[index] = 0 if found is None else int(found["without_higher"])
            self._validations[index] = 0 if found is None else int(found["validations"])
            self._best[index] = None
            self.halving.dropped_at[index] = None if found is None else found.get("dropped")
            if found is not None:
                name = f"{SELECTION}{index}/"
                mine = [
                    replace(shard, values_N=saved.read(name + shard.name, shard.start, shard.stop))
                    for shard in self._kept(index, engine)
                ]
                measured = Measured(dict(found["scores"]), found["score"], found["loss"])
                self._best[index] = Best(found["step"], measured, mine)
