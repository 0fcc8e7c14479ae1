"""Progress of a stage: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from t5_pipeline.core.printable import printable


class Progress:
    """Step, loss, rate and remaining time.

    A live bar in a terminal; elsewhere a line for the first row, then one every `every` seconds, and one for the last.

        lm_adapt  step 120/1,500  loss 3.214  6,120 tokens/s  1 min 52 s left
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "step",
        stream: TextIO | None = None,
        every: float = 10.0,
        shown: bool = True,
    ) -> None:
        """Create a progress display; entering it starts the bar.

        Args:
            total: number of steps; None if unknown.
            every: minimum seconds between lines.
            shown: False on all processes except the first.
        """
        self.label = printable(label)
        self.total = total
        self.shown = shown
        self.unit = unit
        self.done = 0
        self.every = every
        self._console = Console(file=stream or sys.stderr)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._started: tuple[float, int] | None = None
        self._printed_at = float("-inf")

    def __enter__(self) -> Progress:
        if self.shown and self._console.is_terminal:
            label, numbers_now = (
                TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[now]")
            )
            columns = (label, BarColumn(), MofNCompleteColumn(), numbers_now, TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task(self.label, total=self.total, now="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, by: int, row: Mapping[str, Any]) -> None:
        """Report `by` more finished steps."""
        self.update(self.done + by, row)

    def update(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Report `step` finished steps, with the newest row of metrics.jsonl if there is one."""
        now = time.monotonic()
        self.done = step
        if self._started is None:
            self._started = (now, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if row is not None:
                self._bar.update(self._task, now="  ".join(numbers(row)))
        elif self.shown and row is not None and (now - self._printed_at >= self.every or step == self.total):
            self._printed_at = now
            of = "" if self.total is None else f"/{self.total:,}"
            parts = [self.label, f"{self.unit} {step:,}{of}", *numbers(row)]
            started_at, first = self._started
            if self.total is not None and first < step < self.total:
                parts.append(f"{duration((now - started_at) / (step - first) * (self.total - step))} left")
            with contextlib.suppress(OSError):  # a full or closed stderr must not stop training
                self._console.file.write("  ".join(parts) + "\n")
                self._console.file.flush()


def numbers(row: Mapping[str, Any]) -> list[str]:
    """Loss and rate of a metrics row, as text.

    >>> numbers({"step": 10, "loss": 3.21412, "tokens_per_second": 6120.4})
    ['loss 3.214', '6,120 tokens/s']
    """
    shown = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    for unit in ("tokens", "examples"):
        rate = row.get(f"{unit}_per_second")
        if rate is not None:
            shown.append(f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s")
    return shown


def duration(seconds: float) -> str:
    """
    >>> duration(7.4), duration(112), duration(7_260)
    ('7 s', '1 min 52 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
