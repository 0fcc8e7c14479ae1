"""A task as settings: where its rows are, how a row becomes an input and a target, what is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationInfo, field_validator

from pipeline.fields import Data, Settings, setting
from pipeline.task_files import split_file
from pipeline.validation import nearest

# Scores of predicted texts, and scores that need to know every label there is (pipeline/evaluation/metrics.py).
TEXT_METRICS = ("accuracy", "exact_match", "token_f1", "pearson", "spearman")
LABEL_METRICS = ("f1", "macro_f1", "mcc")


class TaskSettings(Settings):
    """A task in text-to-text form: where its rows are, and how a row becomes an input and a target.

    Worked example: inputs "sentence: {text}", targets "{label}", labels [negative, positive].
    """

    name: str = setting(..., "name of the task, as tables and prompts show it")
    data: Annotated[str, Data()] = setting(
        ..., "folder, file or `datasets` hub name that holds the rows; `stdlib-kinds` is built in"
    )
    config: str | None = setting(None, "configuration of a hub data set")
    splits: dict[str, str] = setting(
        {"train": "train", "validation": "validation", "test": "test"},
        "where each split is: a file name inside `data`, or a split name",
    )
    inputs: str = setting(..., "template of the input, with {field} for a row's fields")
    targets: str = setting(..., "template of the target, with {field} for a row's fields")
    values: dict[str, dict[str, str]] = setting(
        {}, "what the values of a field stand for, before templates are filled: {label: {0: negative, 1: positive}}"
    )
    labels: list[str] | None = setting(None, "every target there can be, for classification; none means free text")
    metrics: list[str] = setting(["accuracy"], "scores to compute; the first one ranks prompts")

    @field_validator("labels", "values", mode="before")
    @classmethod
    def as_text(cls, value: Any) -> Any:
        """YAML reads 0 and true as a number and a truth value; as a label or a field's value they are text."""
        if isinstance(value, dict):
            return {key: cls.as_text(inner) for key, inner in ((str(k), v) for k, v in value.items())}
        if isinstance(value, list):
            return [str(item) for item in value]
        return str(value) if isinstance(value, (int, float)) else value

    @field_validator("metrics")
    @classmethod
    def metrics_are_known(cls, value: list[str], info: ValidationInfo) -> list[str]:
        """Said here, and not after training."""
        check_metric_names(value)
        for name in value:
            if name in LABEL_METRICS and not info.data.get("labels", True):
                raise ValueError(
                    f"`{name}` needs the task's `labels`; give them, or choose of {', '.join(TEXT_METRICS)}"
                )
        return value

    def files(self) -> dict[str, Path]:
        """The file of each split; without splits that have none, and empty for data that are no files here."""
        found = {split: split_file(self.data, value) for split, value in self.splits.items()}
        return {split: file for split, file in found.items() if file is not None}


def check_metric_names(names: list[str]) -> None:
    """
    Raises:
        ValueError: there is no such metric, or none at all.
    """
    known = (*TEXT_METRICS, *LABEL_METRICS)
    if not names:
        raise ValueError(f"name at least one metric: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"there is no metric `{name}`; {nearest(name, known)}")
