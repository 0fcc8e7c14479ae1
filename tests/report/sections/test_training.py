"""Plots of losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.model_names import model_names
from t5_pipeline.report.sections.training import losses_section
from tests.report.conftest import RECIPE


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_the_axis_names_the_loss_that_was_logged(builders, tmp_path: Path, loss: str) -> None:
    recipe = RECIPE.replace("  prompt_tune:\n", f"  prompt_tune:\n    loss: {loss}\n")
    run = collect(builders(tmp_path / "run", recipe).all().run_dir.path)
    found = str(losses_section(run, model_names(run), {}))
    assert ("Loss of a batch" in found) == (loss == "sum")
    assert "Loss per target token" in found  # of span corruption
