"""Every process has the whole model and the whole optimizer: one process, or several that sum their gradients (DDP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.engines.base import (
    MODEL,
    OPTIMIZER,
    Engine,
    Inside,
    MakeOptimizer,
    states_saved,
    trained_parameters,
)
from pipeline.training.pieces import Piece, SavedTensors
from pipeline.training.ranks import Ranks


class Whole(Engine):
    """The gradients are summed once a step, after the last microbatch, in large buckets."""

    lockstep = False

    def __init__(self, inside: Inside, make_optimizer: MakeOptimizer, ranks: Ranks, device: torch.device) -> None:
        self.ranks = ranks
        self.device = device
        self.inside = inside.to(device)
        self.model = inside.model
        self.trained = trained_parameters(self.model)
        self.optimizer = make_optimizer(list(self.trained.values()))
        self._seen_together = ranks.world == 1

    def call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return self.inside(do, *arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        gradients = []
        for p in self.trained.values():
            if p.grad is None and self.ranks.world > 1:
                p.grad = torch.zeros_like(p)  # a process without examples still takes part in the sum
            if p.grad is not None:
                gradients.append(p.grad)
        self.ranks.sum(gradients)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if not skip_nonfinite or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self._seen_together:
            check_together(self.ranks, list(self.trained.values()))
            self._seen_together = True
        return norm

    def weights(self) -> list[Piece]:
        return [Piece.whole(MODEL + name, p) for name, p in self.trained.items()]

    def moments(self) -> list[Piece]:
        return [
            Piece.whole(f"{OPTIMIZER}{name}/{key}", value)
            for name, p in self.trained.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        ]

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        self.optimizer.state.clear()
        for name, p in self.trained.items():
            p.copy_(saved.tensor(MODEL + name))
            for key in states_saved(saved, name):
                value = saved.tensor(f"{OPTIMIZER}{name}/{key}")
                # Step counts stay on the CPU, where the optimizers made them: reading one must not wait for a device.
                self.optimizer.state[p][key] = value if key == "step" else value.to(p.device)


def check_together(ranks: Ranks, parameters: Sequence[nn.Parameter]) -> None:
    """Raise RuntimeError where processes that must have the same weights do not: they train apart."""
    total = torch.stack([p.detach().double().sum() for p in parameters]).sum()
    if total.isfinite() and not ranks.agree(total):
        raise RuntimeError("after a step the processes have different weights: their gradients are not summed")
