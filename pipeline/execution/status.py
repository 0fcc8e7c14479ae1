"""Status of a run: one row for each cell, from manifests, metrics and locks only."""

from __future__ import annotations

import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.run_dir import RunDir, is_locked
from t5_pipeline.config.recipe import Recipe
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.bounded import open_file
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.durations import duration
from t5_pipeline.core.tables import aligned
from t5_pipeline.execution.metrics_log import LoggedRow, read_row, read_rows
from t5_pipeline.execution.staleness import cell_statuses

_END = 65_536  # bytes of a metrics file, at its end, that are read first


def collect(recipe: Recipe, run_dir: RunDir) -> list[dict[str, Any]]:
    """Rows with the keys stage, cell, kind, state, reason, step, steps, loss, seconds, updated (Unix time) and digest.

    Steps are those of the run, which does more than its prompts if these take turns in a sweep. While a run is active,
    cells that have not been started are queued.
    """
    rows = []
    active = is_locked(run_dir.state / "lock", run_dir.path)
    jobs = {stage: run_dir.job_directories(stage) for stage in recipe.stages}
    for status in cell_statuses(recipe, run_dir):
        cell = status.cell
        manifest = run_dir.manifest(cell)
        state = {"run": "to run", "continue": "to continue"}.get(status.action, status.action)
        if not status.up_to_date:
            started = run_dir.started(cell)
            begun = started is not None and started.fingerprint == status.fingerprint
            running = is_locked(run_dir.state / f"{cell.stage}.lock", run_dir.path / cell.stage)
            state = "running" if running and begun else "queued" if running or active else state
        log, settings = run_dir.log_directory(cell, jobs[cell.stage]) or run_dir.cell(cell), cell.settings
        steps = settings.run_steps(settings.steps) if isinstance(settings, TrainingConfig) else None
        step, last, updated = _last_rows(log / "metrics.jsonl", steps)
        if status.up_to_date and isinstance(settings, TrainingConfig) and not settings.may_stop_early():
            step = steps  # also if the last step was not logged
        rows.append(
            {
                "stage": cell.stage,
                "cell": cell.id,
                "kind": cell.settings.kind,
                "state": state,
                "reason": status.reason,
                "step": step,
                "steps": steps,
                "loss": _loss(last, cell.id) if last else None,
                "seconds": manifest.seconds if manifest else None,
                "updated": updated,
                "digest": next((o.digest for o in manifest.outputs.values()), None) if manifest else None,
            }
        )
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    table = [["stage", "state", "step", "loss", "seconds", "last line", "digest", "why"]]
    for row in rows:
        of = f"{row['step'] or 0:,} / {row['steps']:,}" if row["steps"] is not None else ""
        table.append(
            [
                row["stage"] + (f" [{row['cell']}]" if row["cell"] else ""),
                row["state"],
                of,
                f"{row['loss']:.3f}" if isinstance(row["loss"], float) else "",
                f"{row['seconds']:,.0f}" if row["seconds"] is not None else "",
                f"{duration(max(time.time() - row['updated'], 0))} ago" if row["updated"] else "",
                short_digest(row["digest"] or ""),
                "" if row["state"] == "up to date" else row["reason"],
            ]
        )
    return "\n".join(aligned(table))


def _loss(row: LoggedRow, cell: str) -> float | None:
    """The loss of a cell in a row; in a sweep, the mean over its prompts."""
    own = [loss for name, loss in row.losses.items() if name == cell or name.startswith(f"{cell},")]
    return statistics.fmean(own) if own else row.loss


def _last_rows(path: Path, steps: int | None) -> tuple[int | None, LoggedRow | None, float | None]:
    """The step of the last complete row of a metrics file, its last training row, and the file's modification time.

    Args:
        steps: leave out the rows of later steps, of a time when the stage had more `steps`; None: read all.
    """
    try:
        with open_file(path) as file:
            updated = os.fstat(file.fileno()).st_mtime
            file.seek(max(0, path.stat().st_size - _END))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return None, None, None
    most = math.inf if steps is None else steps
    rows = [row for line in lines if (row := read_row(line))]
    if all(row.split != "train" for row in rows) or rows[-1].step > most:
        rows = sorted((row for row in read_rows(path) if row and row.step <= most), key=lambda row: row.step)
    trained = next((row for row in reversed(rows) if row.split == "train"), None)
    return (rows[-1].step if rows else None), trained, updated if rows else None
