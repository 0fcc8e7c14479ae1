"""Prompts whose optimizer settings and reparametrizations differ train in one batch, each as if it were alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from t5_pipeline.methods.soft_prompt import Prompt
from tests.tiny_run import Tiny, metrics, stage

TUNE = """\
  prompt_tune:
    model: lm_adapt
    task: about
    prompt_length: 3
    steps: 4
    batch_size: 2
    dropout: 0
    max_input_length: 32
    precision: fp32
    threads: 1
    residual_width: 6
    rank: 2
    superpos_tokens: 5
    checkpoint_every: 2
    log_every: 2
    select: last
    optimizer: OPTIMIZER
    matrix:
      reparametrization: [none, residual, low_rank, superpos]
      learning_rate: [0.03, 0.3]
      schedule: [constant, linear]
      weight_decay: [0, 0.01]
"""
CHOSEN = (
    ("none", 0.03, "linear", 0.01), ("none", 0.3, "constant", 0), ("residual", 0.3, "linear", 0),
    ("low_rank", 0.03, "constant", 0.01), ("superpos", 0.3, "constant", 0.01),
)  # fmt: skip


def recipe(tiny: Tiny, tune: str) -> Tiny:
    """The tiny pipeline with other settings of prompt_tune, which has not run."""
    before, _, after = tiny.recipe.read_text().partition("  prompt_tune:\n")
    tiny.recipe.write_text(before + tune + after[after.index("  evaluate:") :])
    shutil.rmtree(tiny.run / "prompt_tune")
    return tiny


def tuned(tiny: Tiny, *arguments: object) -> dict[str, Prompt]:
    ended = stage("prompt_tune", "--recipe", tiny.recipe, "--run-dir", tiny.run, *arguments)
    assert ended.code == 0, ended.err
    return {path.parent.name: Prompt.load(path) for path in (tiny.run / "prompt_tune").glob("*/prompt")}


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_each_prompt_equals_the_prompt_alone(tiny: Tiny, tmp_path: Path, optimizer: str) -> None:
    """fp32, no dropout: up to rounding of the T5, whose products depend on the size of the batch."""
    together = tuned(recipe(tiny, TUNE.replace("OPTIMIZER", optimizer)))
    (job,) = (tiny.run / "prompt_tune" / "jobs").iterdir()
    assert len(together) == 32
    rates = [row["learning_rates"] for row in metrics(job)]
    assert {len(set(row.values())) for row in rates} == {4}
    for form, rate, schedule, decay in CHOSEN[:: 1 if optimizer == "adafactor" else 2]:
        name = f"reparametrization={form},learning_rate={rate},schedule={schedule},weight_decay={decay}"
        (tmp_path / "task.yaml").write_text(together[name].info.task.model_dump_json())
        ended = stage(
            "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", tmp_path / "task.yaml", "--prompt-length", 3,
            "--seed", 3, "--steps", 4, "--batch-size", 2, "--dropout", 0, "--max-input-length", 32, "--precision",
            "fp32", "--threads", 1, "--residual-width", 6, "--rank", 2, "--superpos-tokens", 5, "--select", "last",
            "--reparametrization", form, "--learning-rate", rate, "--schedule", schedule, "--weight-decay", decay,
            "--optimizer", optimizer, "--output-dir", tmp_path / name,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        alone = Prompt.load(tmp_path / name / "prompt")
        mine, other = together[name].rows_PD, alone.rows_PD
        assert (mine - other).norm() <= 2e-5 * other.norm(), name
        assert together[name].info.model_copy(update={"base_model": ""}) == alone.info.model_copy(
            update={"base_model": ""}
        )


def test_training_resumes_with_the_same_bits_and_selects_each_step(tiny: Tiny) -> None:
    whole = recipe(tiny, TUNE.replace("OPTIMIZER", "adafactor").replace("select: last", "validate_every: 2"))
    whole.edit("      schedule: [constant, linear]\n      weight_decay: [0, 0.01]\n", "")
    before = tuned(whole)
    shutil.rmtree(whole.run / "prompt_tune")
    tuned(whole, "--set", "prompt_tune.steps=2")
    after = tuned(whole)
    for name, prompt in before.items():
        assert prompt.rows_PD.equal(after[name].rows_PD), name
    (job,) = (whole.run / "prompt_tune" / "jobs").iterdir()
    pieces = json.loads((job / "checkpoints" / "step-00000004" / "rank-00000.json").read_text())["pieces"]
    names = {name for name, *_ in pieces.values()}
    trained = ("rows_RD", "rows1_RD", "reparametrized.2.start_PD", "reparametrized.6.weights_PM")
    assert {f"model/bank.{name}" for name in trained} <= names
    assert "selection/6/rows" in names
