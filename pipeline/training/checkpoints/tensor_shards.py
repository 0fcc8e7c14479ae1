"""Engine-neutral slices of tensors.

A shard is elements start … start + n − 1 of a flattened tensor. A single process, DDP, FSDP2 and ZeRO all write and
read their state as shards under the same names, so a run may be resumed with another engine or number of processes.

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
    """Elements `start` … of the flattened tensor `name`.

    Attributes:
        shape: shape of the whole tensor.
        values_N: may be a view of trained memory, to read or write through.
        on_all_ranks: every process has this same shard, so one of them saves it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values_N: Tensor
    on_all_ranks: bool = False

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> TensorShard:
        """A whole tensor that every process has; copied if it is not contiguous."""
        return cls(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1), on_all_ranks=True)

    @property
    def stop(self) -> int:
        return self.start + self.values_N.numel()

    def named(self, name: str) -> TensorShard:
        return replace(self, name=name)

    def copied(self) -> TensorShard:
        """A copy on the CPU."""
        return replace(self, values_N=self.values_N.detach().to("cpu", copy=True))


class SavedTensors(Protocol):
    """Tensors of a checkpoint, by the names of the saved shards."""

    def names(self, prefix: str = "") -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...
    def tensor(self, name: str) -> Tensor: ...


def share(shards: Sequence[TensorShard], rank: int, world: int) -> list[TensorShard]:
    """The shards that one of `world` processes saves: its own, and its share of those on all ranks."""
    mine, load = [], [0] * world
    for shard in shards:
        if not shard.on_all_ranks:
            mine.append(shard)
            continue
        # All processes see the same shards in the same order, and so make the same choice.
        least = min(range(world), key=load.__getitem__)
        load[least] += shard.values_N.numel()
        if least == rank:
            mine.append(shard)
    return mine


def assemble(shards: Sequence[TensorShard]) -> dict[str, Tensor]:
    """Whole tensors, by name, from shards that cover them.

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
    """Shards of whole tensors that every process has, named `prefix` + name."""
    return [TensorShard.whole(f"{prefix}{name}", tensor) for name, tensor in tensors.items()]
