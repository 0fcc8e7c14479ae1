"""Stretches of tensors: how weights and moments are named, whichever process holds which part of them.

A piece is elements start … start + n − 1 of a tensor that was flattened. One process, DDP, FSDP2 and ZeRO all write and
read their state as pieces under the same names, so a run may go on with another engine or number of processes.

    "model/encoder.block.0.layer.0.SelfAttention.q.weight", shape (64, 32), start 1024, 1024 values: the lower half

N elements of a piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Elements from `start` on of the tensor `name`, whose whole shape is `shape`.

    values_N: may be a view of memory that is trained, to be read or written through. `held_by_all` says that every
    process has this very piece, so that one of them is enough to save it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values_N: Tensor
    held_by_all: bool = False

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Piece:
        """All of a tensor that every process has. A tensor that is not contiguous is copied."""
        return cls(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1), held_by_all=True)

    @property
    def stop(self) -> int:
        return self.start + self.values_N.numel()

    def named(self, name: str) -> Piece:
        return replace(self, name=name)

    def copied(self) -> Piece:
        """The same on the CPU, in memory of its own."""
        return replace(self, values_N=self.values_N.detach().to("cpu", copy=True))


class SavedTensors(Protocol):
    """What a checkpoint gives back, by the names of the pieces that went into it."""

    def names(self, prefix: str = "") -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...
    def tensor(self, name: str) -> Tensor: ...


def share(pieces: Sequence[Piece], rank: int, world: int) -> list[Piece]:
    """What one of `world` processes saves: its own pieces, and its share of those that all of them hold."""
    mine, load = [], [0] * world
    for piece in pieces:
        if not piece.held_by_all:
            mine.append(piece)
            continue
        # Every process comes to the same answer, as all walk through the same pieces in the same order.
        least = min(range(world), key=load.__getitem__)
        load[least] += piece.values_N.numel()
        if least == rank:
            mine.append(piece)
    return mine


def assemble(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Whole tensors of pieces that cover them, by name.

    >>> import torch
    >>> halves = [Piece("w", (2, 2), 2, torch.tensor([3, 4])), Piece("w", (2, 2), 0, torch.tensor([1, 2]))]
    >>> assemble(halves)["w"].tolist()
    [[1, 2], [3, 4]]
    """
    found: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    for piece in pieces:
        if piece.name not in found:
            found[piece.name] = piece.values_N.new_empty(math.prod(piece.shape))
        found[piece.name][piece.start : piece.stop] = piece.values_N
        filled[piece.name] = filled.get(piece.name, 0) + piece.values_N.numel()
    shapes = {piece.name: piece.shape for piece in pieces}
    short = [name for name, count in filled.items() if count != math.prod(shapes[name])]
    if short:
        raise ValueError(f"{short[0]}: the pieces do not cover the tensor")
    return {name: tensor.view(shapes[name]) for name, tensor in found.items()}


def named_whole(prefix: str, tensors: Mapping[str, Tensor]) -> list[Piece]:
    """Tensors that every process has, as pieces under `prefix`."""
    return [Piece.whole(f"{prefix}{name}", tensor) for name, tensor in tensors.items()]
