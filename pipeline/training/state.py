"""What a step changes, and what a checkpoint therefore holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.engine import MODEL, Engine
from t5_pipeline.training.step_stats import StepStats


class TrainState:
    """A model and its optimizer in the hands of an engine, and how many steps they have behind them.

    Only parameters that train are saved: a frozen T5 is not part of its prompts' checkpoints.
    """

    def __init__(self, engine: Engine, selection: Selection | None = None) -> None:
        self.engine = engine
        self.group = engine.group
        self.device: torch.device = engine.device
        self.step = 0
        self.skipped = 0  # steps whose gradient was not finite, and that changed nothing
        self.stats = StepStats(self.group)
        self.selection = selection
        self._elapsed_before = 0.0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before the checkpoint that this process started from included."""
        return self._elapsed_before + time.monotonic() - self._started

    def evaluate(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments) without dropout; the caller sets training mode again."""
        self.engine.set_training(False)
        with torch.no_grad():
            return self.engine.call(do, *arguments)

    def shards(self) -> list[TensorShard]:
        """Everything that training goes on from: `model/…`, `optimizer/<parameter>/<key>`, `selection/…`, `stats`."""
        chosen = [] if self.selection is None else self.selection.shards()
        return [
            *self.engine.weights(),
            *self.engine.moments(),
            *chosen,
            TensorShard.whole("meter", self.stats.history_NC),
        ]

    def scalars(self) -> dict[str, Any]:
        chosen = {} if self.selection is None else {"selection": self.selection.scalars()}
        return {"elapsed_s": self.elapsed, "skipped": self.skipped, **chosen}

    def load(self, step: int, saved: SavedTensors, scalars: dict[str, Any]) -> None:
        """Goes back to what `shards()` and `scalars()` gave after `step` steps, whichever engine gave them.

        Raises:
            InputError: the tensors are not those of this model.
        """
        shapes = {name: saved.shape(MODEL + name) for name in (n.removeprefix(MODEL) for n in saved.names(MODEL))}
        for shard in self.engine.weights():
            name = shard.name.removeprefix(MODEL)
            if shapes.get(name) != shard.shape:
                found = f"has shape {list(shapes[name])}, not {list(shard.shape)}" if name in shapes else "is missing"
                raise InputError(
                    f"checkpoint of step {step:,}: {name} {found}; it was made by another model:"
                    " use another run directory, or remove its checkpoints"
                )
        if unknown := [name for name in shapes if name not in self.engine.trained]:
            raise InputError(
                f"checkpoint of step {step:,}: {unknown[0]} is not in this model: use another run"
                " directory, or remove its checkpoints"
            )
        self.engine.load(saved)
        if self.selection is not None:
            self.selection.load(saved, scalars["selection"], self.engine)
        self.step = step
        self.skipped = scalars["skipped"]
        self.stats.history_NC = saved.tensor("meter")
        self._elapsed_before = scalars["elapsed_s"]
        self._started = time.monotonic()
