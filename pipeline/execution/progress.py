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

from t5_pipeline.core.durations import duration
from t5_pipeline.core.printable import printable
from t5_pipeline.core.scores import score_text, scores_text

# The bar measures its speed over at most this time, or 1,000 steps. rich's 30 s are less than some steps take.
_SPEED_OVER_S = 3600.0


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
            label, *numbers_now = (
                TextColumn(f"{{task.{field}}}", markup=False)
                for field in ("description", "fields[now]", "fields[validation]")
            )
            columns = (label, BarColumn(), MofNCompleteColumn(), *numbers_now, TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console, speed_estimate_period=_SPEED_OVER_S)
            self._task = self._bar.add_task(self.label, total=self.total, now="", validation="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def restart(self) -> None:
        """Estimate the remaining time from the next step on, because it does not follow the last one."""
        self._started = None
        if self._bar is not None:
            self._bar.reset(self._task, completed=self.done)

    def advance(self, by: int, row: Mapping[str, Any]) -> None:
        """Report `by` more finished steps."""
        self.update(self.done + by, row)

    def validated(self, step: int, row: Mapping[str, Any]) -> None:
        """Report a validation after `step` steps, with its row of metrics.jsonl."""
        text = validation_text(row)
        if self._bar is not None:
            self._bar.update(self._task, validation=text)
        elif self.shown:
            of = "" if self.total is None else f"/{self.total:,}"
            self._write(f"{self.label}  {self.unit} {step:,}{of}  {text}")

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
            self._write("  ".join(parts))

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full or closed stderr must not stop training
            self._console.file.write(line + "\n")
            self._console.file.flush()


def numbers(row: Mapping[str, Any]) -> list[str]:
    """Loss, effective learning rate and throughput of a metrics row, as text.

    >>> numbers({"step": 10, "loss": 3.21412, "learning_rate": 0.00095346, "tokens_per_second": 6120.4})
    ['loss 3.214', 'learning rate 0.000953', '6,120 tokens/s']
    >>> numbers({"step": 512, "tokens_per_second": 0})  # none are finished yet
    []
    """
    shown = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "learning_rate" in row:
        shown.append(f"learning rate {row['learning_rate']:.3g}")
    for unit in ("tokens", "examples"):
        rate = row.get(f"{unit}_per_second")
        if rate:
            shown.append(f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s")
    return shown


def validation_text(row: Mapping[str, Any]) -> str:
    """The loss or the scores of a validation, or of a probe; of several cells or prompts the mean, lowest and highest.

    >>> validation_text({"loss": 3.21412})
    'validation loss 3.214'
    >>> validation_text({"scores": {"seed=0": {"accuracy": 0.80}, "seed=1": {"accuracy": 0.867}}})
    'validation accuracy 83.4 (mean of 2, 80.0 to 86.7)'
    >>> validation_text({"split": "probe", "score": 0.712, "spread": 0.031, "scores": {}})
    'probe score 71.2 ± 3.1'
    """
    if row.get("split") == "probe":
        return f"probe score {score_text(row['score'])} ± {100 * row['spread']:.1f}"
    if "loss" in row:
        return f"validation loss {row['loss']:.3f}"
    found: dict[str, list[float]] = {}
    for scores in row.get("scores", {}).values():
        for metric, value in scores.items():
            found.setdefault(metric, []).append(value)
    shown = []
    for metric, values in found.items():
        text = scores_text({metric: sum(values) / len(values)})
        if len(values) > 1:
            text += f" (mean of {len(values)}, {score_text(min(values))} to {score_text(max(values))})"
        shown.append(text)
    return f"validation {', '.join(shown)}"
