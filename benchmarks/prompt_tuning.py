"""Throughput of prompt tuning compared with PEFT: a prompt of 100 rows on a frozen T5 1.1 Small in bf16, batch 32.

Inputs are the training rows of BoolQ, RTE and SUBJ (docs/tasks.md), at most 512 tokens beside the prompt; weights and
prompt are random, which does not affect time. Ours is a step of `prompt_tune`: microbatches by length, forward,
backward, optimizer. The peer is PEFT's prompt tuning on transformers' T5 in bf16 (`num_transformer_submodules=1`), each
batch padded to its longest input, with torch's AdamW. Both sides train on the same batches in the same order: without
dropout, to compare losses, and with the paper's 0.1 (elementwise in PEFT, shared along the sequence here, as in the
paper's code).

Many prompts: eight prompts for four tasks, in one batch of 8 × 8 rows on one frozen model, compared with eight separate
runs on the same examples.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import paired, seconds
from t5_pipeline.data_prep.sampling.batches import Batch
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, Reading, encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.load import init_t5, save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import batch_losses, output_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import prompt_optimizer, set_learning_rate

PROMPT = 100
BATCH = 32
TASKS: dict[str, dict[str, Any]] = {
    "boolq": {
        "format": "superglue/boolq",
        "data": "tasks/superglue/BoolQ",
        "splits": {"train": "train_subset1886.jsonl"},
    },
    "rte": {"format": "superglue/rte", "data": "tasks/superglue/RTE"},
    "subj": {
        "data": "tasks/textcls/subj",
        "inputs": "{text}",
        "targets": "{label}",
        "labels": ["objective", "subjective"],
    },
    "cb": {"format": "superglue/cb", "data": "tasks/superglue/CB"},
}


def has_tasks(data: Path, benchmark: str) -> bool:
    """Whether a directory has tasks and T5's vocabulary; otherwise says that the benchmark is skipped."""
    missing = [str(path) for path in (data / "tasks", data / "t5" / "spiece.model") if not path.exists()]
    if missing:
        print(f"{benchmark}: skipped, because {missing[0]} does not exist; see --data", file=sys.stderr)
    return not missing


def encoded(data: Path, name: str, rows: int = 512) -> EncodedTask:
    """The first training rows of a task as ids of T5's vocabulary."""
    settings = TaskConfig.model_validate({"name": name, **TASKS[name], "data": str(data / TASKS[name]["data"])})
    return encode_task(Task.load(settings), "train", Reading(Vocabulary.load(data / "t5"), 512, 128), limit=rows)


def our_step(
    model: PromptedT5, optimizer: torch.optim.Optimizer, batch: Batch, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """One step of prompt_tune; returns the losses [C]."""
    total_C = torch.zeros(len(model.bank))
    optimizer.zero_grad(set_to_none=True)
    for part in batch.microbatches(0):
        micro = TensorBatch.of(part)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, weight = model.before_logits(model.predict(micro.prompt_B, micro.inputs_BS, micro.targets_BT))
            loss_BT = output_loss(hidden, weight, micro.targets_BT)
            losses_C = batch_losses(loss_BT, micro.weights_B, micro.prompt_B, len(model.bank))
        losses_C.sum().backward()
        total_C += losses_C.detach()
    optimizer.step()
    return total_C


def prompted(t5: T5, prompts: int = 1) -> tuple[PromptedT5, torch.optim.Optimizer]:
    """A bank of prompts on a frozen T5, initialized with rows of the vocabulary, and their optimizer."""
    rows = t5.shared.weight.detach().float()
    bank = PromptBank([rows[start : start + PROMPT] for start in range(3, 3 + prompts)])
    model = PromptedT5(t5, bank)
    model.train()
    optimizer = prompt_optimizer("adafactor", bank.rows_RD, bank.row_prompt_R)
    set_learning_rate(optimizer, 0.3)
    return model, optimizer


def peft_model(directory: str, rows_PD: Tensor, dropout: float, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """PEFT's prompt tuning on transformers' T5 with this prompt."""
    import peft
    from transformers import T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration.from_pretrained(directory, dropout_rate=dropout, dtype=dtype)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PROMPT, num_transformer_submodules=1, token_dim=rows_PD.size(1)
    )
    model = peft.get_peft_model(t5, config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(rows_PD)
    model.train()
    return model  # type: ignore[no-any-return]


def peft_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    inputs = torch.from_numpy(batch.inputs_BS).long()
    labels = torch.from_numpy(batch.targets_BT).long()
    longest = int((inputs != 0).sum(1).max()), int((labels != 0).sum(1).max())
    inputs, labels = inputs[:, : longest[0]], labels[:, : longest[1]]
    optimizer.zero_grad()
    loss = model(
        input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels.masked_fill(labels == 0, -100)
    ).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def against_peft(t5: T5, directory: str, task: EncodedTask, name: str, rounds: int, dropout: float) -> dict[str, Any]:
    """Our step and PEFT's, in turn on the same batches."""
    t5.set_dropout(dropout)
    ours, optimizer = prompted(t5)
    theirs = peft_model(directory, ours.bank.rows_RD.detach().clone(), dropout)
    their_optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.3)
    batches = TaskBatches([task], [BATCH], [0])
    losses = {}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        batch = batches.at(turn)
        if turn == 0 and dropout == 0:
            losses = {
                "ours": round(float(our_step(ours, torch.optim.SGD(ours.bank.parameters(), 0.0), batch)), 4),
                "peft": round(peft_step(theirs, torch.optim.SGD(theirs.parameters(), 0.0), batch), 4),
            }
            assert abs(losses["ours"] - losses["peft"]) < 0.01 * losses["peft"], losses
        ours_s = seconds(partial(our_step, ours, optimizer, batch))
        theirs_s = seconds(partial(peft_step, theirs, their_optimizer, batch))
        if turn:
            times["ours"].append(ours_s)
            times["theirs"].append(theirs_s)
    lengths = np.array([len(ids) for ids in task.inputs])
    found = paired("PEFT", times["ours"], times["theirs"])
    return {
        "task": name,
        "dropout": dropout,
        "mean_tokens": round(float(lengths.mean())),
        "longest": int(lengths.max()),
        "losses": losses,
        "ours_per_second": round(BATCH / found["ours_s"], 1),
        "theirs_per_second": round(BATCH / found["theirs_s"], 1),
        **found,
    }


def many_prompts(t5: T5, tasks: Sequence[EncodedTask], rounds: int) -> dict[str, Any]:
    """Eight prompts in one batch, and one after another; losses must agree."""
    t5.set_dropout(0.0)
    whole = [tasks[i % len(tasks)] for i in range(8)]
    rows, seeds = [8] * 8, list(range(8))
    together, optimizer = prompted(t5, 8)
    alone = [prompted(t5, 8) for _ in whole]
    for index, (model, _) in enumerate(alone):
        model.bank = PromptBank([together.bank.prompt(index)])
    apart = [(model, prompt_optimizer("adafactor", model.bank.rows_RD, model.bank.row_prompt_R)) for model, _ in alone]
    for _, each in apart:
        set_learning_rate(each, 0.3)
    batches = TaskBatches(whole, rows, seeds)
    own = [TaskBatches([task], [size], [seed]) for task, size, seed in zip(whole, rows, seeds, strict=True)]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    losses: list[list[float]] = []

    def one_after_another(turn: int) -> list[float]:
        return [float(our_step(*side, source.at(turn))) for side, source in zip(apart, own, strict=True)]

    for turn in range(rounds + 1):
        if turn == 0:
            losses = [our_step(together, optimizer, batches.at(0)).tolist(), one_after_another(0)]
            assert all(abs(a - b) < 0.02 * b for a, b in zip(*losses, strict=True)), losses
            continue
        times["ours"].append(seconds(partial(our_step, together, optimizer, batches.at(turn))))
        times["theirs"].append(seconds(partial(one_after_another, turn)))
    return {"prompts": 8, "tasks": len(tasks), "rows_each": 8} | paired(
        "one after another", times["ours"], times["theirs"]
    )


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    if not has_tasks(data, "prompt_tuning"):
        return None
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    t5 = init_t5(SIZES["small"], seed=0)
    tasks = {name: encoded(data, name) for name in TASKS}
    rows = []
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_t5(t5, Path(directory))
        t5.to(torch.bfloat16)
        for name in ("subj", "rte", "boolq"):
            for dropout in (0.0, 0.1):
                rows.append(against_peft(t5, directory, tasks[name], name, rounds, dropout))
                print(rows[-1], file=sys.stderr, flush=True)
    return {
        "batch": BATCH,
        "prompt": PROMPT,
        "rows": rows,
        "many_prompts": many_prompts(t5, list(tasks.values()), rounds),
        "peer_flags": "num_transformer_submodules=1, bf16 weights, padded to the longest of the batch, AdamW",
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| task | tokens, mean and longest | dropout | ours | PEFT | speed-up |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        lines.append(
            f"| {row['task']} | {row['mean_tokens']}, {row['longest']} | {row['dropout']}"
            f" | {row['ours_per_second']} examples/s | {row['theirs_per_second']} | {row['times_faster']} × |"
        )
    many = found["many_prompts"]
    lines += [
        "",
        f"Eight prompts for four tasks, 8 × 8 rows: {many['ours_s']} s per step in one batch,"
        f" {many['theirs_s']} s one after another ({many['times_faster']} ×).",
    ]
    return "\n".join(lines)
