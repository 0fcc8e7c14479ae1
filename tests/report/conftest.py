"""A run directory as stages write it, with made-up numbers (nothing was trained)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.fingerprint import parts
from t5_pipeline.artifacts.manifest import InputRecord, Manifest, OutputRecord, Started
from t5_pipeline.artifacts.run_dir import RunDir, step_name
from t5_pipeline.config.recipe import Cell, Recipe, load_recipe
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.modeling.config import T5Config

RECIPE = """\
name: test <run>
seed: 1
tasks:
  package:
    data: stdlib-modules
    inputs: "{text}"
    targets: "{label}"
    labels: [asyncio, email, logging]
    metrics: [accuracy, macro_f1]
stages:
  prepare: {corpus: stdlib-docs, vocabulary_size: 100, decontaminate: [package]}
  span_corrupt:
    init: {d_model: 8, d_kv: 4, d_ff: 16, num_layers: 2, num_decoder_layers: 2, num_heads: 2}
    tokens: prepare
    input_length: 64
    steps: 40
  lm_adapt: {model: span_corrupt, tokens: prepare, segment_length: 64, batch_size: 32, steps: 40}
  sentinel: {model: span_corrupt}
  prompt_tune:
    task: package
    prompt_length: 4
    steps: 60
    schedule: linear
    matrix:
      model: [lm_adapt@20, lm_adapt, span_corrupt, sentinel]
      seed: [0, 1, 2]
  evaluate: {prompts: prompt_tune}
"""
ACCURACY = {
    "lm_adapt@20": [0.50, 0.52, 0.54],
    "lm_adapt": [0.60, 0.64, 0.68],
    "span_corrupt": [0.41, 0.40, 0.39],
    "sentinel": [0.45, 0.50, 0.55],
}
NO_PROMPT = {"lm_adapt@20": 0.1, "lm_adapt": 0.125, "span_corrupt": 0.0, "sentinel": 0.05}
MAJORITY = 0.4
EXAMPLES = 200
LABELS = ["asyncio", "email", "logging"]
SAMPLES = [
    ("Return the <running> event loop & nothing else.", "asyncio"),
    ("Format the specified record as text.", "logging"),
    ("Parse a header value into its parts.", "email"),
]


class RunBuilder:
    """Writes finished cells of a recipe, stage by stage."""

    def __init__(self, path: Path, recipe: str = RECIPE, shape: T5Config | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        self.recipe: Recipe = load_recipe(path / "recipe.yaml")
        self.run_dir = RunDir(path)
        self.shape = shape or T5Config(
            vocab_size=128, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2
        )
        self.minute = 0

    def all(self) -> RunBuilder:
        for stage in self.recipe.stages:
            self.stage(stage)
        return self

    def stage(self, name: str) -> RunBuilder:
        """Finish every cell of a stage; prompts of one model make one job."""
        cells = self.recipe.stages[name]
        self.minute += 1
        for cell in cells:
            getattr(self, f"_{cell.settings.kind}")(cell)
        if cells[0].axes:
            for number, model in enumerate(dict.fromkeys(cell.axes.get("model", cell.id) for cell in cells)):
                self._job([cell for cell in cells if model in (cell.axes.get("model"), cell.id)], model, number)
        return self

    def begin(self, name: str, step: int) -> RunBuilder:
        """Leave a stage unfinished at a step."""
        for cell in self.recipe.stages[name]:
            directory = self.run_dir.cell(cell)
            directory.mkdir(parents=True)
            Started(**self._described(cell)).save(directory)
            self._write_metrics(directory / "metrics.jsonl", step, 6.0)
        return self

    def _prepare(self, cell: Cell) -> None:
        self._write(cell, "tokens/tokens.json", "{}")
        self._finish(cell, {"tokens": "tokens"}, facts={"documents": 50, "tokens": 12_345, "dropped": {"kept out": 3}})

    def _span_corrupt(self, cell: Cell) -> None:
        self._model(cell, "model")
        facts = {"parameters": self.shape.parameters}
        steps = {}
        for step in self.recipe.kept_steps(cell):
            self._model(cell, f"steps/{step_name(step)}/model")
            steps[step] = OutputRecord(path=f"steps/{step_name(step)}/model", digest=f"{cell.stage}@{step}")
        assert isinstance(cell.settings, TrainingConfig)
        floor = {"span_corrupt": 3.1, "lm_adapt": 3.9}[cell.settings.kind]
        self._write_metrics(self.run_dir.cell(cell) / "metrics.jsonl", cell.settings.steps, floor)
        self._finish(cell, {"model": "model"}, facts=facts, steps=steps)

    _lm_adapt = _span_corrupt

    def _sentinel(self, cell: Cell) -> None:
        self._model(cell, "model")
        self._finish(cell, {"model": "model"}, facts={"sentinel": "targets"})

    def _prompt_tune(self, cell: Cell) -> None:
        directory = self.run_dir.cell(cell) / "prompt"
        directory.mkdir(parents=True, exist_ok=True)
        rows_PD = np.zeros((cell.settings.prompt_length, self.shape.d_model), np.float32)  # type: ignore[attr-defined]
        save_file({"prompt": rows_PD}, directory / "prompt.safetensors")
        (directory / "prompt.json").write_text("{}")
        together = sum(other.axes["model"] == cell.axes["model"] for other in self.recipe.stages[cell.stage])
        facts = {"best_step": 10 * (1 + int(cell.axes["seed"])), "cells_together": together}
        self._finish(cell, {"prompt": "prompt"}, facts=facts)

    def _evaluate(self, cell: Cell) -> None:
        self._write(cell, "scores/scores.json", json.dumps({"rows": self.score_rows(), "seconds": 2.0}))
        self._finish(cell, {"scores": "scores"})

    def score_rows(self) -> list[dict[str, Any]]:
        common = {"task": "package", "split": "test", "examples": EXAMPLES, "labels": LABELS}
        prompts = {cell.id: self.run_dir.manifest(cell) for cell in self.recipe.stages.get("prompt_tune", [])}
        rows: list[dict[str, Any]] = []
        for model, accuracies in ACCURACY.items():
            for seed, accuracy in enumerate(accuracies):
                made = prompts.get(f"model={model},seed={seed}")
                costs = {"bytes": made.stored_bytes, "training_seconds": made.training_seconds} if made else {}
                rows.append(
                    {
                        **common,
                        **costs,
                        "method": "prompt tuning",
                        "model": model,
                        "cell": f"model={model},seed={seed}",
                        "seed": seed,
                        "prompt_length": 4,
                        "prompt_init": "class_labels",
                        "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.05},
                        "scoring": "decode",
                        "by_scoring": {
                            "decode": {"accuracy": accuracy},
                            "likelihood": {"accuracy": accuracy + 0.01 * (seed + 1)},
                        },
                        "illegal": 0.02 * seed,
                        "confusion": [[50, 20, 10], [10, 40, 10], [5, 15, 40]],
                        "samples": [
                            {
                                "input": text,
                                "target": target,
                                "output": target if (model == "lm_adapt") == (i < 2) else "email?",
                            }
                            for i, (text, target) in enumerate(SAMPLES)
                        ],
                    }
                )
            rows.append(
                {
                    **common,
                    "method": "no prompt",
                    "model": model,
                    "metrics": {"accuracy": NO_PROMPT[model], "macro_f1": 0.03},
                    "scoring": "decode",
                    "by_scoring": {"decode": {"accuracy": NO_PROMPT[model]}, "likelihood": {"accuracy": 0.35}},
                    "illegal": 0.8,
                }
            )
            rows.append(
                {
                    **common,
                    "method": "majority class",
                    "model": model,
                    "metrics": {"accuracy": MAJORITY, "macro_f1": 0.19},
                    "illegal": None,
                }
            )
        return rows

    def _model(self, cell: Cell, place: str) -> None:
        directory = self.run_dir.cell(cell) / place
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.shape.to_config()))
        save_file({"shared.weight": np.zeros(self.shape.parameters, np.float32)}, directory / "model.safetensors")

    def _write(self, cell: Cell, name: str, text: str) -> None:
        path = self.run_dir.cell(cell) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _write_metrics(self, path: Path, steps: int, floor: float, cells: tuple[str, ...] = ()) -> None:
        every = max(1, steps // 60)
        rows: list[dict[str, Any]] = [{"step": 0, "split": "validation", "loss": floor + 5}] if not cells else []
        for step in range(every, steps + 1, every):
            wobble = [0.12 * math.sin(step * (3.7 + i)) + 0.06 * i for i in range(max(1, len(cells)))]
            loss = floor + 5 * math.exp(-6 * step / max(steps, 1))
            row: dict[str, Any] = {"step": step, "loss": loss + wobble[0], "learning_rate": 0.01}
            if cells:
                row["losses"] = {cell: loss + w for cell, w in zip(cells, wobble, strict=True)}
            rows.append(row)
            if not cells and step % (every * 10) == 0:
                rows.append({"step": step, "split": "validation", "loss": loss + 0.1, "bits_per_byte": loss / 2})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99')

    def _job(self, cells: list[Cell], model: str, number: int) -> None:
        directory = self.run_dir.path / cells[0].stage / "jobs" / f"job-{number}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "job.json").write_text(json.dumps({"cells": {cell.id: self._fingerprint(cell) for cell in cells}}))
        floor = 2.6 - 2 * sum(ACCURACY.get(model, [0.5] * 3)) / 3
        steps = cells[0].settings.steps  # type: ignore[attr-defined]
        together = tuple(cell.id for cell in cells) if cells[0].settings.made_for() else ()
        self._write_metrics(directory / "metrics.jsonl", steps, floor, together)

    def _fingerprint(self, cell: Cell) -> str:
        return f"print of {cell.label}"

    def _described(self, cell: Cell) -> dict[str, Any]:
        inputs = {}
        for name, ref in cell.inputs.items():
            records = []
            for made in self.recipe.stages.get(ref.stage or "", []):
                if ref.cell not in (None, made.id):
                    continue
                found = self.run_dir.manifest(made)
                assert found is not None, f"{cell.label} needs {made.label}"
                output = found.outputs[cell.settings.inputs()[name]]
                if ref.step is not None:
                    output = found.steps_published.get(ref.step, output)
                path = (self.run_dir.cell(made) / output.path).relative_to(self.run_dir.path)
                records.append(
                    InputRecord(
                        stage=ref.stage, cell=made.id or None, step=ref.step, path=str(path), digest=output.digest
                    )
                )
            inputs[name] = records
        return {
            "stage": cell.stage,
            "kind": cell.settings.kind,
            "cell": cell.axes,
            "fingerprint": self._fingerprint(cell),
            "parts": parts(cell.settings, {}, self.run_dir.digests),
            "settings": cell.settings.model_dump(mode="json"),
            "inputs": inputs,
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "started": f"2026-07-29T23:{50 + self.minute:02d}:00+00:00",
        }

    def _finish(
        self,
        cell: Cell,
        outputs: dict[str, str],
        facts: dict[str, Any] | None = None,
        steps: dict[int, OutputRecord] | None = None,
    ) -> None:
        directory = self.run_dir.cell(cell)
        settings = cell.settings
        Manifest(
            **self._described(cell),
            step=settings.steps if isinstance(settings, TrainingConfig) else None,
            steps_published=steps or {},
            outputs={name: OutputRecord(path=place, digest=f"{cell.label} {name}") for name, place in outputs.items()},
            files=manifests.record_files(directory, list(outputs.values())),
            facts={**(facts or {}), "peak_rss_bytes": 512_000_000},
            finished=f"2026-07-29T23:{50 + self.minute:02d}:45+00:00",
            seconds=45.0 * self.minute,
        ).save(directory)


@pytest.fixture
def finished(tmp_path: Path) -> RunBuilder:
    return RunBuilder(tmp_path / "run").all()


@pytest.fixture(scope="session")
def builders() -> type[RunBuilder]:
    return RunBuilder


@pytest.fixture
def builder(tmp_path: Path) -> RunBuilder:
    return RunBuilder(tmp_path / "run")


SEVERAL = RECIPE.replace(
    "  sentinel: {model: span_corrupt}\n",
    "  sentinel: {model: span_corrupt}\n"
    "  lm_long: {uses: lm_adapt, model: span_corrupt@40, tokens: prepare, segment_length: 64, steps: 400}\n"
    "  lm_more: {uses: lm_adapt, model: lm_adapt, tokens: prepare, segment_length: 64, steps: 10}\n"
    "  other:\n"
    "    uses: span_corrupt\n"
    "    init: {d_model: 8, d_kv: 4, d_ff: 16, num_layers: 2, num_decoder_layers: 2, num_heads: 2}\n"
    "    tokens: prepare\n"
    "    input_length: 64\n"
    "    steps: 40\n"
    "  lm_other: {uses: lm_adapt, model: other, tokens: prepare, segment_length: 64, steps: 40}\n",
)


@pytest.fixture
def several(builders: type[RunBuilder], tmp_path: Path) -> RunBuilder:
    """A run with several LM adaptations of T5s of one size."""
    return builders(tmp_path / "several", SEVERAL).all()
