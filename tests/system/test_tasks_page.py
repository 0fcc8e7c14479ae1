"""docs/tasks.md agrees with the code: its examples load; its tables list all formats, keys, readers and metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from t5_pipeline.data_prep.tasks.config import METRICS, TaskConfig
from t5_pipeline.data_prep.tasks.formats import FORMATS
from t5_pipeline.data_prep.tasks.task import Task

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)]


def table(first_column: str) -> dict[str, list[str]]:
    """The rows of the table with this first column, by their value in it."""
    lines = PAGE[PAGE.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for names, *rest in cells for name in names.split(", ")}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load(example: dict[str, Any]) -> None:
    for name, values in example["tasks"].items():
        Task.load(TaskConfig(name=name, **values))


def test_table_of_formats() -> None:
    rows = table("format")
    assert set(rows) == set(FORMATS)
    for name, (files, inputs, targets, metrics) in rows.items():
        task = TaskConfig(name="t", format=name, data="x")
        assert files == ", ".join(task.splits.values())
        assert inputs == f"`{task.inputs}`"
        assert targets == (", ".join(task.labels) if task.labels else f"`{task.targets}`")
        assert metrics == ", ".join(task.metrics)


def test_tables_of_keys_readers_and_metrics() -> None:
    assert set(table("key")) == set(TaskConfig.model_fields) - {"name"}
    assert set(table("reader")) == set(get_args(TaskConfig.model_fields["reader"].annotation))
    needs = {name: f"`{key}`" if key else "" for name, key in METRICS.items()}
    assert {name: needed for name, (_, needed) in table("metric").items()} == needs
