"""Rates given by the user and measured from a job's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.throughput import parse_rate, seconds_of_a_step


@pytest.mark.parametrize(
    ("text", "rate"), [("400T", 4e14), ("0.5P", 5e14), ("35.5 GFLOP/s", 35.5e9), ("1e12", 1e12), ("20 MFLOPS", 2e7)]
)
def test_valid_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["fast", "", "-1T", "0T", "400K", "1.2.3T"])
def test_invalid_rates(text: str) -> None:
    with pytest.raises(InputError, match="is not a rate; give the FLOP/s of one device"):
        parse_rate(text)


def test_log_with_an_incomplete_last_line(tmp_path: Path) -> None:
    rows = [{"step": 10, "elapsed_s": 30.0}, {"step": 20, "elapsed_s": 50.0}, {"step": 20, "split": "validation"}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "elapsed_s"'
    )
    assert seconds_of_a_step(tmp_path) == 2.5
    assert seconds_of_a_step(tmp_path / "none") is None


def test_log_with_rows_of_the_wrong_type(tmp_path: Path) -> None:
    rows = ['{"step": 20, "elapsed_s": 50}', "[]", '{"step": "20", "elapsed_s": 9}', '{"step": 30, "elapsed_s": {}}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert seconds_of_a_step(tmp_path) == 2.5
