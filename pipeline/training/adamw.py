"""AdamW with the weight decay of T5X's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class AdamW(torch.optim.AdamW):
    """torch's AdamW with decoupled weight decay that is not scaled by the rate: w·(1 − decay) − lr·m̂ / (√v̂ + ε).

    (torch's own weight decay, 0 here, is multiplied by the rate.) It is elementwise, so it is correct on the flat
    partitions of ZeRO, and the prompts of a bank do not affect one another.
    """

    def __init__(self, params: ParamsT, lr: float = 0.0, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group may have its own `weight_decay`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("decay", group["weight_decay"])
        group["weight_decay"] = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["decay"]:
                torch._foreach_mul_(params, 1.0 - group["decay"])
        return super().step(closure)
