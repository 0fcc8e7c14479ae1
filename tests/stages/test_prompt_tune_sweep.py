"""A sweep trains its settings in one batch, drops the weaker ones, and publishes the best as if it had trained alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.training.trainer import Trainer
from tests.stages.test_prompt_tune_settings import recipe
from tests.tiny_run import Tiny, metrics, stage, t5_pipeline

SWEEP = """\
  prompt_tune:
    model: lm_adapt
    steps: 8
    batch_size: 2
    dropout: 0
    max_input_length: 32
    precision: fp32
    threads: 1
    residual_width: 6
    checkpoint_every: 3
    validate_every: 4
    validation_limit: 6
    log_every: 2
    prompt_init: vocabulary
    sweep: {learning_rate: [0.03, 0.3], reparametrization: [none, residual], prompt_length: [2, 3]}
    first_rung: 2
    matrix: {task: [about, name]}
"""
NAMES = [
    f"learning_rate={rate},reparametrization={form},prompt_length={length}"
    for rate in (0.03, 0.3) for form in ("none", "residual") for length in (2, 3)
]  # fmt: skip


def test_a_sweep_publishes_its_best_prompt(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tiny, SWEEP)
    place = tiny.run / "prompt_tune"
    run = ("prompt_tune", "--recipe", tiny.recipe, "--run-dir", tiny.run)

    planned = t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run)
    assert planned.code == 0, planned.err
    assert "prompt_tune, 16 at once" in planned.out

    # Interrupted in the middle of a stretch between rungs, two steps after a checkpoint.
    step = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, batch: stop() if batch.step == 5 else step(self, batch))
        assert stage(*run).code == 130
    ended = stage(*run)
    assert ended.code == 0, ended.err
    (job,) = (place / "jobs").iterdir()
    rows, tree = metrics(job), json.loads((job / "sweep.json").read_text())
    prompts = {path.parent.name: Prompt.load(path) for path in place.glob("*/prompt")}
    manifests = {name: manifest for name, manifest in tiny.manifests().items() if name.startswith("prompt_tune/")}

    shutil.move(place, tmp_path / "interrupted")
    assert stage(*run).code == 0
    assert metrics(next((place / "jobs").iterdir())) == rows
    assert {name: m.outputs["prompt"].digest for name, m in manifests.items()} == {
        name: m.outputs["prompt"].digest for name, m in tiny.manifests().items() if name.startswith("prompt_tune/")
    }

    dropped = {row["step"]: row["dropped"] for row in rows if "dropped" in row}
    assert {step: len(names) for step, names in dropped.items()} == {2: 8, 4: 4}
    logged = [row for row in rows if "split" not in row]
    assert [len(row["losses"]) for row in logged] == [16, 8, 4, 4]
    assert [row["step"] for row in rows if "split" in row] == [2, 4, 8]
    assert tree["step"] == 4
    for task in ("about", "name"):
        facts = manifests[f"prompt_tune/task={task}"].facts
        names = [f"task={task},{name}" for name in NAMES]
        assert list(facts["sweep"]["prompts"]) == names
        fates = [facts["sweep"]["prompts"][name]["dropped"] for name in names]
        assert sorted(fates, key=str) == [2] * 4 + [4] * 2 + [None] * 2
        assert [name for name in names if name in dropped[2] + dropped[4]] == [
            name for name, at in zip(names, fates, strict=True) if at is not None
        ]
        won, published = facts["sweep"]["settings"], prompts[f"task={task}"]
        (tmp_path / "task.yaml").write_text(published.info.task.model_dump_json())
        assert len(published.rows_PD) == published.info.prompt_length == won["prompt_length"]
        ended = stage(
            "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", tmp_path / "task.yaml", "--prompt-length",
            won["prompt_length"], "--seed", 3, "--steps", facts["best_step"], "--batch-size", 2, "--dropout", 0,
            "--max-input-length", 32, "--precision", "fp32", "--threads", 1, "--residual-width", 6, "--select", "last",
            "--prompt-init", "vocabulary", "--reparametrization", won["reparametrization"], "--learning-rate",
            won["learning_rate"], "--output-dir", tmp_path / task,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        alone = Prompt.load(tmp_path / task / "prompt").rows_PD
        assert (published.rows_PD - alone).norm() <= 2e-5 * alone.norm()

    page = render(collect(tiny.run))
    assert page.count("dropped at step 2") == 8
    assert page.count("dropped at step 4") == 4
    assert "Each line ends where its prompt was dropped" in page


def stop() -> None:
    raise KeyboardInterrupt
