"""Replicated engine: the whole model and optimizer on every process, with summed gradients (DDP), or on just one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from t5_pipeline.training.cuda_graphs import MicrobatchGraphs
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import Engine, ForwardScope, MakeOptimizer, trained_parameters


class Replicated(Engine):
    """Sums the gradients once per step, after the last microbatch, in large buckets.

    Args:
        cuda_graphs: replay microbatches whose shapes come back (`MicrobatchGraphs`).
    """

    lockstep = False

    def __init__(
        self,
        scope: ForwardScope,
        make_optimizer: MakeOptimizer,
        group: ProcessGroup,
        device: torch.device,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self.group = group
        self.device = device
        self.scope = scope.to(device)
        self.model = scope.model
        self.precision = scope.precision
        self.trained = trained_parameters(self.model)
        self.optimizer = make_optimizer(list(self.trained.values()))
        self._in_sync = group.world == 1
        self._graphs = MicrobatchGraphs(partial(super().accumulate, last=True)) if cuda_graphs else None

    def accumulate(self, loss_fn: Callable[..., Tensor], batch: Any, *, last: bool) -> Tensor:
        if self._graphs is None:
            return super().accumulate(loss_fn, batch, last=last)
        return self._graphs(loss_fn, batch)

    def release_graphs(self) -> bool:
        if self._graphs is None or not self._graphs.release():
            return False
        self._graphs = None
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        gradients = []
        for p in self.trained.values():
            if p.grad is None and self.group.world > 1:
                p.grad = torch.zeros_like(p)  # a process without examples still takes part in the all-reduce
            if p.grad is not None:
                gradients.append(p.grad)
        self.group.sum(gradients)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if not skip_nonfinite or bool(norm.isfinite()):
            self.optimizer.step()
        if self._graphs is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            torch._foreach_zero_(gradients)
        if not self._in_sync:
            check_in_sync(self.group, list(self.trained.values()))
            self._in_sync = True
        return norm


def check_in_sync(group: ProcessGroup, parameters: Sequence[nn.Parameter]) -> None:
    """Raise RuntimeError if the processes have different weights: they are training apart."""
    total = torch.stack([p.detach().double().sum() for p in parameters]).sum()
    if total.isfinite() and not group.agree(total):
        raise RuntimeError("the processes have different weights after a step: their gradients are not summed")
