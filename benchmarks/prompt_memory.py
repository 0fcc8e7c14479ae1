"""Peak memory of prompt tuning compared with model tuning, beyond that after imports, with one process each.

T5 1.1 Small, bf16, one microbatch of 8 inputs of 256 tokens and targets of 8, a prompt of 100 rows, two steps. The
parts of the peak are weights, gradients and moments by their sizes, and the activations that autograd saved for the
backward pass (each storage once, without weights); with activation checkpointing also those of one recomputed block
(pipeline/cost/activations.py). The peak of all tensors (torch's profiler, in a separate process) is that sum and
temporaries; the rest of the process are buffers of libraries. glibc returns freed memory (see benchmarks/memory.py),
and before the baseline the process has run the same steps on a tiny T5.

Prompt tuning needs the frozen weights in bf16, and gradients and moments only of the prompt. Model tuning needs fp32
weights, a gradient for each, and Adafactor's factored moments; AdamW's would be two more numbers per weight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import FREED, TINY, tensors_peak
from benchmarks.prompt_tuning import PROMPT
from t5_pipeline.cost.activations import Microbatch, saved_activations
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import output_loss
from t5_pipeline.training.optimizers import model_optimizer, prompt_optimizer, set_learning_rate

ROWS, LENGTH, TARGETS = 8, 256, 8
KINDS = ("prompt tuning", "prompt tuning, recomputed", "model tuning", "model tuning, recomputed")


def peak() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def child(kind: str) -> dict[str, Any]:
    """Measure two steps in this process."""
    steps(kind, TINY)
    baseline = peak()
    parts = steps(kind, SIZES["small"])
    return {"kind": kind, "peak": peak() - baseline, **parts}


def steps(kind: str, shape: T5Config) -> dict[str, int]:
    """Run two steps; returns the bytes of each part."""
    prompts, recompute = kind.startswith("prompt"), kind.endswith("recomputed")
    with torch.device("meta"):
        t5 = T5(shape)
    t5 = (t5.to(torch.bfloat16) if prompts else t5).to_empty(device="cpu")
    with torch.no_grad():
        for p in t5.parameters():
            p.fill_(0.01)
    t5.set_dropout(0.0)
    t5.set_execution(recompute=recompute)
    inputs_BS = torch.full((ROWS, LENGTH), 7)
    inputs_BS[0, -1] = 0
    targets_BT = torch.full((ROWS, TARGETS), 9)
    if prompts:
        bank = PromptBank([torch.zeros(PROMPT, shape.d_model)])
        model: Any = PromptedT5(t5, bank)
        optimizer = prompt_optimizer("adafactor", bank.rows_RD, bank.row_prompt_R)
    else:
        model = t5
        optimizer = model_optimizer("adafactor", list(t5.parameters()))
    set_learning_rate(optimizer, 1e-3)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    for _ in range(2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            arguments = (torch.zeros(ROWS, dtype=torch.long),) if prompts else ()
            hidden, weight = model.before_logits(model.predict(*arguments, inputs_BS, targets_BT))
            loss = output_loss(hidden, weight, targets_BT, 1e-4).sum()
        loss.backward()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    moments = sum(x.nbytes for state in optimizer.state.values() for x in state.values())
    read = LENGTH + (PROMPT if prompts else 0)
    m = Microbatch(ROWS, read, TARGETS, prompt=PROMPT if prompts else 0, recompute=recompute, cpu=True)
    return {
        "weights": sum(weights.values()),
        "activations": sum(kept.values()) + saved_activations(shape, m).encoder_block,
        "gradients": gradients,
        "moments": moments,
    }


def run(rounds: int, data: Path) -> dict[str, Any]:
    rows = []
    for kind in KINDS:
        row: dict[str, Any] = {}
        for measure in ("process", "tensors"):
            command = [sys.executable, "-m", "benchmarks.prompt_memory", kind, measure]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **FREED})
            row |= json.loads(done.stdout.splitlines()[-1])
        for peak_ in ("tensors", "peak"):
            row[f"{peak_}_over_parts"] = round(row[peak_] / (row["weights"] + row["activations"]), 3)
        rows.append(row)
    return {"microbatch": [ROWS, LENGTH, TARGETS], "rows": rows}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| MiB | weights | activations | gradients | moments | peak of tensors | peak of the process |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        sizes = [f"{row[part] / 2**20:,.1f}" for part in ("weights", "activations", "gradients", "moments")]
        sizes += [f"{row[part] / 2**20:,.1f} ({row[f'{part}_over_parts']} ×)" for part in ("tensors", "peak")]
        lines.append(f"| {row['kind']} | {' | '.join(sizes)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    kind, measure = sys.argv[1:]
    print(json.dumps(child(kind) if measure == "process" else {"tensors": tensors_peak(lambda: child(kind))}))
