"""Throughput of devices: given by the user, or measured from the log of a run."""

from __future__ import annotations

import re
from pathlib import Path

from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.metrics_log import read_rows

MEASURED = "measured"
_SLOWEST = 1e6
_PREFIXES = {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def parse_rate(text: str) -> float | None:
    """FLOP/s of one device from `400T`, `35.5 GFLOP/s` or `2e12`; None for `measured`.

    Raises:
        InputError: if the text is neither.

    >>> parse_rate("400T"), parse_rate("35.5 GFLOP/s"), parse_rate("measured")
    (400000000000000.0, 35500000000.0, None)
    """
    if text == MEASURED:
        return None
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([MGTP]?)(?:FLOPS|FLOP/s)?\s*", text)
    try:
        value = float(found[1]) * _PREFIXES[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise InputError(f"--rate {text}: is not a rate; give the FLOP/s of one device, such as 400T, or {MEASURED}")
    if value < _SLOWEST:
        raise InputError(f"--rate {text}: means {value:,g} FLOP/s, slower than any device; did you mean {value:g}T?")
    return value


def seconds_of_a_step(directory: Path) -> float | None:
    """Average seconds per step of a job, from its log; None if it has logged no step yet.

    Includes everything between steps: checkpoints, validation and restarts.
    """
    seconds = None
    for row in read_rows(directory / "metrics.jsonl"):
        if row and row.step and row.elapsed_s:
            seconds = row.elapsed_s / row.step
    return seconds
