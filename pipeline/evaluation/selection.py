"""Checkpoint selection for the stages that learn a task, by the average of its metrics on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from t5_pipeline.config.tuning import FOR_SELECTION, LearningConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.held_out import HeldOut, validation_rows
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.execution.context import Stage
from t5_pipeline.modeling.loaded import ModelSource
from t5_pipeline.training.best_checkpoint import Measured, Selection
from t5_pipeline.training.halving import Halving
from t5_pipeline.training.task_rows import for_each_task


def select_best(
    stage: Stage[Any],
    source: ModelSource,
    tasks: Sequence[TaskConfig],
    score: Callable[..., list[Measured]],
    *,
    cells: Sequence[str] = ("",),
    kept: Callable[[Any, int], Mapping[str, Tensor]] | None = None,
    task_of: Sequence[int] = (),
    halving: Halving | None = None,
) -> Selection | None:
    """Choose the published checkpoint by validation scores; None with `select: last`.

    Args:
        score: (model, splits=validation rows of each task, options=) → validation of each cell.
        cells, kept, halving: as in `Selection`.
        task_of: index of the task of each cell; default: cell i has task i.

    Raises:
        InputError: if a task has no usable validation rows.
    """
    c: LearningConfig = stage.config
    if c.select == "last":
        return None

    def rows_of(task: TaskConfig) -> HeldOut:
        try:
            return validation_rows(task, source, c)
        except InputError as error:
            raise InputError(f"{error} ({FOR_SELECTION})") from None

    splits = for_each_task(tasks, rows_of)
    stage.record_rows([split.rows.counts for split in splits])
    splits = [splits[index] for index in task_of or range(len(splits))]
    measure = partial(score, splits=splits, options=AnswerOptions(stage.accelerator.device, c.precision))
    return Selection(cells, measure, kept, every=c.validate_every, patience=c.patience, halving=halving)
