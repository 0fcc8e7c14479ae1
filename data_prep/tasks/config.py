"""Task settings: the rows, the templates of inputs and targets, and the metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, Data, setting
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.corpora.row import first_duplicate
from t5_pipeline.data_prep.tasks.formats import FORMATS, expanded, task_name
from t5_pipeline.data_prep.tasks.readers import PASSAGES, Reader
from t5_pipeline.data_prep.tasks.splits import parallel_files, share_rows, split_file, split_slice, stem
from t5_pipeline.data_prep.tasks.template import fields_of

METRICS = {
    **dict.fromkeys(("accuracy", "exact_match", "token_f1", "pearson", "spearman"), ""),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"), ""),
    **dict.fromkeys(("f1", "macro_f1", "mcc"), "labels"),
    "group_accuracy": "group",
    "referent": "holds",
}
"""Every metric, and the setting of a task that it needs; pipeline/evaluation/metrics.py computes them."""
_PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}  # beginning of a metric's name → package


class TaskConfig(Config):
    """A task in text-to-text form.

    Example: inputs "sentence: {text}", targets "{label}", labels [negative, positive].
    """

    name: str = setting(..., "name of the task in tables and prompts")
    format: str | None = setting(
        None, "published format that supplies missing keys, such as superglue/rte (all: docs/tasks.md)"
    )
    task_prefix: bool = setting(
        False, "begin each input with T5's task name, as in its multi-task mixtures (off in the paper)"
    )
    data: Annotated[str, Data()] = setting(
        ..., "folder, file or `datasets` hub name of the rows; `stdlib-kinds` is built in"
    )
    config: str | None = setting(
        None, "configuration of a hub data set; `format` then uses the hub's field and split names"
    )
    reader: Reader = setting(
        "rows", "rows: one example per row; parallel: a file per field; others: benchmark files as distributed"
    )
    splits: dict[str, str] = setting(
        {"train": "train", "validation": "validation", "test": "test"},
        "split → file name inside `data` or hub split, optionally sliced: train[:90%, shuffled]",
    )
    inputs: str = setting(..., "template of the input, with {field} for the fields of a row")
    targets: str = setting(..., "template of the target, with {field} for the fields of a row")
    values: dict[str, dict[str, str]] = setting(
        {}, "texts for the values of a field: {label: {0: negative, 1: positive}}"
    )
    round_to: dict[str, float] = setting({}, "numeric fields to round to multiples: {score: 0.2} turns 3.75 into 3.8")
    labels: list[str] | None = setting(None, "all possible targets of a classification task; none for free text")
    nulls: Literal["error", "drop"] = setting(
        "error", "rows with null in a field that the task uses (CSV, TSV: empty): error, or drop and count them"
    )
    answers: str | None = setting(None, "field that lists all acceptable answers; a metric takes the best match")
    group: str | None = setting(None, "field that identifies rows of one group (metric group_accuracy)")
    holds: str | None = setting(
        None, "field that says if the target is true; false rows are not trained on (metric referent)"
    )
    metrics: list[str] = setting(["accuracy"], "metrics to compute; their average selects checkpoints")

    def default_where(self, *key: str | int) -> str:
        return ".".join(map(str, ("tasks", self.name, *key)))

    @model_validator(mode="before")
    @classmethod
    def fill_from_format(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("format"), str):
            return values
        if values["format"] not in FORMATS:
            raise ValueError(f"unknown format `{values['format']}`; {nearest(values['format'], FORMATS)}")
        return expanded(values, values["format"])

    @field_validator("labels", "values", mode="before")
    @classmethod
    def as_text(cls, value: Any) -> Any:
        """Turn YAML's numbers back into text, because labels and field values are text.

        A boolean is the value of a field (a key of `values`: true matches a row's true), but never a text.
        """
        if isinstance(value, dict):
            if twice := first_duplicate(map(str, value)):
                raise ValueError(f"two keys are the same text, {twice}; remove one")
            return {str(key): cls.as_text(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [_text(item) for item in value]
        return value if value is None else _text(value)

    @field_validator("labels")
    @classmethod
    def separated(cls, value: list[str] | None) -> list[str] | None:
        """A single label that looks like several is a list without commas."""
        if value is not None and len(value) == 1 and len(words := value[0].replace(",", " ").split()) > 1:
            raise ValueError(f"has the single label `{value[0]}`; put commas between labels: {', '.join(words)}")
        return value

    @field_validator("splits")
    @classmethod
    def check_slices(cls, value: dict[str, str]) -> dict[str, str]:
        for split in value.values():
            split_slice(split)
        return value

    @model_validator(mode="after")
    def check_orders(self) -> TaskConfig:
        """Slices of a file must not overlap because they take its rows in different orders."""
        orders: dict[str, str] = {}
        for split in self.splits.values():
            name, part = split_slice(split)
            if part is None:
                continue
            if part.order == "stratified" and (not self.labels or self.reader in PASSAGES):
                needed = "a task with `labels`" if not self.labels else "a reader without passages"
                raise ValueError(f"`{split}`: a stratified slice needs {needed}; use `shuffled`")
            order = f"{part.order}={part.seed}"
            if orders.setdefault(self._file_of(split), order) != order:
                raise ValueError(
                    f"`{split}`: the slices of {name} take its rows in different orders and can overlap; give all the"
                    " same order and seed"
                )
        return self

    @property
    def held_out(self) -> list[str]:
        """The splits whose inputs must not occur in a corpus: all but `train`, such as MNLI's validation_mismatched."""
        return [split for split in self.splits if split != "train"]

    def _file_of(self, split: str) -> str:
        """The file of a split, which may be named with or without its suffix."""
        with contextlib.suppress(InputError, OSError):  # which reading the rows reports
            if file := split_file(self.data, split):
                return str(file)
        return stem(split_slice(split)[0])

    def contains_training_rows(self, name: str) -> bool:
        """Whether the slices alone show that a split contains rows of `train`."""
        if name == "train" or not {name, "train"} <= self.splits.keys():
            return False
        held_out, train = self.splits[name], self.splits["train"]
        same_file = self._file_of(held_out) == self._file_of(train)
        return same_file and share_rows(split_slice(held_out)[1], split_slice(train)[1])

    @model_serializer(mode="wrap")
    def without_new_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings at defaults that mean what happened before they existed, so that digests stay."""
        dumped: dict[str, Any] = handler(self)
        if dumped.get("nulls") == "error":
            del dumped["nulls"]
        return dumped

    @field_validator("round_to")
    @classmethod
    def check_multiples(cls, value: dict[str, float]) -> dict[str, float]:
        for field, step in value.items():
            if not 0 < step < math.inf:
                raise ValueError(f"`{field}` must be rounded to multiples of a positive number, not {step}")
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
    def check_task_prefix(self) -> TaskConfig:
        """The task name is only added to the inputs of a format, never to the user's own."""
        if not self.task_prefix:
            return self
        if self.format is None:
            raise ValueError("`task_prefix` needs a `format`; write the task name into `inputs` instead")
        name = task_name(self.format)
        if name and not self.inputs.startswith((f"{name} ", f"{name}:")):
            raise ValueError(f"`task_prefix` does not change your own `inputs`; begin them with `{name}`, or remove it")
        return self

    def files(self) -> dict[str, Path]:
        """The local file of each split that has one; of parallel files, `train.en` is that of field en."""
        if self.reader == "parallel":
            fields = fields_of(self.inputs, self.targets)
            return {
                f"{split}.{field}": file
                for split, value in self.splits.items()
                for field, file in parallel_files(self.data, value, fields).items()
            }
        found = {split: split_file(self.data, value) for split, value in self.splits.items()}
        return {split: file for split, file in found.items() if file is not None}


def _text(value: Any) -> Any:
    """A number as text.

    Raises:
        ValueError: if YAML read a text without quotes as another type, whose text would differ.
    """
    if isinstance(value, bool):
        words, example = ("yes, on and true", "yes") if value else ("no, off and false", "no")
        raise ValueError(f'without quotes, YAML reads {words} as {value}; write it in quotes, as in "{example}"')
    if value is None or isinstance(value, date):
        what = "null" if value is None else f"a date, {value}"
        raise ValueError(f"without quotes, YAML reads a text as {what}; write it in quotes")
    return str(value) if isinstance(value, int | float) else value


def metric_packages(metrics: Iterable[str]) -> list[str]:
    """The packages that metrics need beyond the dependencies.

    >>> metric_packages(["accuracy", "rouge1", "rougeL"])
    ['rouge_score']
    """
    return sorted({package for name in metrics for prefix, package in _PACKAGES.items() if name.startswith(prefix)})


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
