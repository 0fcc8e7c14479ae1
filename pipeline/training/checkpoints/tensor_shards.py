"""Stretches of tensors: how weights and moments are named, whichever process holds which part of them.

A shard is elements start … start + n − 1 of a tensor that was flattened. One process, DDP, FSDP2 and ZeRO all write and
read their state as shards under the same names, so a run may go on with another engine or number of processes.

    "model/encoder.block.0.layer.0.SelfAttention.q.weight", shape (64, 32), start 1024, 1024 values: the lower half

N elements of a shard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TensorShard:
    """Elements from `start` on of the tensor `name`, whose whole shape is `shape`.

    values_N: may be a view of memory that is trained, to be read or written through. `held_by_all` says that every
    process has this very shard, so that one of them is enough to save it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values_N: Tensor
    held_by_all: bool = False

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> TensorShard:
        """All of a tensor that every process has. A tensor that is not contiguous is copied."""
        return cls(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1), held_by_all=True)

    @property
    def stop(self) -> int:
        return self.start + self.values_N.numel()

    def named(self, name: str) -> TensorShard:
        return replace(self, name=name)

    def copied(self) -> TensorShard:
        """The same on the CPU, in memory of its own."""
        return replace(self, values_N=self.values_N.detach().to("cpu", copy=True))


class SavedTensors(Protocol):
    """What a checkpoint gives back, by the names of the shards that went into it."""

    def names(self, prefix: str = "") -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...
    def tensor(self, name: str) -> Tensor: ...


def share(shards: Sequence[TensorShard], rank: int, world: int) -> list[TensorShard]:
    """What one of `world` processes saves: its own shards, and its share of those that all of them hold."""
    mine, load = [], [0] * world
    for shard in shards:
        if not shard.held_by_all:
            mine.append(shard)
            continue
        # Every process comes to the same answer, as all walk through the same shards in the same order.
        least = min(range(world), key=load.__getitem__)
        load[least] += shard.values_N.numel()
        if least == rank:
            mine.append(shard)
    return mine


def assemble(shards: Sequence[TensorShard]) -> dict[str, Tensor]:
    """Replicated tensors of shards that cover them, by name.

    >>> import torch
    >>> halves = [TensorShard("w", (2, 2), 2, torch.tensor([3, 4])), TensorShard("w", (2, 2), 0, torch.tensor([1, 2]))]
    >>> assemble(halves)["w"].tolist()
    [[1, 2], [3, 4]]
    """
    found: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    for shard in shards:
        if shard.name not in found:
            found[shard.name] = shard.values_N.new_empty(math.prod(shard.shape))
        found[shard.name][shard.start : shard.stop] = shard.values_N
        filled[shard.name] = filled.get(shard.name, 0) + shard.values_N.numel()
    shapes = {shard.name: shard.shape for shard in shards}
    short = [name for name, count in filled.items() if count != math.prod(shapes[name])]
    if short:
        raise ValueError(f"{short[0]}: the shards do not cover the tensor")
    return {name: tensor.view(shapes[name]) for name, tensor in found.items()}


def named_whole(prefix: str, tensors: Mapping[str, Tensor]) -> list[TensorShard]:
    """Tensors that every process has, as shards under `prefix`."""
    return [TensorShard.whole(f"{prefix}{name}", tensor) for name, tensor in tensors.items()]
