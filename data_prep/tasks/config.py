"""A task as settings: where its rows are, how a row becomes an input and a target, what is scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from t5_pipeline.core.schema import Config, Data, nearest, setting
from t5_pipeline.data_prep.tasks.formats import FORMATS, expanded, task_name
from t5_pipeline.data_prep.tasks.splits import split_file, split_slice

METRICS = {
    **dict.fromkeys(("accuracy", "exact_match", "token_f1", "pearson", "spearman"), ""),
    **dict.fromkeys(("f1", "macro_f1", "mcc"), "labels"),
    "group_accuracy": "group",
    "referent": "holds",
}
"""Every metric, and the setting of a task that it needs; pipeline/evaluation/metrics.py computes them."""


class TaskConfig(Config):
    """A task in text-to-text form: where its rows are, and how a row becomes an input and a target.

    Worked example: inputs "sentence: {text}", targets "{label}", labels [negative, positive].
    """

    name: str = setting(..., "name of the task, as tables and prompts show it")
    format: str | None = setting(
        None, f"published format that fills what is not given here: {', '.join(FORMATS)}; docs/tasks.md shows them"
    )
    task_prefix: bool = setting(
        False, "begin each input with the task's own name, as T5's multi-task mixtures do; the paper removes it"
    )
    data: Annotated[str, Data()] = setting(
        ..., "folder, file or `datasets` hub name that holds the rows; `stdlib-kinds` is built in"
    )
    config: str | None = setting(
        None, "configuration of a hub data set; a `format` then takes the hub's names of fields and splits"
    )
    reader: Literal["rows", "multirc", "record", "wsc", "squad", "qqp"] = setting(
        "rows", "how a file becomes rows: rows, one each; the others read these benchmarks' files as distributed"
    )
    splits: dict[str, str] = setting(
        {"train": "train", "validation": "validation", "test": "test"},
        "where each split is: a file name inside `data`, or a split name; with a slice of its rows, as in train[:90%]",
    )
    inputs: str = setting(..., "template of the input, with {field} for a row's fields")
    targets: str = setting(..., "template of the target, with {field} for a row's fields")
    values: dict[str, dict[str, str]] = setting(
        {}, "what the values of a field stand for, before templates are filled: {label: {0: negative, 1: positive}}"
    )
    round_to: dict[str, float] = setting(
        {}, "number fields that are given as their nearest multiple: {score: 0.2} makes 3.75 read 3.8"
    )
    labels: list[str] | None = setting(None, "every target there can be, for classification; none means free text")
    answers: str | None = setting(None, "field that lists every acceptable answer, of which a score takes the best")
    group: str | None = setting(None, "field that says which rows belong together (metric group_accuracy)")
    holds: str | None = setting(
        None, "field that says whether the target is true of its row; false ones are not trained on (metric referent)"
    )
    metrics: list[str] = setting(["accuracy"], "scores to compute; the first one ranks prompts")

    @model_validator(mode="before")
    @classmethod
    def fill_from_format(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("format"), str):
            return values
        if values["format"] not in FORMATS:
            raise ValueError(f"there is no format `{values['format']}`; {nearest(values['format'], FORMATS)}")
        return expanded(values, values["format"])

    @field_validator("labels", "values", mode="before")
    @classmethod
    def as_text(cls, value: Any) -> Any:
        """YAML reads 0 and true as a number and a truth value; as a label or a field's value they are text."""
        if isinstance(value, dict):
            return {key: cls.as_text(inner) for key, inner in ((str(k), v) for k, v in value.items())}
        if isinstance(value, list):
            return [str(item) for item in value]
        return str(value) if isinstance(value, (int, float)) else value

    @field_validator("splits")
    @classmethod
    def slices_are_slices(cls, value: dict[str, str]) -> dict[str, str]:
        for split in value.values():
            split_slice(split)
        return value

    @field_validator("round_to")
    @classmethod
    def multiples_are_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for field, step in value.items():
            if not 0 < step < math.inf:
                raise ValueError(f"`{field}` must be rounded to multiples of a number above 0, not {step}")
        return value

    @field_validator("metrics")
    @classmethod
    def metrics_are_known(cls, value: list[str], info: ValidationInfo) -> list[str]:
        """Checked before training, not after it."""
        check_metric_names(value)
        for name in value:
            needed = METRICS[name]
            if needed and not info.data.get(needed, True):
                others = ", ".join(other for other, need in METRICS.items() if not need)
                fix = f"give them, or choose one of {others}" if needed == "labels" else "name a field of its rows"
                raise ValueError(f"`{name}` needs the task's `{needed}`; {fix}")
        return value

    @model_validator(mode="after")
    def prefix_is_there(self) -> TaskConfig:
        """`inputs` of one's own are never added to in silence."""
        if not self.task_prefix:
            return self
        if self.format is None:
            raise ValueError("`task_prefix` needs a `format`; write the task's name into `inputs` instead")
        name = task_name(self.format)
        if not self.inputs.startswith((f"{name} ", f"{name}:")):
            raise ValueError(
                f"`task_prefix` adds nothing to `inputs` of your own; begin them with `{name}`, or leave it out"
            )
        return self

    def files(self) -> dict[str, Path]:
        """The file of each split; without splits that have none, and empty for data that are no files here."""
        found = {split: split_file(self.data, value) for split, value in self.splits.items()}
        return {split: file for split, file in found.items() if file is not None}


def check_metric_names(names: list[str]) -> None:
    """Check the names of metrics.

    Raises:
        ValueError: if a metric is unknown, or there is none.
    """
    if not names:
        raise ValueError(f"name at least one metric: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"there is no metric `{name}`; {nearest(name, METRICS)}")
