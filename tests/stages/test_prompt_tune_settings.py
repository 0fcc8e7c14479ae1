"""Prompts whose optimizer settings and reparametrizations differ train in one batch, each as if it were alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.encode import Reading, encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods import prompt_init
from t5_pipeline.modeling.t5 import shift_right
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


PLAIN = """\
    prompt_length: 3
    steps: 5
    select: last
    z_loss: 0.01
    weight_decay: 0.01
    schedule: linear
    warmup_steps: 2
    optimizer_step_offset: 20
    matrix: {task: [about, name], reparametrization: [none, rank_one]}
"""


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_steps_equal_those_of_a_plain_loop(tmp_path: Path, loss: str) -> None:
    """In fp64 over transformers' T5, one prompt after another, with every formula as written in the documentation."""
    made = frozen_t5(tmp_path, PLAIN + f"    loss: {loss}\n")
    source = made.data / "model"
    plain = T5ForConditionalGeneration.from_pretrained(source, dropout_rate=0.0).double().requires_grad_(False)
    vocabulary, table = Vocabulary.load(source), plain.get_input_embeddings()
    pieces = [i for i in range(vocabulary.size) if i not in vocabulary.sentinel_ids]
    start_PD = prompt_init.vocabulary(table.weight, 3, 3, pieces).double()
    for name, prompt in tuned(made).items():
        task = Task.load(prompt.info.task)
        batches = TaskBatches([encode_task(task, "train", Reading(vocabulary, 32, 128), training=True)], [2], [3])
        trained = [
            start_PD.clone(),
            *([torch.ones(3, 1).double(), torch.ones(32).double()] if "rank_one" in name else []),
        ]
        moments = [torch.zeros_like(p) for p in trained]
        for step in range(5):
            batch = batches.at(step)
            inputs, targets = (torch.tensor(ids).long() for ids in (batch.inputs_BS, batch.targets_BT))
            for p in trained:
                p.requires_grad_()
            rows_PD = math.prod(trained[1:], start=trained[0])
            logits = plain(
                inputs_embeds=torch.cat([rows_PD.expand(2, -1, -1), table(inputs)], dim=1),
                attention_mask=torch.cat([torch.ones(2, 3, dtype=torch.bool), inputs != 0], dim=1),
                decoder_input_ids=shift_right(targets),
            ).logits
            log_z = logits.logsumexp(-1)
            each = (log_z - logits.gather(-1, targets[..., None]).squeeze(-1) + 0.01 * log_z**2)[targets != 0]
            gradients = torch.autograd.grad(each.mean() if loss == "mean" else each.sum(), trained)
            rate, beta2 = min(1, (step + 1) / 2) * min(1, (5 - step) / 3), 1 - (step + 1 + 20) ** -0.8
            for number, gradient in enumerate(gradients):
                moments[number] = beta2 * moments[number] + (1 - beta2) * gradient**2
                update = gradient / moments[number].sqrt()
                update /= max(1, update.square().mean().sqrt())
                trained[number] = 0.99 * trained[number].detach() - rate * (0.4 if number else 0.3) * update
        rows_PD = math.prod(trained[1:], start=trained[0])
        assert (prompt.rows_PD - rows_PD).norm() <= 2e-5 * (rows_PD - start_PD).norm(), name
