"""Which checkpoint is published: the best by a task's own metric on its validation split (Lester et al. 2021, §3.1).

Every so many steps each cell is scored; what scored highest so far is kept on the CPU and goes into the checkpoints, so
a run that was killed ends with the same choice. Of equal scores the earlier one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard, assemble, named_whole
from t5_pipeline.training.distributed.engine import MODEL, Engine

SELECTION = "selection/"

Scores = dict[str, float]


@dataclass(frozen=True)
class Best:
    """What a cell publishes: the step it is of, its validation scores, and this process's shards of what is kept."""

    step: int
    scores: Scores
    shards: list[TensorShard] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The first metric, which decides; larger is better."""
        return next(iter(self.scores.values()))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept, whole, where every process has all of it."""
        return assemble(self.shards)


class Selection:
    """The best of each cell so far.

    Args:
        cells: their names, as the log has them.
        measure: of a model, validation metrics of each cell, the deciding one first; called in evaluation mode, on
            every process, and the same on all of them.
        kept: of a model and a cell's index, what is kept of it, whole; None keeps every weight that trains, each
            process its own part.
        every: steps between measurements.
        patience: measurements in a row without a better score after which a cell takes no later one; 0 always does.
    """

    def __init__(
        self,
        cells: Sequence[str],
        measure: Callable[[Any], list[Scores]],
        kept: Callable[[Any, int], Mapping[str, Tensor]] | None,
        *,
        every: int,
        patience: int = 0,
    ) -> None:
        self.cells = cells
        self.measure = measure
        self.kept = kept
        self.every = every
        self.patience = patience
        self._best: list[Best | None] = [None] * len(cells)
        self._without_better = [0] * len(cells)

    def due(self, step: int) -> bool:
        """A function of the step alone: how far training goes does not shift it."""
        return step > 0 and step % self.every == 0

    @property
    def exhausted(self) -> bool:
        """True once the patience with every cell has run out."""
        return self.patience > 0 and all(count >= self.patience for count in self._without_better)

    @torch.no_grad()
    def update(self, step: int, engine: Engine) -> dict[str, Scores]:
        """Measures, keeps what is better than before, and returns the scores of each cell."""
        measured = self._measured(engine)
        for index, scores in enumerate(measured):
            before = self._best[index]
            if self.patience and self._without_better[index] >= self.patience:
                continue
            if before is None or Best(step, scores).score > before.score:
                self._best[index] = self._take(index, step, scores, engine)
                self._without_better[index] = 0
            else:
                self._without_better[index] += 1
        return dict(zip(self.cells, measured, strict=True))

    def _measured(self, engine: Engine) -> list[Scores]:
        """The scores as the first process has them: every process has to decide alike."""
        measured: list[Scores] = engine.call(self.measure)
        shared = iter(engine.group.broadcast_list([score for scores in measured for score in scores.values()]))
        return [{name: next(shared) for name in scores} for scores in measured]

    @torch.no_grad()
    def finalize(self, step: int, engine: Engine) -> list[Best]:
        """The best of each cell at the end of training.

        A last step that is none of those measured is a candidate too, but no part of what goes on: a run that ends here
        and is continued later keeps what it would have kept without ending.
        """
        best = list(self._best)
        if not self.due(step) and not self.exhausted:
            for index, scores in enumerate(self._measured(engine)):
                before = best[index]
                if before is None or Best(step, scores).score > before.score:
                    best[index] = self._take(index, step, scores, engine)
        return [found for found in best if found is not None]

    def _take(self, index: int, step: int, scores: Scores, engine: Engine) -> Best:
        return Best(step, scores, [shard.copied() for shard in self._now(index, engine)])

    def _now(self, index: int, engine: Engine) -> list[TensorShard]:
        """What is kept of a cell, as it is at this moment."""
        if self.kept is not None:
            return named_whole("", engine.call(self.kept, index))
        return [shard.named(shard.name.removeprefix(MODEL)) for shard in engine.weights()]

    def shards(self) -> list[TensorShard]:
        """For a checkpoint: `selection/<cell>/<name>`."""
        return [
            shard.named(f"{SELECTION}{index}/{shard.name}")
            for index, best in enumerate(self._best)
            if best is not None
            for shard in best.shards
        ]

    def scalars(self) -> list[dict[str, Any] | None]:
        return [
            None if best is None else {"step": best.step, "scores": best.scores, "without_better": count}
            for best, count in zip(self._best, self._without_better, strict=True)
        ]

    def load(self, saved: SavedTensors, scalars: Sequence[Mapping[str, Any] | None], engine: Engine) -> None:
        """Goes back to what `shards()` and `scalars()` gave, whichever engine gave them."""
        for index, found in enumerate(scalars):
            self._without_better[index] = 0 if found is None else int(found["without_better"])
            self._best[index] = None
            if found is not None:
                name = f"{SELECTION}{index}/"
                mine = [
                    replace(shard, values_N=saved.read(name + shard.name, shard.start, shard.stop))
                    for shard in self._now(index, engine)
                ]
                self._best[index] = Best(found["step"], dict(found["scores"]), mine)
