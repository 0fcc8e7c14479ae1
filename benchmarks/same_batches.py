"""The model alone: forward, loss and backward of one padded batch, ours and transformers' with SDPA, also compiled.

nanoT5 joins them if `T5_PIPELINE_NANOT5` names its model file (benchmarks/nanot5.py).

Both sides have the same weights and the same padded batch, without dropout. No side removes padding here, as a user's
run does. The savings are counted, not timed: the products of all microbatches relative to those of the examples
alone, for rows in data order, for rows grouped by length as the Trainer's `group_by_length` does, and for ours.

In bf16 if the CPU has instructions for it, otherwise in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lm_adaptation import BATCHES, LENGTH, PEER_ROWS, Documents, as_rows, same_weights
from benchmarks.machine import compared, device_in, fast_dtype, in_turn, layer_rate
from benchmarks.nanot5 import nanot5_model
from t5_pipeline.cost.flops import forward_flops, training_flops
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import output_loss

ROWS, INPUTS, TARGETS = 4, 256, 64
COUNTED = 32
"""Global batches whose padding is counted."""


def padded_batch(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Inputs [B, S] and targets [B, T] of lengths like those of a length-grouped batch: three quarters to all of it."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for length in (INPUTS, TARGETS):
        ids_BS = torch.randint(3, vocabulary, (ROWS, length), generator=generator)
        lengths_B = torch.randint(3 * length // 4, length + 1, (ROWS, 1), generator=generator)
        lengths_B[0] = length
        sides.append(ids_BS.masked_fill(torch.arange(length) >= lengths_B, 0))
    return sides[0], sides[1]


def our_pass(model: T5, compiled: bool, inputs_BS: Tensor, targets_BT: Tensor, dtype: torch.dtype) -> float:
    model.set_execution(compiled=compiled)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden, weight = model.before_logits(model.predict(inputs_BS, targets_BT))
        loss = output_loss(hidden, weight, targets_BT).sum() / (targets_BT != 0).sum()
    loss.backward()
    return float(loss.detach())


def their_pass(model: Any, inputs_BS: Tensor, targets_BT: Tensor, dtype: torch.dtype, **flags: bool) -> float:
    model.zero_grad(set_to_none=True)
    labels = targets_BT.masked_fill(targets_BT == 0, -100)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=inputs_BS, attention_mask=(inputs_BS != 0).long(), labels=labels, **flags).loss
    loss.backward()
    return float(loss.detach())


def measure(size: str, rounds: int) -> dict[str, Any]:
    shape: T5Config = SIZES[size]
    ours, [theirs] = same_weights(shape, {"attn_implementation": "sdpa"})
    theirs.train()
    peers: dict[str, tuple[Any, dict[str, bool]]] = {"transformers, SDPA": (theirs, {"use_cache": False})}
    if (nanot5 := nanot5_model(theirs)) is not None:
        peers["nanoT5"] = nanot5, {}
    dtype = fast_dtype()
    inputs_BS, targets_BT = padded_batch(shape.vocab_size)
    batch = inputs_BS, targets_BT, dtype
    sides = {"ours": partial(our_pass, ours, False, *batch)}
    sides |= {name: partial(their_pass, model, *batch, **flags) for name, (model, flags) in peers.items()}
    losses = {name: round(side(), 4) for name, side in sides.items()}
    for name in peers:
        assert abs(losses["ours"] / losses[name] - 1) < 2e-3, losses
    if use_compiler("true", "cpu"):
        sides["ours, compiled"] = partial(our_pass, ours, True, *batch)
        for name, (model, flags) in peers.items():
            sides[f"{name}, compiled"] = partial(their_pass, torch.compile(model), *batch, **flags)
    rate = layer_rate(shape, inputs_BS.numel(), dtype)
    times = in_turn(sides, rounds)
    rate = (rate + layer_rate(shape, inputs_BS.numel(), dtype)) / 2
    flops = ROWS * training_flops(shape, INPUTS, TARGETS, frozen=False)
    return {
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": [ROWS, INPUTS, TARGETS],
        "losses": losses,
        "product_gflops": round(rate / 1e9, 1),
        "sides": compared(times, flops, rate),
        "padding": padding(shape, BATCHES[size]),
    }


def grouped(lengths: list[int], rows: int) -> list[list[int]]:
    """Batches of indices as the Trainer's `group_by_length` makes them."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices(lengths, rows, generator=torch.Generator().manual_seed(0))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def padded_flops(shape: T5Config, parts: Iterable[list[tuple[int, int]]]) -> float:
    """Products of the forward pass of microbatches of (input, target) lengths, each padded to its longest."""
    return sum(len(part) * forward_flops(shape, *map(max, zip(*part, strict=True))) for part in parts)


def padding(shape: T5Config, examples: int) -> dict[str, float]:
    """Products of LM adaptation (prefix LM, documents as long as Wikipedia's) relative to those of its examples."""
    batches = LMBatches(PrefixLM(Documents(), 0, LENGTH), examples, seed=0)
    ours, lengths = 0.0, []
    for step in range(COUNTED):
        batch = batches.at(step)
        lengths += [(len(row["input_ids"]), len(row["labels"])) for row in as_rows(batch)]
        ours += sum(
            len(part.inputs_BS) * forward_flops(shape, part.inputs_BS.shape[1], part.targets_BT.shape[1])
            for part in batch.microbatches(0, device_in(fast_dtype()))
        )
    in_order = [lengths[start : start + PEER_ROWS] for start in range(0, len(lengths), PEER_ROWS)]
    by_length = [[lengths[i] for i in part] for part in grouped([inputs for inputs, _ in lengths], PEER_ROWS)]
    least = sum(forward_flops(shape, *each) for each in lengths)
    return {
        "ours": round(ours / least, 3),
        "grouped by length": round(padded_flops(shape, by_length) / least, 3),
        "in data order": round(padded_flops(shape, in_order) / least, 3),
    }


def run(rounds: int, data: Path, sizes: tuple[str, ...] = ("small", "base")) -> dict[str, Any]:
    return {
        "rows": [measure(size, rounds) for size in sizes],
        "peer_flags": 'attn_implementation="sdpa", torch.compile',
    }


def tables(measured: Mapping[str, dict[str, Any]], padding: Mapping[str, Mapping[str, float]]) -> str:
    """The timed sides, and the counted products, by what was computed."""
    lines = ["| | side | seconds | share of the d_model × d_ff product | time / ours |", "|---|---|---|---|---|"]
    for name, found in measured.items():
        lines += [
            f"| {name}, {found['dtype']} | {side['side']} | {side['seconds']} |"
            f" {side['share']:.0%} of {found['product_gflops']} GFLOP/s | {side['times_slower']} |"
            for side in found["sides"]
        ]
    lines += ["", "| | products of ours | grouped by length | in data order |", "|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(f"{x} ×" for x in each.values()) + " |" for name, each in padding.items()]
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    by_size = {f"T5 1.1 {row['size'].capitalize()}": row for row in found["rows"]}
    return tables(by_size, {name: row["padding"] for name, row in by_size.items()})
