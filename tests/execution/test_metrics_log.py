"""metrics.jsonl after kills, and the progress display."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.execution import metrics_log
from t5_pipeline.execution.metrics_log import MetricsLog, read_rows
from t5_pipeline.execution.progress import Progress


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_after_the_restored_step_and_a_torn_line_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        for step in (0, 10, 20, 20, 30):
            metrics.write({"step": step, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    with MetricsLog(path) as metrics:
        metrics.truncate_after(100)
        assert steps(path) == [0, 10, 20, 20, 30]
        metrics.truncate_after(20)
        metrics.write({"step": 30, "loss": 2.0})
        metrics.sync()
        assert steps(path) == [0, 10, 20, 20, 30]
        metrics.truncate_after(-1)
    assert path.read_text() == ""


def test_rows_are_passed_to_trackers(tmp_path: Path) -> None:
    tracked: list[Any] = []
    with MetricsLog(tmp_path / "metrics.jsonl", also=tracked.append) as metrics:
        metrics.write({"step": 1, "loss": 0.5})
    assert tracked == [{"step": 1, "loss": 0.5}]


def test_a_metric_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with (
        MetricsLog(tmp_path / "metrics.jsonl") as metrics,
        pytest.raises(InputError, match="step 3: a metric is not finite"),
    ):
        metrics.write({"step": 3, "loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_log_contains_the_first_and_last_rows_and_some_between() -> None:
    stream = io.StringIO()
    with Progress("lm_adapt", 100, stream=stream, every=3600) as progress:
        for step in range(1, 101):
            row = {"loss": 3.2141, "learning_rate": 0.001, "tokens_per_second": 6120.4}
            progress.update(step, row if step % 10 == 0 else None)
            if step == 50:
                progress.validated(step, {"scores": {"": {"accuracy": 0.8667}}})
    first, validated, last = stream.getvalue().splitlines()
    assert first.startswith("lm_adapt  step 10/100  loss 3.214  learning rate 0.001  6,120 tokens/s  ")
    assert first.endswith("left")
    assert validated == "lm_adapt  step 50/100  validation accuracy 86.7"
    assert last == "lm_adapt  step 100/100  loss 3.214  learning rate 0.001  6,120 tokens/s"


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    with Progress("prompt_tune", 50, stream=stream) as progress:
        progress.update(25, {"loss": 0.5, "examples_per_second": 31.25})
        progress.validated(25, {"loss": 0.625})
        progress.update(50)
    shown = stream.getvalue()
    assert "prompt_tune" in shown
    assert "50/50" in shown
    assert "loss 0.500  31.2 examples/s" in shown
    assert "validation loss 0.625" in shown


def test_the_time_that_is_left_follows_from_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier step is retrained in ten steps, then the run continues from a checkpoint far ahead."""
    clock, stream = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("lm_adapt", 10_000, stream=stream, every=0) as progress:
        for step in (*range(1, 11), 9_001, 9_002):
            clock[0] += 60
            if step == 9_001:
                progress.restart()
            progress.update(step, {"loss": 1.0})
    assert stream.getvalue().splitlines()[-1] == "lm_adapt  step 9,002/10,000  loss 1.000  16 h 38 min left"


def test_a_bar_shows_the_time_that_is_left_of_slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = [0.0], io.StringIO()
    monkeypatch.setattr("rich.console.monotonic", lambda: clock[0])
    with Progress("lm_adapt", 1_000, stream=stream) as progress:
        for step in range(1, 11):
            clock[0] += 60
            progress.update(step, {"loss": 1.0})
    assert "16:30:00" in stream.getvalue()


def test_damaged_lines_are_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": %d}\n' % step for step in (1, 2, 3, 4)]
    damaged = [
        b'{"step": 2, "lo\n',
        b"\xff\x00\n",
        b"[]\n",
        b'{"loss": 1}\n',
        b'{"step": "2"}\n',
        b"[" * 100_000 + b"\n",
    ]
    path.write_bytes(good[0] + b"".join(damaged) + b"".join(good[1:]) + b'{"step": 5')
    with MetricsLog(path) as metrics:
        metrics.truncate_after(3)
        assert path.read_bytes() == b"".join(good[:3])
        metrics.write({"step": 4})
        metrics.truncate_after(9)
    assert path.read_bytes() == b"".join(good)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"".join(damaged)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_that_is_too_long_is_one_damaged_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end, read alone, would be a row."""
    monkeypatch.setattr(metrics_log, "LINE_LIMIT", 16)
    path, long = tmp_path / "metrics.jsonl", b"x" * 64 + b'{"step": 2}\n'
    path.write_bytes(b'{"step": 1}\n' + long + b'{"step": 3}\n')
    assert [row and row.step for row in read_rows(path)] == [1, None, 3]
    with MetricsLog(path) as metrics:
        metrics.truncate_after(9)
    assert steps(path) == [1, 3]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == long
