"""The table that ends a run."""

from __future__ import annotations

import json
import shutil

from t5_pipeline.core.durations import duration
from t5_pipeline.report.collect import collect
from t5_pipeline.report.terminal import results_table


def table(finished) -> list[list[str]]:
    lines = results_table(collect(finished.run_dir.path))
    assert lines[0].split() == ["method", "T5", "task", "score", "step", "bytes", "time"]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:]]


def test_every_line_of_the_scores_has_its_step_bytes_and_time(finished) -> None:
    rows = table(finished)
    assert len(rows) == 4 + 4 + 1  # prompts, without prompts, majority class
    by_name = {tuple(row[:2]): row[2:] for row in rows}
    prompts = by_name["Prompt tuning", "LM adaptation @40 steps"]
    directory = finished.run_dir.path / "prompt_tune" / "model=lm_adapt,seed=0" / "prompt"
    size = sum(file.stat().st_size for file in directory.iterdir())
    seconds = next(m for m in collect(finished.run_dir.path).manifests() if m.stage == "prompt_tune").seconds
    assert prompts[:4] == ["package", "accuracy 64.0 ± 4.0", "10, 20, 30", f"{size:,}"]
    assert prompts[4] == duration(seconds)
    assert by_name["Majority class", "–"] == ["package", "accuracy 40.0", "–", "–", "–"]


def test_without_scores(finished) -> None:
    shutil.rmtree(finished.run_dir.path / "evaluate")
    rows = table(finished)
    assert [row[0] for row in rows].count("prompt_tune") == 4
    assert ["lm_adapt", "–", "–", "–", "40"] in [row[:5] for row in rows]
    assert {row[3] for row in rows} == {"–"}


def test_scores_of_earlier_results_are_marked(finished) -> None:
    """A prompt was trained again, and its steps and bytes are not shown beside the scores of the one before."""
    manifest = finished.run_dir.path / "prompt_tune/model=lm_adapt,seed=0/manifest.json"
    manifest.write_text(
        manifest.read_text().replace(json.loads(manifest.read_text())["outputs"]["prompt"]["digest"], "f" * 64)
    )
    rows = table(finished)
    assert ["Prompt tuning", "LM adaptation @40 steps", "package", "accuracy 64.0 ± 4.0 (stale)", "–", "–", "–"] in rows
    assert ["prompt_tune", "lm_adapt", "package", "–", "10, 20, 30"] in [row[:5] for row in rows]
