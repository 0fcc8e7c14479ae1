"""Which checkpoint is published: the best by a task's own metric on its validation split (Lester et al. 2021, §3.1).

Every so many steps each cell is scored; what scored highest so far is kept on the CPU and goes into the checkpoints, so
a run that was killed ends with the same choice. Of equal scores the earlier one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Scores = dict[str, float]


@dataclass(frozen=True)
class Best:
    """What a cell publishes: the step it is of, its validation scores, and its tensors on the CPU."""

    step: int
    scores: Scores
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The first metric, which decides; larger is better."""
        return next(iter(self.scores.values()))


class Selection:
    """The best of each cell so far.

    Args:
        cells: their names, as the log has them.
        measure: validation metrics of each cell, the deciding one first; called with the model in evaluation mode, on
            every rank, and the same on all of them.
        kept: what is kept of a cell, by its index.
        every: steps between measurements.
        patience: measurements in a row without a better score after which a cell takes no later one; 0 always does.
    """

    def __init__(
        self,
        cells: Sequence[str],
        measure: Callable[[], list[Scores]],
        kept: Callable[[int], Mapping[str, Tensor]],
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

    def update(self, step: int) -> dict[str, Scores]:
        """Measures, keeps what is better than before, and returns the scores of each cell."""
        measured = self.measure()
        for index, scores in enumerate(measured):
            before = self._best[index]
            if self.patience and self._without_better[index] >= self.patience:
                continue
            if before is None or Best(step, scores).score > before.score:
                self._best[index] = self._take(index, step, scores)
                self._without_better[index] = 0
            else:
                self._without_better[index] += 1
        return dict(zip(self.cells, measured, strict=True))

    def conclude(self, step: int) -> list[Best]:
        """The best of each cell at the end of training.

        A last step that is none of those measured is a candidate too, but no part of what goes on: a run that ends here
        and is continued later keeps what it would have kept without ending.
        """
        best = list(self._best)
        if not self.due(step) and not self.exhausted:
            for index, scores in enumerate(self.measure()):
                before = best[index]
                if before is None or Best(step, scores).score > before.score:
                    best[index] = self._take(index, step, scores)
        return [found for found in best if found is not None]

    def _take(self, index: int, step: int, scores: Scores) -> Best:
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.kept(index).items()}
        return Best(step, scores, tensors)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: `selection/<cell>/<name>`."""
        return {
            f"selection/{index}/{name}": tensor
            for index, best in enumerate(self._best)
            if best is not None
            for name, tensor in best.tensors.items()
        }

    def scalars(self) -> list[dict[str, Any] | None]:
        return [
            None if best is None else {"step": best.step, "scores": best.scores, "without_better": count}
            for best, count in zip(self._best, self._without_better, strict=True)
        ]

    def load(self, tensors: Mapping[str, Tensor], scalars: Sequence[Mapping[str, Any] | None]) -> None:
        """Goes back to what `tensors()` and `scalars()` gave."""
        for index, found in enumerate(scalars):
            begin = f"selection/{index}/"
            mine = {name.removeprefix(begin): t.clone() for name, t in tensors.items() if name.startswith(begin)}
            self._best[index] = None if found is None else Best(found["step"], dict(found["scores"]), mine)
            self._without_better[index] = 0 if found is None else int(found["without_better"])
