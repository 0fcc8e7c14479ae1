"""Steps as a user runs them, next to peers as a careful user configures them: grouped by length, SDPA, compiled.

LM adaptation (prefix LM 512/512, documents as long as Wikipedia's, T5 1.1 Small, Adafactor): ours are steps of
`lm_adapt` with global batches of 16 examples. The peer is a loop over transformers' T5 with Adafactor, eager and
compiled with dynamic shapes, whose microbatches of 8 rows come from the Trainer's `group_by_length` over the same 512
examples. It computes an even sample of them: four, evenly spaced in the order of their longest input.

Prompt tuning (T5 1.1 Small, a prompt of 100 rows, batches of 32): ours are steps of `prompt_tune` in the order of the
data. The peer is PEFT with AdamW on batches grouped by length, again an even sample of them.

Both sides compute the same number of examples, without dropout, and rates count tokens or examples without padding. In
bf16 if the CPU has instructions for it, otherwise in fp32.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.lm_adaptation import (
    BATCHES,
    LENGTH,
    PEER_ROWS,
    Documents,
    as_rows,
    collator,
    our_step,
    peer_optimizer,
    same_weights,
)
from benchmarks.machine import fast_dtype, in_turn
from benchmarks.prompt_tuning import BATCH, PROMPT, encoded, has_tasks, peft_model, peft_step, prompted
from benchmarks.prompt_tuning import our_step as our_prompt_step
from benchmarks.same_batches import COUNTED, grouped
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import Batch, LMBatches, collate
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.encode import EncodedTask
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.load import init_t5, save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.training.optimizers import model_optimizer, set_learning_rate

SAMPLED = 4
"""Microbatches of LM adaptation and batches of prompt tuning that the peer computes in a turn."""


def even_sample(batches: Sequence[list[int]], width: Sequence[int]) -> list[list[int]]:
    """SAMPLED of the batches of indices, evenly spaced in the order of their longest example."""
    ordered = sorted(batches, key=lambda part: max(width[i] for i in part))
    places = (np.arange(SAMPLED) + 0.5) * len(ordered) / SAMPLED
    return [ordered[int(place)] for place in places]


def peer_steps(model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Any], dtype: torch.dtype) -> None:
    """Two optimizer steps or more: as many microbatches for each as ours has examples in a global batch."""
    at_once = BATCHES["small"] // PEER_ROWS
    for start in range(0, len(parts), at_once):
        optimizer.zero_grad(set_to_none=True)
        for part in parts[start : start + at_once]:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(**part, use_cache=False).loss / at_once
            loss.backward()
        optimizer.step()


def adaptation(rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """LM adaptation: ours and transformers' T5, each eager and compiled."""
    shape = SIZES["small"]
    ours, peers = same_weights(shape, *[{"attn_implementation": "sdpa"}] * 2)
    batches = LMBatches(PrefixLM(Documents(), 0, LENGTH), BATCHES["small"], seed=0)
    rows = [row for step in range(COUNTED) for row in as_rows(batches.at(step))]
    lengths = [len(row["input_ids"]) for row in rows]
    chosen = even_sample(grouped(lengths, PEER_ROWS), lengths)
    parts = [collator()([rows[i] for i in part]) for part in chosen]
    steps = range(SAMPLED * PEER_ROWS // BATCHES["small"])

    optimizer = model_optimizer("adafactor", list(ours.parameters()))
    set_learning_rate(optimizer, 1e-3)

    def our_steps(compiled: bool) -> None:
        ours.set_execution(compiled=compiled)
        for step in steps:
            our_step(ours, optimizer, batches, step, dtype)

    for peer in peers:
        peer.train()
    sides = {
        "ours": partial(our_steps, False),
        "transformers": partial(peer_steps, peers[0], peer_optimizer(peers[0]), parts, dtype),
    }
    if use_compiler("true", "cpu"):
        compiled = torch.compile(peers[1], dynamic=True)
        sides["ours, compiled"] = partial(our_steps, True)
        sides["transformers, compiled"] = partial(peer_steps, compiled, peer_optimizer(peers[1]), parts, dtype)
    counted = {
        "ours": sum(batches.at(step).input_tokens + batches.at(step).target_tokens for step in steps),
        "transformers": sum(len(rows[i][side]) for part in chosen for i in part for side in ("input_ids", "labels")),
    }
    return {"work": "prefix LM 512/512", "unit": "tokens/s", "sides": rates(in_turn(sides, rounds), counted)}


def tuning(name: str, task: EncodedTask, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Prompt tuning of one task: ours and PEFT, both eager."""
    t5 = init_t5(SIZES["small"], seed=0)
    t5.set_dropout(0.0)
    ours, optimizer = prompted(t5)
    with tempfile.TemporaryDirectory() as directory:
        save_t5(t5, Path(directory))
        theirs = peft_model(directory, ours.bank.rows_RD.detach().clone(), 0.0, dtype)
    t5.to(dtype)
    adamw = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.3)
    batches = TaskBatches([task], [BATCH], [0])
    lengths = [len(ids) for ids in task.inputs]
    chosen = even_sample(grouped(lengths, BATCH), lengths)
    parts: list[Batch] = [collate([(task.inputs[i], task.targets[i]) for i in part]) for part in chosen]

    def our_steps() -> None:
        for step in range(SAMPLED):
            our_prompt_step(ours, optimizer, batches.at(step), dtype)

    def their_steps() -> None:
        for part in parts:
            peft_step(theirs, adamw, part)

    examples = {"ours": SAMPLED * BATCH, "PEFT": sum(map(len, chosen))}
    times = in_turn({"ours": our_steps, "PEFT": their_steps}, rounds)
    return {"work": f"{name}, prompt of {PROMPT} rows", "unit": "examples/s", "sides": rates(times, examples)}


def rates(times: dict[str, list[float]], counted: dict[str, int]) -> list[dict[str, Any]]:
    """Rates of each side, and the median ratio of the fastest of ours to them in the same rounds."""
    per_second = {
        side: np.array([counted[side.removesuffix(", compiled")] / took for took in turns])
        for side, turns in times.items()
    }
    fastest = max((rate for side, rate in per_second.items() if side.startswith("ours")), key=np.median)
    return [
        {
            "side": side,
            "rate": round(float(np.median(rate)), 2),
            "turns": [round(float(each), 2) for each in rate],
            "times_faster": round(float(np.median(fastest / rate)), 2),
        }
        for side, rate in per_second.items()
    ]


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    if not has_tasks(data, "grouped_peers"):
        return None
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = fast_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [tuning(name, encoded(data, name), rounds, dtype) for name in ("subj", "rte", "boolq")]
        rows = [adaptation(rounds, dtype), *rows]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "peer_flags": "rows grouped by length, SDPA; LM adaptation also torch.compile(dynamic=True)",
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"| {found['dtype']} | side | rate | fastest of ours / this side |", "|---|---|---|---|"]
    lines += [
        f"| {row['work']} | {side['side']} | {side['rate']:,} {row['unit']} | {side['times_faster']} × |"
        for row in found["rows"]
        for side in row["sides"]
    ]
    return "\n".join(lines)
