"""Probing: a score of the current weights every few steps, and early stopping by it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from t5_pipeline.training.distributed.collectives import ProcessGroup

log = logging.getLogger("t5-pipeline")


class ProbedState(Protocol):
    """The part of a training run's state that early stopping needs."""

    step: int
    group: ProcessGroup


@dataclass
class Probing:
    """A measurement before the first step and then every `every` steps, which changes nothing in the training.

    Attributes:
        measure: the fields of its row in metrics.jsonl, `score` among them (larger is better). Called on every rank
            with the state.
        patience: measurements in a row without a higher score after which training stops; 0: never.
        best: highest score so far.
        without_higher: measurements since then.
    """

    measure: Callable[[Any], Mapping[str, Any]]
    every: int
    patience: int = 0
    best: float = -math.inf
    without_higher: int = 0

    def due(self, step: int) -> bool:
        return step % self.every == 0

    @property
    def exhausted(self) -> bool:
        """True once training is to stop."""
        return self.patience > 0 and self.without_higher >= self.patience

    def update(self, state: ProbedState) -> Mapping[str, Any]:
        """Measure, and count the measurements without a higher score."""
        row = self.measure(state)
        if row["score"] > self.best:
            self.best, self.without_higher = row["score"], 0
        else:
            self.without_higher += 1
        if self.exhausted and state.group.rank == 0:
            log.info("stopped after step %s: %d probes without a better score", f"{state.step:,}", self.without_higher)
        return row

    def scalars(self) -> dict[str, float]:
        """The state in a checkpoint, so that a resumed run stops at the same step."""
        return {"without_higher": self.without_higher} | ({} if math.isinf(self.best) else {"best": self.best})

    def load(self, scalars: Mapping[str, float]) -> None:
        self.best = scalars.get("best", -math.inf)
        self.without_higher = int(scalars.get("without_higher", 0))
