"""A run directory with manifests like those of real stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.manifest import Manifest, OutputRecord, Started
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.execution.staleness import CellStatus, cell_statuses

RECIPE = """\
name: small
tasks:
  tone: {data: DATA, inputs: "{text}", targets: "{label}", labels: [good, bad]}
stages:
  prepare: {corpus: DATA}
  pretrain: {uses: span_corrupt, init: {d_model: 64}, tokens: prepare, steps: 10, schedule: constant}
  lm_adapt: {model: pretrain, tokens: prepare, steps: 20}
  prompt_tune:
    task: tone
    steps: 5
    matrix: {model: [pretrain, lm_adapt@10], seed: [0, 1]}
  evaluate: {prompts: prompt_tune}
"""


class Run:
    """A run directory with manifests like those of real stages."""

    def __init__(self, path: Path) -> None:
        data = path / "rows.jsonl"
        data.write_text('{"text": "a", "label": "good"}\n')
        self.recipe = path / "small.yaml"
        self.recipe.write_text(RECIPE.replace("DATA", str(data)))
        self.dir = RunDir(path / "run")

    def statuses(self, *overrides: str) -> dict[str, CellStatus]:
        return {
            d.cell.label: d for d in cell_statuses(load_recipe(self.recipe, map(parse_override, overrides)), self.dir)
        }

    def make(self, decision: CellStatus, finished: bool = True) -> None:
        """Publish something whose digest depends on what the cell was made from."""
        assert decision.fingerprint is not None
        cell, directory = decision.cell, self.dir.cell(decision.cell)
        directory.mkdir(parents=True, exist_ok=True)
        begun: dict[str, Any] = {
            "stage": cell.stage, "kind": cell.settings.kind, "cell": cell.axes, "fingerprint": decision.fingerprint,
            "parts": decision.parts, "settings": {}, "inputs": {}, "started": "",
        }  # fmt: skip
        Started(**begun).save(directory)
        if not finished:
            return
        (output,) = cell.settings.outputs
        steps = decision.steps_wanted
        places = [output, *(f"steps/{step:06d}/{output}" for step in steps[:-1])]
        for place in places:
            (directory / place).mkdir(parents=True, exist_ok=True)
            (directory / place / "file").write_text(decision.fingerprint)
        records = [
            OutputRecord(path=place, digest=f"{decision.fingerprint} at {step}")
            for place, step in zip(places, [*steps[-1:], *steps[:-1]] or [0], strict=True)
        ]
        before = manifests.read(directory)
        kept = before.steps_published if before else {}
        Manifest(
                **begun, step=steps[-1] if steps else None, finished="", seconds=1.0, outputs={output: records[0]},
                steps_published={**kept, **dict(zip(steps[:-1], records[1:], strict=True))},
                files=manifests.record_files(directory, places),
        ).save(directory)  # fmt: skip

    def make_all(self, *overrides: str) -> None:
        for _ in range(5):
            for decision in self.statuses(*overrides).values():
                if decision.fingerprint is not None and decision.action != "up to date":
                    self.make(decision)

    def todo(self, *overrides: str) -> dict[str, str]:
        return {label: d.reason for label, d in self.statuses(*overrides).items() if d.action != "up to date"}
