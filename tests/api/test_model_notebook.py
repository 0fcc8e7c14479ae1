"""docs/python.ipynb runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.served_world import write_prompt, write_world
from tests.tiny_run import ROOT


@pytest.mark.filterwarnings("ignore:.* were longer than in training")  # the tiny vocabulary has longer encodings
def test_every_cell_runs(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    for seed in range(3):
        write_prompt(world, f"model=lm_adapt,seed={seed}", seed)
    cells = json.loads((ROOT / "docs/python.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            code = code.replace("runs/demo/lm_adapt", str(world / "model"))
            code = code.replace("runs/demo/prompt_tune", str(world / "prompts"))
            exec(compile(code, "docs/python.ipynb", "exec"), names)
            assert cell["outputs"] == []
    assert names["prompt"].rows_PD.shape == (5, 32)
    assert "about" in names["t5"].prompts
