"""The task of `tune`: its rows in files, and rows held out for validation and test."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.config.command_line import flag
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key
from t5_pipeline.core.schema import validate
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.splits import split_slice
from t5_pipeline.data_prep.tasks.task import Task

Named = Callable[[str], str]
"""Gives the name of a setting in errors: by default its flag."""
_FEWEST = 8  # rows of which each tenth has at least one


def one_task(
    name: str,
    files: Mapping[str, Path | None],
    *,
    inputs: str,
    targets: str,
    labels: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    named: Named = flag,
) -> TaskConfig:
    """A task with its rows in files of their own, or in slices of files.

    Args:
        files: split → file or slice; `train` is required.

    Raises:
        InputError: if a file does not exist or a setting is invalid.
    """
    given = {split: _file_and_slice(named(split), place) for split, place in files.items() if place is not None}
    data = given["train"][0]
    values: dict[str, Any] = {
        "name": name, "data": str(data), "inputs": inputs, "targets": targets, "labels": labels,
        "splits": {split: os.path.relpath(file, data.parent) + part for split, (file, part) in given.items()},
        "metrics": metrics or (["accuracy"] if labels else ["exact_match", "token_f1"]),
    }  # fmt: skip
    return validate(TaskConfig, values, lambda key: named(_given_by(key)))


def _given_by(key: Key) -> str:
    """The flag, without its dashes, that gives a setting of the task."""
    if len(key) > 1 and key[0] == "splits":
        return str(key[1])
    return "train" if not key or key[0] in ("data", "splits") else str(key[0])


def _file_and_slice(where: str, given: Path) -> tuple[Path, str]:
    """The file and the slice of a flag such as `--train "rows.tsv[:90%, shuffled]"`."""
    try:
        name = str(given) if given.is_file() else split_slice(str(given))[0]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not Path(name).is_file():
        problem = "is a directory" if Path(name).is_dir() else "does not exist"
        raise InputError(f"{where}: {name} {problem}; give a .jsonl, .json, .csv, .tsv or .parquet file")
    return Path(name), str(given)[len(name) :]


def hold_out(task: TaskConfig, seed: int, select: str = "best") -> TaskConfig:
    """The task with a tenth of its training rows for each of validation and test that it lacks.

    Slices are stratified if there are labels, and shuffled otherwise. With validation rows of its own the task gets no
    test rows: all training rows are trained on, as given. So are those of fewer than 8 rows.

    Args:
        seed: seed of the split.
        select: the setting of prompt_tune; `last` needs no validation rows.

    Raises:
        InputError: if the training rows are a slice already.
    """
    if "validation" in task.splits:
        return task
    lacking = [split for split in ("validation", "test") if split not in task.splits]
    if select == "last":
        lacking.remove("validation")
    train, part = split_slice(task.splits["train"])
    if not lacking or (part is not None and select == "last"):
        return task
    if part is not None:
        raise InputError("--train: a slice is not divided again; give --validation, too, or the whole file")
    if len(Task.load(task).rows("train")) < _FEWEST:
        return task
    order = f"{'stratified' if task.labels else 'shuffled'}={seed}"
    first = 100 - 10 * len(lacking)
    splits = {**task.splits, "train": f"{train}[:{first}%, {order}]"}
    for begin, split in zip(range(first, 100, 10), lacking, strict=True):
        splits[split] = f"{train}[{begin}%:{begin + 10}%, {order}]"
    return validate(TaskConfig, {**task.model_dump(), "splits": splits}, lambda key: task.where(*key))
