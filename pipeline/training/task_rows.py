"""Training rows of tasks, encoded for one T5."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from t5_pipeline.config.tuning import LearningConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.execution.context import Stage
from t5_pipeline.modeling.loaded import ModelSource

log = logging.getLogger("t5-pipeline")
Made = TypeVar("Made")
_FEW = 10  # distinct targets that are probably classes


def training_rows(stage: Stage[Any], source: ModelSource, tasks: Sequence[TaskConfig]) -> list[EncodedTask]:
    """The training split of each task as ids; a task that occurs several times is encoded once.

    Args:
        tasks: the task of each cell, or all tasks of the only cell.
    """
    c: LearningConfig = stage.config
    reading = source.reading(c.max_input_length, c.max_target_length)

    def encoded(task: TaskConfig) -> EncodedTask:
        rows = encode_task(Task.load(task), "train", reading, training=True)
        if not set(task.metrics) <= {"pearson", "spearman"}:  # these say that the targets are numbers, not classes
            _hint_at_labels(rows)
        return rows

    found = for_each_task(tasks, encoded)
    stage.record_rows([rows.counts for rows in found])
    return found


def for_each_task(tasks: Sequence[TaskConfig], make: Callable[[TaskConfig], Made]) -> list[Made]:
    """make(task) for each task, called once for equal ones."""
    keys = [task.model_dump_json() for task in tasks]
    made = {key: make(task) for key, task in dict(zip(keys, tasks, strict=True)).items()}
    return [made[key] for key in keys]


def _hint_at_labels(task: EncodedTask) -> None:
    """Log that a task without labels is probably a classification: few distinct targets, each several times."""
    if task.labels is not None or task.answers is not None:
        return
    found = sorted(set(task.target_texts))
    if len(found) <= min(_FEW, len(task.target_texts) // 5):
        log.warning(
            "tasks.%s: the %s training rows have only %d different targets; if these are classes, set `labels`"
            " (flag: --labels %s)", task.name, f"{len(task.target_texts):,}", len(found), shlex.quote(",".join(found)),
        )  # fmt: skip
