"""The table that ends a run."""

from __future__ import annotations

import json
import shutil

from t5_pipeline.core.durations import duration
from t5_pipeline.report.collect import collect
from t5_pipeline.report.summary import summarize
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
    size = (directory / "prompt.safetensors").stat().st_size
    seconds = next(m for m in collect(finished.run_dir.path).manifests() if m.stage == "prompt_tune").seconds / 3
    assert prompts[:4] == ["package", "accuracy 64.0 ± 4.0", "10, 20, 30", f"{size:,}"]
    assert prompts[4] == duration(seconds)
    assert by_name["Majority class", "–"] == ["package", "accuracy 40.0", "–", "–", "–"]


def test_costs_are_those_of_the_report(finished) -> None:
    """Cells that were trained together share their time, with scores and without."""
    run = collect(finished.run_dir.path)
    line = next(line for task in summarize(run) for line in task.tuned if line.model == "lm_adapt")
    seconds = line.cost("training_seconds")
    together = next(job for job in run.jobs if line.rows[0].cell in [result.cell.id for result in job.cells])
    assert len(together.cells) == 3
    assert seconds == together.seconds / 3
    scored = next(row for row in table(finished) if row[:2] == ["Prompt tuning", "LM adaptation @40 steps"])
    shutil.rmtree(finished.run_dir.path / "evaluate")
    unscored = next(row for row in table(finished) if row[:2] == ["prompt_tune", "lm_adapt"])
    assert scored[-2:] == unscored[-2:] == [f"{round(line.cost('bytes')):,}", duration(seconds)]


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
