"""recipes/compare.yaml with a tiny T5 and few steps: every stage runs, and the report compares the methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.config.overrides import Override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from tests.stages.frozen_t5 import frozen_t5
from tests.tiny_run import ROOT, stage

TRAINING = {
    "steps": 2, "batch_size": 2, "validate_every": 2, "checkpoint_every": 2, "validation_limit": 4,
    "max_input_length": 24, "threads": 1, "matrix.seed": [0, 1],
}  # fmt: skip
SCORING = {"limit": 6, "threads": 1, "latency_tasks": [1, 3]}


def shortened(place: Path) -> Path:
    """The recipe for the T5 and a task of `frozen_t5`."""
    frozen_t5(place, "")
    path = ROOT / "recipes" / "compare.yaml"
    changed: dict[str, Any] = {
        "tasks.kind.data": str(place / "rows"), "tasks.kind.targets": "{label}",
        "tasks.kind.labels": ["files", "numbers"], "prompt_tune.prompt_length": 2, "prefix.virtual_tokens": 2,
    }  # fmt: skip
    for name, cells in load_recipe(path).stages.items():
        scores = cells[0].settings.kind == "evaluate"
        changed |= {f"{name}.{key}": value for key, value in (SCORING if scores else TRAINING).items()}
        changed |= {} if scores else {f"{name}.model": str(place / "model")}
    recipe = load_recipe(path, [Override(tuple(key.split(".")), value) for key, value in changed.items()])
    (place / "compare.yaml").write_text(recipe.text())
    return place / "compare.yaml"


@pytest.mark.soak  # ten trainings
def test_every_method_is_trained_scored_and_compared(tmp_path: Path) -> None:
    path, run = shortened(tmp_path), tmp_path / "run"
    for name, cells in load_recipe(path).stages.items():
        ended = stage(cells[0].settings.kind, "--recipe", path, "--stage", name, "--run-dir", run)
        assert ended.code == 0, ended.err
    (run / "recipe.yaml").write_text(path.read_text())  # as `t5-pipeline run` does
    page = render(collect(run))
    section = page[page.index('id="comparison"') :].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", section, re.S)]
    assert [name for name in rows[0] if name.startswith("Latency")] == ["Latency, 1 of 1", "Latency, 1 of 3"]
    assert {row[0] for row in rows[1:]} == {"Prompt tuning", "LoRA, rank 8", "(IA)³", "Prefix tuning", "Model tuning"}
    assert all(cell not in ("", "–") for row in rows[1:] for cell in row), rows
