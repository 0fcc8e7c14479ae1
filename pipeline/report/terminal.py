"""The table that ends a run: what each method reaches, and what it costs. The report's own aggregation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.durations import duration
from t5_pipeline.core.tables import aligned
from t5_pipeline.report.collect import CellResult, Run
from t5_pipeline.report.scores import Score
from t5_pipeline.report.summary import MAJORITY, NO_PROMPT, summarize

_HEADER = ("method", "T5", "task", "score", "step", "bytes", "time")
_UNKNOWN = "–"


def results_table(run: Run) -> list[str]:
    """One line for each method on each task: mean score and spread over seeds, published steps, bytes, training time.

    Bytes and time are those of the report: what is stored for a task, and one cell's share of the training. Cells that
    were trained but not scored are listed without a score; empty if nothing was trained or scored.
    """
    rows: list[Sequence[str]] = []
    stale = set(run.stale)
    scored: set[tuple[str, str]] = set()
    for task in summarize(run):
        for line in task.lines:
            fresh = [row for row in line.rows if row.identity not in stale]
            baseline = line.method in (NO_PROMPT, MAJORITY)
            made = [] if baseline else [result for row in fresh for result in _made(run, row)]
            scored |= {_key(result) for result in made}
            spread = line.spread(task.metric)
            score = _UNKNOWN if spread is None else f"{task.metric} {spread.text}"
            score += "" if len(fresh) == len(line.rows) else " (stale)"
            costs = (_bytes(line.cost("bytes")), _time(line.cost("training_seconds"))) if fresh else (_UNKNOWN,) * 2
            rows.append((line.title, line.path or _UNKNOWN, task.task, score, _steps(made), *costs))
    for job in run.jobs:
        left = [result for result in job.cells if result.manifest and _key(result) not in scored]
        if left and (left[0].settings.made_for() or (not run.scores and isinstance(left[0].settings, TrainingConfig))):
            tasks = dict.fromkeys(task.name for result in left for task in result.settings.made_for())
            manifests = [result.manifest for result in left if result.manifest]
            seconds = statistics.fmean(manifest.training_seconds for manifest in manifests)
            texts = (left[0].frozen or _UNKNOWN, ", ".join(tasks) or _UNKNOWN, _UNKNOWN, _steps(left))
            rows.append((job.kind, *texts, _bytes(manifests[0].stored_bytes), _time(seconds)))
    return aligned([_HEADER, *rows]) if rows else []


def _made(run: Run, row: Score) -> Iterable[CellResult]:
    """The cells whose artifact has this row of scores."""
    for result in run.cells():
        manifest, tasks = result.manifest, [task.name for task in result.settings.made_for()]
        if row.source is not None and row.source.partition("@")[0] != result.cell.stage:
            continue
        if manifest is None or result.settings.scored_as is None or result.cell.id != (row.cell or ""):
            continue
        trained = manifest.facts.get("trained", row.trained)
        if (row.trained_on or row.task) in tasks and trained == row.trained:
            yield result


def _key(result: CellResult) -> tuple[str, str]:
    return result.cell.stage, result.cell.id


def _steps(results: Sequence[CellResult]) -> str:
    """The published steps."""
    manifests = [result.manifest for result in results if result.manifest]
    steps = sorted({step for m in manifests if (step := m.facts.get("best_step", m.step)) is not None})
    shown = ", ".join(f"{step:,}" for step in steps) if len(steps) < 4 else f"{steps[0]:,} to {steps[-1]:,}"
    return shown or _UNKNOWN


def _bytes(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{round(number):,}"


def _time(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else duration(seconds)
