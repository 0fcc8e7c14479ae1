"""Policy for steps whose loss or gradient is NaN or infinite: stop, or skip the step; both record its examples.

nonfinite.jsonl   {"step": 1234, "losses": ["nan"], "gradient_norm": "inf", "examples": [17, 4022, …], "skipped": true}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from t5_pipeline.core.atomic_files import fsync_file
from t5_pipeline.core.bounded import open_file, parse_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.training.microbatches import BatchSource
from t5_pipeline.training.step_stats import NotFinite

NAME = "nonfinite.jsonl"


class OnNonFinite:
    """Handles non-finite steps.

    Args:
        policy: "stop" ends training and keeps the earlier checkpoints; "skip" leaves the weights unchanged and counts
            the step.
        directory: directory of nonfinite.jsonl; None writes no file (on ranks other than 0).
    """

    def __init__(self, policy: Literal["stop", "skip"], directory: Path | None) -> None:
        self.skips = policy == "skip"
        self._path = None if directory is None else directory / NAME

    def forget_after(self, step: int) -> None:
        """Remove the rows of later steps, which training from `step` computes again, and a torn last line."""
        if self._path is None or not self._path.exists():
            return
        kept = self._path.with_name(f".{NAME}.kept.tmp")
        with open_file(self._path) as lines, kept.open("wb") as file:
            file.writelines(line for line in lines if 0 < _step(line) <= step)
        fsync_file(kept)
        kept.replace(self._path)

    def handle(self, bad: Sequence[NotFinite], batches: BatchSource) -> None:
        """Record non-finite steps.

        Raises:
            InputError: if there are some and the policy is to stop.
        """
        if not bad:
            return
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                for found in bad:
                    file.write(json.dumps(self._row(found, batches)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        if not self.skips:
            first = bad[0]
            raise InputError(
                f"step {first.step:,}: {first.quantity} is not finite (examples: {self._path or NAME}; earlier"
                " checkpoints are intact); continue without this step by `on_nonfinite: skip`, or start again with"
                " another learning_rate or precision"
            )

    def _row(self, found: NotFinite, batches: BatchSource) -> dict[str, object]:
        return {
            "step": found.step,
            "losses": [number if abs(number) < float("inf") else str(number) for number in found.losses],
            "gradient_norm": str(found.gradient_norm),
            "examples": batches.ids(found.step - 1),
            "skipped": self.skips,
        }


def _step(line: bytes) -> int:
    """The step of a row; 0 if the line is torn or damaged."""
    try:
        return int(parse_json(line)["step"]) if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0
