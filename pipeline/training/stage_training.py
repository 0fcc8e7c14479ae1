"""The training of a stage: every step that is still to be published, from the newest checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.run_dir import step_name
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.trackers import trackers
from t5_pipeline.training.trainer import Trainer

log = logging.getLogger("t5-pipeline")


def train_stage(stage: Stage[Any], trainer: Trainer, publish: Callable[[int, TrainingResult], None]) -> None:
    """Train through every step that is still to be published, from the newest checkpoint.

    Steps before that checkpoint are retrained in a directory of their own, so newer checkpoints stay. Each begins with
    the newest checkpoint before it. Once all are published, the checkpoints of that directory are removed.

    Args:
        publish: called on every process with (step, result), once the checkpoint of the step is on disk.
    """
    # Steps of the run, and what each is published as.
    pending = {trainer.config.run_steps(step): step for step in stage.steps_pending()}
    for warning in dict.fromkeys(warning for cell in stage.cells for warning in cell.config.warnings()):
        log.warning("%s: %s", stage.name, warning)
    with StopSignal(stage.launch) as stop, Progress(stage.name, max(pending), shown=stage.is_main) as progress:

        def train(directory: Path, steps: list[int], at: int | None, others: Checkpoints | None = None) -> None:
            """Train to these steps; the other arguments are those of `Trainer.resume`."""
            with (
                trackers(stage, directory) as track,
                trainer.open(directory, stage.fingerprint, stop=stop, progress=progress, track=track),
            ):
                trainer.resume(at, steps[0], others)
                stage.seconds_before = max(stage.seconds_before, trainer.state.elapsed_before)
                progress.restart()
                for step in steps:
                    trainer.run_to(step)
                    publish(pending[step], trainer.result())

        start, made = stage.resume_from, trainer.checkpoints_in(stage.directory, stage.fingerprint)
        if start is None:
            newest = made.latest()
            start = newest.step if newest else 0
        passed = [step for step in pending if step < start]
        for step in passed:
            train(stage.directory / "steps" / step_name(passed[-1]), [step], None, made)
        if passed and stage.is_main:
            trainer.checkpoints.discard()
        if ahead := [step for step in pending if step >= start]:
            train(stage.directory, ahead, stage.resume_from)
        stage.stopped_by = stop.signum
