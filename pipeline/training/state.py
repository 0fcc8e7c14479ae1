"""Everything a training step changes, and so everything in a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.sampling.microbatching import device_of
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.engine import MODEL, Engine
from t5_pipeline.training.microbatches import ArrayBatch, BatchSource, StepBatch, TensorBatch, rank_microbatches
from t5_pipeline.training.probing import Probing
from t5_pipeline.training.step_stats import StepStats


class TrainState:
    """Model, optimizer, step and statistics of a training run.

    Only trained parameters are saved: checkpoints of prompts do not contain the frozen T5.
    """

    def __init__(self, engine: Engine, selection: Selection | None = None, probing: Probing | None = None) -> None:
        self.engine = engine
        self.group = engine.group
        self.device: torch.device = engine.device
        trains_weights = all(p.requires_grad for p in engine.model.parameters())
        self._costs = device_of(self.device.type, engine.precision, trains_weights)
        self.step = 0
        self.skipped = 0  # steps with a non-finite gradient, which changed nothing
        self.stats = StepStats(self.group)
        self.selection = selection
        self.probing = probing
        self.elapsed_before = 0.0  # seconds of training before the checkpoint from which this process resumed
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, including those before the checkpoint from which this process resumed."""
        return self.elapsed_before + time.monotonic() - self._started

    def evaluate(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments) without dropout and gradients; the caller sets training mode again."""
        self.engine.set_training(False)
        with torch.no_grad():
            return self.engine.call(do, *arguments)

    def share(self, batch: ArrayBatch, microbatch_size: int) -> list[TensorBatch]:
        """This rank's microbatches of a global batch, as of `rank_microbatches`."""
        rank, world = self.group.rank, self.group.world
        return rank_microbatches(batch, rank, world, microbatch_size, self._costs, self.engine.lockstep)

    def step_batch(self, batches: BatchSource, step: int, microbatch_size: int) -> StepBatch:
        """This rank's share of the batch of a step."""
        whole = batches.at(step)
        mine = self.share(whole, microbatch_size)
        return StepBatch(step, mine, whole.input_tokens + whole.target_tokens, len(whole))

    def shards(self) -> list[TensorShard]:
        """The tensors of a checkpoint: `model/…`, `optimizer/<parameter>/<key>`, `selection/…`, `meter`."""
        selected = [] if self.selection is None else self.selection.shards()
        return [
            *self.engine.weights(),
            *self.engine.moments(),
            *selected,
            TensorShard.whole("meter", self.stats.history_NC),
        ]

    def scalars(self) -> dict[str, Any]:
        selected = {} if self.selection is None else {"selection": self.selection.scalars()}
        probed = {} if self.probing is None else {"probing": self.probing.scalars()}
        return {"elapsed_s": self.elapsed, "skipped": self.skipped, **selected, **probed}

    def load(self, step: int, saved: SavedTensors, scalars: dict[str, Any]) -> None:
        """Restore the `shards()` and `scalars()` saved after `step` steps, whichever engine saved them.

        Raises:
            InputError: if the tensors belong to another model.
        """
        shapes = {name: saved.shape(MODEL + name) for name in (n.removeprefix(MODEL) for n in saved.names(MODEL))}
        for shard in self.engine.weights():
            name = shard.name.removeprefix(MODEL)
            if shapes.get(name) != shard.shape:
                found = f"has shape {list(shapes[name])}, not {list(shard.shape)}" if name in shapes else "is missing"
                raise InputError(
                    f"checkpoint of step {step:,}: {name} {found}, so it belongs to another model;"
                    " use another run directory, or remove its checkpoints"
                )
        if unknown := [name for name in shapes if name not in self.engine.trained]:
            raise InputError(
                f"checkpoint of step {step:,}: {unknown[0]} is not in this model; use another run"
                " directory, or remove its checkpoints"
            )
        self.engine.load(saved)
        if self.selection is not None:
            self.selection.load(saved, scalars["selection"], self.engine)
        if self.probing is not None:
            self.probing.load(scalars.get("probing", {}))
        self.step = step
        self.skipped = scalars["skipped"]
        self.stats.history_NC = saved.tensor("meter")
        self.elapsed_before = scalars["elapsed_s"]
        self._started = time.monotonic()
