"""metrics.jsonl: one JSON object per line, ordered by step.

{"step": 10, "loss": 5.1, "learning_rate": 0.01, "tokens_per_second": 6120.0, …}
{"step": 10, "split": "validation", "loss": 5.3, "bits_per_byte": 2.1}
{"step": 10, "split": "probe", "score": 0.71, "spread": 0.02, "scores": {"kind,seed=0": {"accuracy": 0.7}, …}}
{"step": 10, "loss": 0.6, "losses": {"seed=0": 0.5, "seed=1": 0.7}, "examples_per_second": 31.0, …}
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from t5_pipeline.core.atomic_files import fsync_file
from t5_pipeline.core.bounded import open_file
from t5_pipeline.core.errors import InputError

Row = Mapping[str, Any]
Number = Annotated[FiniteFloat, Field(gt=-1e100, lt=1e100)]
LINE_LIMIT = 1 << 24
"""Bytes of the longest line that is read; longer lines are damaged."""
_MOST_RESTS = 64  # blocks of a longer line that are skipped; the rest of the file is then not read

log = logging.getLogger("t5-pipeline")


class LoggedRow(BaseModel):
    """A line of metrics.jsonl as it is read. Other keys of a line are ignored.

    Attributes:
        step: of the run.
        prompt_step: step of the prompts of this row, if prompts of a sweep take turns.
        losses: by id of the cell, if several cells train together.
        scores: metrics of a validation by id of the cell, or of a probe by task and seed.
        elapsed_s: seconds of training so far, over all restarts.
        bits_per_byte: of held-out text.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    step: int = Field(ge=0, lt=2**53)
    prompt_step: int | None = Field(None, ge=0, lt=2**53)
    split: str = "train"
    loss: Number | None = None
    losses: dict[str, Number] = {}
    scores: dict[str, dict[str, Number]] = {}
    elapsed_s: Number | None = None
    bits_per_byte: Number | None = None


def read_row(line: bytes) -> LoggedRow | None:
    """The row of a line; None if the line is damaged or incomplete.

    >>> read_row(b'{"step": 10, "loss": 5.1}\\n').loss
    5.1
    >>> read_row(b'{"step": 10, "loss": "5.1"}\\n'), read_row(b'{"step": 10, "lo')
    (None, None)
    """
    try:
        return LoggedRow.model_validate_json(line) if line.endswith(b"\n") else None
    except (ValidationError, RecursionError):
        return None


def read_rows(path: Path) -> Iterator[LoggedRow | None]:
    """Rows of a file in order, None for a damaged line; nothing if there is no file that can be read.

    An incomplete last line, which a kill leaves behind, is not counted.
    """
    try:
        file = open_file(path)
    except OSError:
        return
    with file:
        lines = _lines(file)
        for line in lines:
            if line.endswith(b"\n"):
                yield read_row(line)
            elif len(line) == LINE_LIMIT:
                yield None
                if not any(rest.endswith(b"\n") for rest in itertools.islice(lines, _MOST_RESTS)):
                    return


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; one that is too long in blocks of LINE_LIMIT."""
    return iter(functools.partial(file.readline, LINE_LIMIT), b"")


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
        damaged, later, whole = 0, False, True
        kept = self.path.with_name(f".{self.path.name}.kept.tmp")
        with open_file(self.path) as lines, kept.open("wb") as file, contextlib.ExitStack() as stack:
            aside: BinaryIO | None = None
            for line in _lines(lines):
                row = read_row(line) if whole else None
                if row is None and (line.endswith(b"\n") or len(line) == LINE_LIMIT):
                    if aside is None:
                        aside = stack.enter_context(self.path.with_name(f"{self.path.name}.damaged").open("ab"))
                    aside.write(line)
                    damaged += whole
                elif row is None or row.step > step:
                    later = True
                else:
                    file.write(line)
                whole = line.endswith(b"\n")
        if damaged:
            log.warning("%s: %d damaged lines were moved to %s.damaged", self.path, damaged, self.path.name)
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
