"""Curves from logs, damaged ones included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.report.curves import Curve, JobLog, mean, read_log, thinned


def test_long_curves_are_thinned() -> None:
    long = Curve(list(range(1, 10_001)), [float(step) for step in range(1, 10_001)])
    short = thinned(long)
    assert len(short.steps) <= 240
    assert short.steps[-1] == 10_000
    assert short.values[0] == pytest.approx(21.5)  # the mean of steps 1 to 42


def test_mean_of_curves_covers_shared_steps() -> None:
    assert mean([Curve([1, 2, 3], [1.0, 2.0, 3.0]), Curve([2, 3], [4.0, 5.0])]) == Curve([2, 3], [3.0, 4.0])


def test_scores_are_the_average_of_the_metrics(tmp_path: Path) -> None:
    row = {
        "step": 5,
        "split": "validation",
        "scores": {"seed=0": {"accuracy": 0.5, "f1": 0.75}},
        "losses": {"seed=0": 2},
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    found = read_log(tmp_path / "metrics.jsonl")
    assert found == JobLog({}, {"seed=0": Curve([5], [2.0])}, {"seed=0": Curve([5], [0.625])}, step=5)


def test_the_score_of_several_tasks_is_the_mean_of_their_averages(tmp_path: Path) -> None:
    """Task a has one metric, and b two; the mean is that of mean_of_tasks, which chooses the step."""
    scores = {"mean": 0.65, "a accuracy": 0.9, "b accuracy": 0.5, "b f1": 0.3}
    row = {"step": 5, "split": "validation", "scores": {"": scores}, "losses": {"": 2}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert read_log(tmp_path / "metrics.jsonl").scores == {"": Curve([5], [0.65])}


def test_rows_after_the_last_step_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)))
    assert read_log(path, last=2).train == {"": Curve([1, 2], [1.0, 1.0])}


HOSTILE = [
    "[]", "null", "7", '"text"', "{}", '{"loss": 1.0}', '{"step": "10", "loss": 1}', '{"step": true, "loss": 1}',
    '{"step": -1, "loss": 1}', '{"step": 1e300, "loss": 1}', '{"step": 1, "loss": "1"}', '{"step": 1, "loss": NaN}',
    '{"step": 1, "loss": 1e999}', '{"step": 1, "losses": []}', '{"step": 1, "losses": {"a": null}}',
    '{"step": 1, "scores": {"a": 1}}', '{"step": 1, "scores": {"a": {"b": "c"}}}', '{"step": 1, "split": 3}',
    '{"step": ' + "9" * 5000 + "}", '{"step": 1, "loss": ' + "[" * 100_000, "\x00\xff", '{"step": 1, "elapsed_s": "x"}',
]  # fmt: skip


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    """Between good lines, which are all kept; the last line was being written."""
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": 1.5, "elapsed_s": 2, "more": [{}]}\n'
    path.write_text(good + "\n".join(HOSTILE) + "\n" + good + '{"step": 99', encoding="latin-1")
    found = read_log(path)
    assert found.train == {"": Curve([1, 1], [1.5, 1.5])}
    assert (found.validation, found.scores, found.damaged) == ({}, {}, len(HOSTILE))


@pytest.mark.parametrize("there", [True, False])
def test_a_log_that_is_not_a_file_is_empty(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "metrics.jsonl").mkdir()
    assert read_log(tmp_path / "metrics.jsonl") == JobLog()
