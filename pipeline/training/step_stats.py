"""Losses and throughput between two rows of metrics.jsonl, without a device synchronization at every step.

N steps, C losses a step (one for each prompt of a bank, else one)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from t5_pipeline.training.distributed.collectives import ProcessGroup


@dataclass(frozen=True)
class NotFinite:
    """A step (1 is the first) whose losses [C] or gradient norm are NaN or infinite."""

    step: int
    losses: list[float]
    gradient_norm: float

    @property
    def quantity(self) -> str:
        return "the gradient" if all(map(math.isfinite, self.losses)) else "the loss"


class StepStats:
    """Collects every step's losses and gradient norm on the device; `synchronize` brings them to the host.

    Checkpoints contain `history_NC`, so that a row is the same if a kill came between its steps.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._waiting: list[tuple[int, Tensor, Tensor]] = []
        self.history_NC = torch.zeros(0, 0, dtype=torch.float64)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure throughput from here on."""
        self.tokens = self.examples = 0
        self._since = time.monotonic()

    def add(self, step: int, losses_C: Tensor, gradient_norm: Tensor, tokens: int, examples: int) -> None:
        """Add a step (1 is the first): this rank's losses [C] and the norm of the summed gradient."""
        self._waiting.append((step, losses_C, gradient_norm))
        self.tokens += tokens
        self.examples += examples

    def synchronize(self) -> list[NotFinite]:
        """Sum the losses over the ranks: one collective and one wait for the device.

        Returns:
            The steps whose loss or gradient is not finite, the same on all ranks; they enter no mean.
        """
        if not self._waiting:
            return []
        losses_NC = torch.stack([losses_C for _, losses_C, _ in self._waiting])
        self._group.sum([losses_NC])
        norms_N = torch.stack([norm for _, _, norm in self._waiting])
        block = torch.cat([norms_N.unsqueeze(1), losses_NC], dim=1).double().cpu()
        finite_N = block.isfinite().all(dim=1)
        bad = [
            NotFinite(step, numbers[1:].tolist(), float(numbers[0]))
            for (step, _, _), numbers, finite in zip(self._waiting, block, finite_N, strict=True)
            if not finite
        ]
        self._waiting.clear()
        block = block[finite_N]
        self.history_NC = torch.cat([self.history_NC, block]) if len(self.history_NC) else block
        return bad

    def read(self, cells: Sequence[str], unit: str, active: Sequence[int] | None = None) -> dict[str, object]:
        """Mean loss and gradient norm of the synchronized steps since the last call, and the throughput.

        Without a finite step there is only the throughput.

        Args:
            cells: names of the losses; empty logs only their mean.
            unit: "tokens" or "examples".
            active: indices of the losses that count; default: all.
        """
        seconds = max(time.monotonic() - self._since, 1e-9)
        row: dict[str, object] = {}
        if len(self.history_NC):
            norm, *losses = self.history_NC.mean(dim=0).tolist()
            if active is not None and len(active) < len(cells):
                losses, cells = [losses[i] for i in active], [cells[i] for i in active]
            row["loss"] = sum(losses) / len(losses)
            if cells:
                row["losses"] = dict(zip(cells, losses, strict=True))
            row["gradient_norm"] = norm
        row[f"{unit}_per_second"] = round({"tokens": self.tokens, "examples": self.examples}[unit] / seconds, 2)
        self.history_NC = self.history_NC[:0]
        self.restart_clock()
        return row

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside into the throughput."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started
