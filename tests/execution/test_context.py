"""Publishing results in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.recipe import Cell
from t5_pipeline.config.registry import STAGES
from t5_pipeline.core.schema import validate
from t5_pipeline.execution.context import CellRun, Stage
from t5_pipeline.execution.staleness import CellStatus


class Rank:
    """One process of several, as accelerate describes it."""

    def __init__(self, number: int) -> None:
        self.is_main_process = number == 0

    def wait_for_everyone(self) -> None:
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_process_reads_what_it_published(tmp_path: Path, rank: int) -> None:
    """The digest is in the manifest, which the main process writes. The others would read whole models for nothing."""
    settings = validate(STAGES["sentinel"], {"model": "t5"}, lambda loc: "sentinel")
    run_dir = RunDir(tmp_path / "run")
    cell: CellRun[Any] = CellRun(
        CellStatus(Cell("sentinel", {}, settings, {}), "run", ""), settings, run_dir.path / "sentinel", run_dir, ""
    )
    accelerator: Any = Rank(rank)
    launch: Any = None
    stage: Stage[Any] = Stage([cell], cell.directory, run_dir, None, launch, accelerator)

    def write(place: Path) -> None:
        (place / "scores.json").write_text("{}")

    stage.publish("scores", write)
    assert (cell.directory / "scores/scores.json").is_file() == (rank == 0)
    assert list(cell.outputs) == ["scores"][rank:]
