"""Prompts whose optimizer settings and reparametrizations differ train in one batch, each as if it were alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.stages.frozen_t5 import alone, frozen_t5, tuned
from tests.tiny_run import metrics

TUNE = """\
    task: about
    prompt_length: 3
    steps: 4
    checkpoint_every: 2
    log_every: 2
    validate_every: 2
    validation_limit: 4
    optimizer: adafactor
    matrix:
      reparametrization: [none, residual, low_rank, superpos, rank_one]
      learning_rate: [0.03, 0.3]
"""
MORE = """\
      schedule: [constant, linear]
      weight_decay: [0, 0.01]
"""
CHOSEN = (
    ("none", 0.03, "linear", 0.01), ("none", 0.3, "constant", 0), ("residual", 0.3, "linear", 0),
    ("low_rank", 0.03, "constant", 0.01), ("superpos", 0.3, "constant", 0.01),
    ("rank_one", 0.3, "linear", 0),
)  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_each_prompt_equals_the_prompt_alone(tmp_path: Path, optimizer: str) -> None:
    """fp32, no dropout: up to rounding of the T5, whose products depend on the size of the batch."""
    tune = TUNE.replace("adafactor", optimizer).replace("validate_every: 2", "select: last") + MORE
    made = frozen_t5(tmp_path, tune)
    together = tuned(made)
    (job,) = (made.run / "prompt_tune" / "jobs").iterdir()
    assert len(together) == 40
    rates = [row["learning_rates"] for row in metrics(job)]
    assert [len(set(row.values())) for row in rates] == [4, 4]
    for form, rate, schedule, decay in CHOSEN[:: 1 if optimizer == "adafactor" else 2]:
        name = f"reparametrization={form},learning_rate={rate},schedule={schedule},weight_decay={decay}"
        one = alone(
            made, tmp_path / name, together[name], "--prompt-length", 3, "--steps", 4, "--reparametrization", form,
            "--learning-rate", rate, "--schedule", schedule, "--weight-decay", decay, "--optimizer", optimizer,
        )  # fmt: skip
        assert (together[name].rows_PD - one.rows_PD).norm() <= 2e-5 * one.rows_PD.norm(), name
        assert together[name].info == one.info


def test_training_resumes_with_the_same_bits(tmp_path: Path) -> None:
    made = frozen_t5(tmp_path, TUNE)
    before = tuned(made)
    shutil.rmtree(made.run / "prompt_tune")
    tuned(made, "--set", "prompt_tune.steps=2")
    after = tuned(made)
    for name, prompt in before.items():
        assert prompt.rows_PD.equal(after[name].rows_PD), name
    (job,) = (made.run / "prompt_tune" / "jobs").iterdir()
    pieces = json.loads((job / "checkpoints" / "step-00000004" / "rank-00000.json").read_text())["pieces"]
    names = {name for name, *_ in pieces.values()}
    trained = (
        "rows_RD",
        "rows1_RD",
        "reparametrized.2.start_PD",
        "reparametrized.6.weights_PM",
        "reparametrized.9.u_P",
    )
    assert {f"model/bank.{name}" for name in trained} <= names
    assert "selection/6/rows" in names
