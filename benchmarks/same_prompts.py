"""Prompt tuning, the model alone: forward, loss and backward of one padded batch of SUBJ, ours and PEFT's.

Both sides have the same weights, the same prompt of 100 rows and the same padded batch, without dropout; PEFT's T5 uses
SDPA. The savings of removing padding are counted, not timed, as in same_batches.py: for batches in data order, padded
to their longest (PEFT), for rows grouped by length, and for ours.

In bf16 if the CPU has instructions for it, otherwise in fp32.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import compared, fast_dtype, in_turn, layer_rate
from benchmarks.prompt_tuning import BATCH, PROMPT, encoded, has_tasks, peft_model, prompted
from benchmarks.same_batches import grouped, padded_flops, tables
from t5_pipeline.cost.flops import forward_flops, training_flops
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.encode import EncodedTask
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptedT5
from t5_pipeline.training.loss import output_loss

ROWS = 8


def our_pass(model: PromptedT5, compiled: bool, inputs_BS: Tensor, targets_BT: Tensor) -> float:
    model.t5.set_execution(compiled=compiled)
    model.zero_grad(set_to_none=True)
    prompt_B = torch.zeros(len(inputs_BS), dtype=torch.long)
    hidden, weight = model.before_logits(model.predict(prompt_B, inputs_BS, targets_BT))
    loss = output_loss(hidden, weight, targets_BT).sum() / (targets_BT != 0).sum()
    loss.backward()
    return float(loss.detach())


def their_pass(model: nn.Module, inputs_BS: Tensor, targets_BT: Tensor) -> float:
    model.zero_grad(set_to_none=True)
    labels = targets_BT.masked_fill(targets_BT == 0, -100)
    loss = model(input_ids=inputs_BS, attention_mask=(inputs_BS != 0).long(), labels=labels).loss
    loss.backward()
    return float(loss.detach())


def measure(data: Path, rounds: int) -> dict[str, Any]:
    shape, dtype = SIZES["small"], fast_dtype()
    t5 = init_t5(shape, seed=0)
    t5.set_dropout(0.0)
    ours, _ = prompted(t5)
    with tempfile.TemporaryDirectory() as directory:
        save_t5(t5, Path(directory))
        theirs: Any = peft_model(directory, ours.bank.rows_RD.detach().clone(), 0.0, dtype)
    assert theirs.base_model.config._attn_implementation == "sdpa"  # transformers' default
    t5.to(dtype)
    task = encoded(data, "subj")
    batch = TaskBatches([task], [ROWS], [0]).at(0)
    inputs_BS, targets_BT = (torch.from_numpy(ids).long() for ids in (batch.inputs_BS, batch.targets_BT))
    inputs_BS, targets_BT = (ids[:, : int((ids != 0).sum(1).max())] for ids in (inputs_BS, targets_BT))
    sides = {
        "ours": partial(our_pass, ours, False, inputs_BS, targets_BT),
        "PEFT, SDPA": partial(their_pass, theirs, inputs_BS, targets_BT),
    }
    if use_compiler("true", "cpu"):
        sides["ours, compiled"] = partial(our_pass, ours, True, inputs_BS, targets_BT)
    losses = {name: round(sides[name](), 4) for name in ("ours", "PEFT, SDPA")}
    assert abs(losses["ours"] / losses["PEFT, SDPA"] - 1) < 0.01, losses
    positions = ROWS * (PROMPT + inputs_BS.size(1))
    rate = layer_rate(shape, positions, dtype)
    times = in_turn(sides, rounds)
    rate = (rate + layer_rate(shape, positions, dtype)) / 2
    flops = ROWS * training_flops(shape, PROMPT + inputs_BS.size(1), targets_BT.size(1), frozen=True)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": [ROWS, PROMPT, inputs_BS.size(1), targets_BT.size(1)],
        "losses": losses,
        "product_gflops": round(rate / 1e9, 1),
        "sides": compared(times, flops, rate),
    }


def padding(shape: T5Config, task: EncodedTask) -> dict[str, float]:
    """Products of an epoch relative to those of its examples alone, each with the prompt."""
    lengths = [(PROMPT + len(x), len(y)) for x, y in zip(task.inputs, task.targets, strict=True)]
    batches = TaskBatches([task], [BATCH], [0])
    ours, least, theirs = 0.0, 0.0, []
    for step in range(len(lengths) // BATCH):
        batch = batches.at(step)
        real = [[int((row != 0).sum()) for row in ids] for ids in (batch.inputs_BS, batch.targets_BT)]
        part = [(PROMPT + inputs, targets) for inputs, targets in zip(*real, strict=True)]
        theirs.append(part)
        least += sum(forward_flops(shape, *each) for each in part)
        ours += sum(
            len(micro.inputs_BS) * forward_flops(shape, PROMPT + micro.inputs_BS.shape[1], micro.targets_BT.shape[1])
            for micro in batch.microbatches(0)
        )
    by_length = [[lengths[i] for i in part] for part in grouped([inputs for inputs, _ in lengths], BATCH)]
    return {
        "ours": round(ours / least, 3),
        "grouped by length": round(
            padded_flops(shape, by_length) / sum(forward_flops(shape, *each) for each in lengths), 3
        ),
        "in data order": round(padded_flops(shape, theirs) / least, 3),
    }


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    if not has_tasks(data, "same_prompts"):
        return None
    names = ("subj", "rte", "boolq")
    return {
        "rows": [measure(data, rounds)],
        "padding": {name: padding(SIZES["small"], encoded(data, name)) for name in names},
        "peer_flags": "num_transformer_submodules=1, SDPA",
    }


def table(found: dict[str, Any]) -> str:
    return tables({"SUBJ": found["rows"][0]}, found["padding"])
