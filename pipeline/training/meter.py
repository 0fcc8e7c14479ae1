"""Losses and speed between two lines of the metrics log, without making the device wait at every step.

N steps, C losses a step (one for each prompt of a bank, else one)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.training.ranks import Ranks


class Meter:
    """Collects every step's losses and gradient norm on the device; `settle` brings them to the host.

    `history` is what a checkpoint keeps, so that a line whose steps a kill divided comes out the same.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._waiting: list[tuple[int, Tensor, Tensor]] = []
        self.history_NC = torch.zeros(0, 0, dtype=torch.float64)
        self.restart_clock()

    def restart_clock(self) -> None:
        """The rate is that of the steps from here on."""
        self.tokens = self.examples = 0
        self._since = time.monotonic()

    def add(self, step: int, losses_C: Tensor, gradient_norm: Tensor, tokens: int, examples: int) -> None:
        """Notes step number `step` (1 is the first): this rank's losses [C] and the norm of the summed gradient."""
        self._waiting.append((step, losses_C, gradient_norm))
        self.tokens += tokens
        self.examples += examples

    def settle(self) -> None:
        """Sums the losses over the ranks and checks them: one exchange, one wait for the device.

        Raises:
            InputError: a loss or a gradient is not finite (on every rank alike).
        """
        if not self._waiting:
            return
        losses_NC = torch.stack([losses_C for _, losses_C, _ in self._waiting])
        self._ranks.sum([losses_NC])
        norms_N = torch.stack([norm for _, _, norm in self._waiting])
        block = torch.cat([norms_N.unsqueeze(1), losses_NC], dim=1).double().cpu()
        for (step, _, _), numbers in zip(self._waiting, block, strict=True):
            if not numbers.isfinite().all():
                what = "the loss" if not numbers[1:].isfinite().all() else "the gradient"
                raise InputError(
                    f"step {step:,}: {what} is not finite; the checkpoints before it are intact:"
                    " lower learning_rate, or use precision fp32, and run again"
                )
        self._waiting.clear()
        self.history_NC = torch.cat([self.history_NC, block]) if len(self.history_NC) else block

    def read(self, cells: Sequence[str], unit: str) -> dict[str, object]:
        """The means since the last reading, and the rate in `unit` ("tokens" or "examples"); then starts afresh."""
        self.settle()
        norm, *losses = self.history_NC.mean(dim=0).tolist()
        seconds = max(time.monotonic() - self._since, 1e-9)
        row: dict[str, object] = {"loss": sum(losses) / len(losses)}
        if cells:
            row["losses"] = dict(zip(cells, losses, strict=True))
        row["gradient_norm"] = norm
        row[f"{unit}_per_second"] = round({"tokens": self.tokens, "examples": self.examples}[unit] / seconds, 2)
        self.history_NC = self.history_NC[:0]
        self.restart_clock()
        return row

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not counted into the rate."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started
