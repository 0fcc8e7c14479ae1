"""Time of a training step and of a prompt step, beside transformers' T5 doing the same work.

Same weights, same padded batch, same loss: first both sides are shown to compute the same thing, then they take turns,
and the median of each and of the paired ratios is reported. The peer is `T5ForConditionalGeneration` as transformers
loads it, with its own attention implementation and no dropout; its optimizer is the same as ours, so that what differs
is the model. The prompt step of both trains 100 rows before the input, the T5 frozen.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.architecture import SIZES, T5Shape
from pipeline.modeling.load import init_t5, save_t5
from pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from pipeline.training.loss import token_loss
from pipeline.training.optimizers import model_optimizer, prompt_optimizer, set_learning_rate

PROMPT = 100
ROUNDS = 5


def measure(shape: T5Shape, batch: int, length: int, precision: str) -> list[dict[str, Any]]:
    """Rows for a training step and a prompt step at one shape; lengths of the inputs vary from half to whole."""
    from transformers import T5ForConditionalGeneration

    generator = torch.Generator().manual_seed(0)
    ours = init_t5(shape, seed=0)
    ours.set_dropout(0.0)
    with tempfile.TemporaryDirectory() as directory:
        save_t5(ours, Path(directory))
        theirs = T5ForConditionalGeneration.from_pretrained(directory)
    theirs.eval()
    inputs_BS = torch.randint(3, 32_000, (batch, length), generator=generator)
    targets_BT = torch.randint(3, 32_000, (batch, length), generator=generator)
    for row in range(batch):
        end = length // 2 + row * length // (2 * batch)
        inputs_BS[row, end:], targets_BT[row, end:] = 0, 0
    rows_PD = ours.shared.weight[:PROMPT].detach().clone()

    def their_loss(embedded: Tensor, mask: Tensor) -> Tensor:
        labels = targets_BT.masked_fill(targets_BT == 0, -100)
        found: Tensor = theirs(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss
        return found

    def our_training() -> Tensor:
        return token_loss(ours(inputs_BS, targets_BT), targets_BT).sum() / (targets_BT != 0).sum()

    def their_training() -> Tensor:
        return their_loss(theirs.get_input_embeddings()(inputs_BS), (inputs_BS != 0).long())

    rows = [
        compare(
            "training step",
            (our_training, model_optimizer("adafactor", list(ours.parameters()))),
            (their_training, model_optimizer("adafactor", list(theirs.parameters()))),
            precision,
        )
    ]

    prompted = PromptedT5(ours, PromptBank([rows_PD]))
    theirs.requires_grad_(False)
    their_rows_PD = torch.nn.Parameter(rows_PD.clone())
    prompt_B = torch.zeros(batch, dtype=torch.long)

    def our_prompt() -> Tensor:
        return token_loss(prompted(prompt_B, inputs_BS, targets_BT), targets_BT).sum() / (targets_BT != 0).sum()

    def their_prompt() -> Tensor:
        embedded = torch.cat([their_rows_PD.expand(batch, -1, -1), theirs.get_input_embeddings()(inputs_BS)], 1)
        return their_loss(embedded, F.pad((inputs_BS != 0).long(), (PROMPT, 0), value=1))

    bank = prompted.bank
    rows.append(
        compare(
            "prompt step",
            (our_prompt, prompt_optimizer("adafactor", bank.rows_RD, bank.row_prompt_R)),
            (their_prompt, prompt_optimizer("adafactor", their_rows_PD, bank.row_prompt_R)),
            precision,
        )
    )
    return rows


Side = tuple[Callable[[], Tensor], torch.optim.Optimizer]


def compare(what: str, ours: Side, theirs: Side, precision: str) -> dict[str, Any]:
    """Medians of interleaved steps. The loss of the first step must agree."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    losses = {}
    for round_ in range(ROUNDS + 2):
        for name, (loss_fn, optimizer) in (("ours", ours), ("theirs", theirs)):
            set_learning_rate(optimizer, 1e-3)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_fn()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if round_ == 0:
                losses[name] = float(loss.detach())
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - began)
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    assert abs(losses["ours"] - losses["theirs"]) < tolerance * abs(losses["theirs"]), losses
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "what": what,
        "precision": precision,
        "ours_s": round(statistics.median(seconds["ours"]), 3),
        "transformers_s": round(statistics.median(seconds["theirs"]), 3),
        "speedup": round(statistics.median(ratios), 2),
        "losses": losses,
    }


def run() -> dict[str, Any]:
    """The demo's T5 and T5 1.1 Small, both precisions."""
    demo = T5Shape(vocab_size=32_128, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4)
    rows = []
    for name, shape, batch, length in (("demo", demo, 32, 64), ("T5 1.1 Small", SIZES["small"], 4, 128)):
        for precision in ("fp32", "bf16"):
            rows += [
                {"shape": name, "batch": batch, "length": length} | r for r in measure(shape, batch, length, precision)
            ]
    return {"name": "steps", "prompt": PROMPT, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """For docs/performance.md."""
    lines = ["| shape | batch | what | precision | ours | transformers | speed-up |", "|---|---|---|---|---|---|---|"]
    for row in found["rows"]:
        numbers = f"{row['ours_s']} s | {row['transformers_s']} s | {row['speedup']} ×"
        work = f"{row['shape']} | {row['batch']} × {row['length']} | {row['what']}"
        lines.append(f"| {work} | {row['precision']} | {numbers} |")
    return "\n".join(lines)
