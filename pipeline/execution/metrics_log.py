"""metrics.jsonl: one JSON object per line, ordered by step.

{"step": 10, "loss": 5.1, "learning_rate": 0.01, "tokens_per_second": 6120.0, …}
{"step": 10, "split": "validation", "loss": 5.3}
{"step": 10, "loss": 0.6, "losses": {"seed=0": 0.5, "seed=1": 0.7}, "examples_per_second": 31.0, …}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t5_pipeline.core.atomic_files import fsync_file
from t5_pipeline.core.bounded import open_file, parse_json
from t5_pipeline.core.errors import InputError

Row = Mapping[str, Any]
_LONGEST_ROW = 2**22  # bytes; rows have one loss per prompt
log = logging.getLogger("t5-pipeline")


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
        """Remove the rows of later steps, which training from `step` will write again, and a torn last line.

        Damaged lines are moved to metrics.jsonl.damaged.
        """
        damaged, later = [], False
        kept = self.path.with_name(f".{self.path.name}.kept.tmp")
        with open_file(self.path) as lines, kept.open("wb") as file:
            for line in lines:
                of = _step_of(line)
                if of is None and line.endswith(b"\n"):
                    damaged.append(line)
                elif of is None or of > step:
                    later = True
                else:
                    file.write(line)
        if damaged:
            with self.path.with_name(f"{self.path.name}.damaged").open("ab") as file:
                file.writelines(damaged)
            log.warning("%s: %d damaged lines were moved to %s.damaged", self.path, len(damaged), self.path.name)
        if damaged or later:
            fsync_file(kept)
            kept.replace(self.path)
            os.close(self._descriptor)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        else:
            kept.unlink()

    def sync(self) -> None:
        """fsync the rows written so far."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file; damaged and incomplete lines are skipped, and a file that cannot be read has none."""
    with contextlib.suppress(OSError), open_file(path) as lines:
        while (line := lines.readline(_LONGEST_ROW)) and line.endswith(b"\n"):
            row = parse_row(line)
            if row is not None:
                yield row


def parse_row(line: bytes) -> Row | None:
    """The row of a line; None if the line is damaged or incomplete."""
    try:
        row: Any = parse_json(line) if line.endswith(b"\n") else None
        numbers = [row["step"], row.get("loss", 0), row.get("elapsed_s", 0), *(row.get("losses") or {}).values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    valid = type(row["step"]) is int and all(type(number) in (int, float) for number in numbers)
    return row if valid else None


def _step_of(line: bytes) -> int | None:
    row = parse_row(line)
    return None if row is None else int(row["step"])
