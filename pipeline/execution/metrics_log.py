"""metrics.jsonl: one JSON object per line, ordered by step.

{"step": 10, "loss": 5.1, "learning_rate": 0.01, "tokens_per_second": 6120.0, …}
{"step": 10, "split": "validation", "loss": 5.3}
{"step": 10, "loss": 0.6, "losses": {"seed=0": 0.5, "seed=1": 0.7}, "examples_per_second": 31.0, …}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t5_pipeline.core.errors import InputError

Row = Mapping[str, Any]


class MetricsLog:
    """Appends rows to a file, and passes each to `also` if given (trackers)."""

    def __init__(self, path: Path, also: Callable[[Row], None] | None = None) -> None:
        self.path = path
        self.also = also
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, row: Row) -> None:
        """Append a row as one line in one write, so that a kill can only tear the last line.

        Raises:
            InputError: if a number in the row is not finite.
        """
        try:
            line = json.dumps(row, allow_nan=False) + "\n"
        except ValueError:
            where = f"{self.path}: step {row['step']}"
            raise InputError(
                f"{where}: a metric is not finite ({dict(row)}); lower learning_rate and train again"
            ) from None
        os.write(self._descriptor, line.encode())
        if self.also is not None:
            self.also(row)

    def truncate_after(self, step: int) -> None:
        """Remove the rows of later steps, which training from `step` will write again, and a torn last line."""
        kept = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
                kept += len(line)
        os.ftruncate(self._descriptor, kept)

    def sync(self) -> None:
        """fsync the rows written so far."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
