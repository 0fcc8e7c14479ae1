"""docs/tasks.md says what the code does: its examples load, its tables are the formats, keys, readers and metrics there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from t5_pipeline.data_prep.tasks.config import LABEL_METRICS, ROW_METRICS, TEXT_METRICS, TaskConfig
from t5_pipeline.data_prep.tasks.encode import Task
from t5_pipeline.data_prep.tasks.formats import FORMATS
from t5_pipeline.evaluation.metrics import check_metrics

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)]


def table(first_column: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is called so, by what stands in that column."""
    lines = PAGE[PAGE.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for names, *rest in cells for name in names.split(", ")}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load(example: dict[str, Any]) -> None:
    for name, values in example["tasks"].items():
        task = Task.load(TaskConfig(name=name, **values))
        check_metrics(task.settings.metrics, task.labels, name)


def test_every_format_is_in_the_table() -> None:
    rows = table("format")
    assert set(rows) == set(FORMATS)
    for name, (files, inputs, targets, metrics) in rows.items():
        task = TaskConfig(name="t", format=name, data="x")
        assert files == ", ".join(task.splits.values())
        assert inputs == f"`{task.inputs}`"
        assert targets == (", ".join(task.labels) if task.labels else f"`{task.targets}`")
        assert metrics == ", ".join(task.metrics)


def test_every_key_reader_and_metric_is_in_its_table() -> None:
    assert set(table("key")) == set(TaskConfig.model_fields) - {"name"}
    assert set(table("reader")) == set(get_args(TaskConfig.model_fields["reader"].annotation))
    needs = dict.fromkeys(TEXT_METRICS, "") | dict.fromkeys(LABEL_METRICS, "`labels`")
    needs |= {name: f"`{key}`" for name, key in ROW_METRICS.items()}
    assert {name: needed for name, (_, needed) in table("metric").items()} == needs
