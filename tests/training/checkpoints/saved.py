"""Saved tensors in memory, in place of a checkpoint."""

from __future__ import annotations

import math

from torch import Tensor

from t5_pipeline.training.checkpoints.tensor_shards import TensorShard, assemble
from t5_pipeline.training.state import TrainState


class Saved(dict[str, Tensor]):
    """Whole tensors by the names they were saved under."""

    @classmethod
    def of(cls, shards: list[TensorShard]) -> Saved:
        return cls(assemble([shard.copied() for shard in shards]))

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self[name].flatten()[start : math.prod(self.shape(name)) if stop is None else stop]

    def tensor(self, name: str) -> Tensor:
        return self[name]


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """The tensors of a checkpoint of this state."""
    return dict(Saved.of(state.shards()))
