"""Training rows of tasks, encoded for one T5."""

from __future__ import annotations

from collections.abc import Sequence

from t5_pipeline.config.tuning import LearningConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, Task, encode_task
from t5_pipeline.modeling.loaded import ModelSource


def training_rows(tasks: Sequence[TaskConfig], source: ModelSource, c: LearningConfig) -> list[EncodedTask]:
    """The training split of each task as ids; a task that occurs several times is encoded once."""
    encoded: dict[str, EncodedTask] = {}
    for task in tasks:
        key = task.model_dump_json()
        if key not in encoded:
            lengths = (c.max_input_length, c.max_target_length)
            encoded[key] = encode_task(
                Task.load(task), "train", source.vocabulary, *lengths, source.sentinel, training=True
            )
    return [encoded[task.model_dump_json()] for task in tasks]
