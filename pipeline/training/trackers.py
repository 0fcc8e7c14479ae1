"""TensorBoard and W&B, through Accelerate: they receive every row of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.execution.context import Stage

Track = Callable[[Mapping[str, Any]], None]


@contextmanager
def trackers(stage: Stage[Any], directory: Path) -> Iterator[Track | None]:
    """Start the trackers that the settings name; None if they name none."""
    c: TrainingConfig = stage.config
    if not c.trackers:
        yield None
        return
    accelerator = stage.accelerator
    accelerator.project_configuration.logging_dir = str(directory / "trackers")
    accelerator.init_trackers("t5-pipeline", {k: v for k, v in c if isinstance(v, (int, float, str))})

    def track(row: Mapping[str, Any]) -> None:
        split = row.get("split", "train")
        flat = {f"{split}/{name}": value for name, value in row.items() if isinstance(value, (int, float))}
        flat |= {f"{split}/loss/{cell}".rstrip("/"): value for cell, value in row.get("losses", {}).items()}
        for cell, scores in row.get("scores", {}).items():
            flat |= {f"{split}/{metric}/{cell}".rstrip("/"): value for metric, value in scores.items()}
        accelerator.log(flat, step=row["step"])

    try:
        yield track
    finally:
        # Not end_training(): it would also end the process group, which the stage still needs.
        for tracker in accelerator.trackers:
            tracker.finish()
