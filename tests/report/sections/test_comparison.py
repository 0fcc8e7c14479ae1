"""The section that compares methods; the numbers are made up (nothing was trained)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.report.sections.comparison import comparison_section
from t5_pipeline.report.summary import summarize
from tests.report.conftest import RunBuilder

COSTS = {
    "prompt tuning": {"bytes": 10_240, "training_seconds": 15.0, "peak_bytes": 480_000_000},
    "LoRA": {"bytes": 98_304, "training_seconds": 30.0, "peak_bytes": 500_000_000, "trained": 24_576},
    "model tuning": {"bytes": 7_478_272, "training_seconds": 90.0, "peak_bytes": 600_000_000, "trained": 1_869_568},
}
LATENCIES = {
    "prompt tuning": {1: 0.004, 16: 0.004, 1000: 0.0041},
    "LoRA": {1: 0.006, 16: 0.030, 1000: 0.0319},
    "model tuning": {1: 0.004, 16: 1.5, 1000: 1.6},
}


class Costly(RunBuilder):
    """Adds the rows of two methods, and the costs of what one T5 was tuned with; the others' costs are unknown."""

    def score_rows(self) -> list[dict[str, Any]]:
        rows = super().score_rows()
        tuned = [row for row in rows if row["method"] == "prompt tuning" and row["model"] == "lm_adapt"]
        for method in ("LoRA", "model tuning"):
            rows += [{**row, "method": method, "cell": f"seed={row['seed']}", "prompt_length": None, "prompt_init": None,
                      **COSTS[method]} for row in tuned]  # fmt: skip
        return [
            {**row, **COSTS[row["method"]], "latency_seconds": LATENCIES[row["method"]]}
            if row["model"] == "lm_adapt" and row["method"] in COSTS
            else {name: value for name, value in row.items() if name not in ("bytes", "training_seconds")}
            for row in rows
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Costly(tmp_path / "run").all().run_dir.path


def test_methods_are_compared_by_quality_and_cost(path: Path) -> None:
    tasks = summarize(collect(path))
    found = comparison_section(tasks)
    assert found is not None
    html = str(found.markup)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.S)]
    assert rows[0] == ["Method", "Accuracy\u00a0%", "95% interval", "Trained parameters", "Bytes per task", "Peak memory",
                       "Training time", "Latency, 1 of 1", "Latency, 1 of 16", "Latency, 1 of 1,000"]  # fmt: skip
    by_method = {row[0]: row[1:] for row in rows[1:]}
    assert list(by_method) == ["Prompt tuning", "LoRA", "Model tuning"]
    assert by_method["LoRA"][0] == "64.0 ± 4.0"
    assert by_method["LoRA"][2:] == ["24,576", "98.3 kB", "500.0 MB", "30 s", "6.0 ms", "30.0 ms", "31.9 ms"]
    assert by_method["Model tuning"][-3:] == ["4.0 ms", "1.5 s", "1.6 s"]
    assert html.count("<svg") == 2
    for name in ("Bytes per task, logarithmic", "Training time, logarithmic", "LoRA: 98.3 kB, 64.0"):
        assert name in html
    assert "comparison-package-test.csv" in html
    assert 'id="comparison"' in render(collect(path))


def test_costs_of_several_tasks_are_named_so(path: Path) -> None:
    """The bytes of a T5 for several tasks are not those per task."""
    run = collect(path)
    several = [
        row.model_copy(update={"variant": "on 4 tasks"}) if row.method == "model tuning" else row for row in run.scores
    ]
    for scores, said in ((run.scores, False), (several, True)):
        found = comparison_section(summarize(replace(run, scores=scores)))
        assert found is not None
        assert ("are those of all these tasks together." in str(found.markup)) == said


def test_a_single_method_is_not_compared(finished: RunBuilder) -> None:
    assert comparison_section(summarize(collect(finished.run_dir.path))) is None
