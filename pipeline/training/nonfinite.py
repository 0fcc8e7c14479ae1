"""What happens when a loss or a gradient is infinite or no number: the step and its examples are written down.

nonfinite.jsonl   {"step": 1234, "losses": ["nan"], "gradient_norm": "inf", "examples": [17, 4022, …], "skipped": true}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from t5_pipeline.core.errors import InputError
from t5_pipeline.training.microbatches import BatchSource
from t5_pipeline.training.step_stats import NotFinite

NAME = "nonfinite.jsonl"


class OnNonFinite:
    """stop: training ends, the checkpoints from before stay; skip: the step changes nothing, is counted, and passed.

    Args:
        directory: where the file goes; None writes none (a process that is not the first).
    """

    def __init__(self, policy: Literal["stop", "skip"], directory: Path | None) -> None:
        self.skips = policy == "skip"
        self._path = None if directory is None else directory / NAME

    def handle(self, bad: Sequence[NotFinite], batches: BatchSource) -> None:
        """Writes down the steps that were found.

        Raises:
            InputError: where the policy is to stop and there is one.
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
                f"step {first.step:,}: {first.what} is not finite; its examples are named in {self._path or NAME}, and"
                " the checkpoints before it are intact: `on_nonfinite: skip` goes on without this step; with another"
                " learning_rate or precision training starts anew"
            )

    def _row(self, found: NotFinite, batches: BatchSource) -> dict[str, object]:
        return {
            "step": found.step,
            "losses": [number if abs(number) < float("inf") else str(number) for number in found.losses],
            "gradient_norm": str(found.gradient_norm),
            "examples": batches.ids(found.step - 1),
            "skipped": self.skips,
        }
