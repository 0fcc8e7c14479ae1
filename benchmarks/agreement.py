"""Drift of the losses between two ways to compute the same steps: another microbatch size, or DDP on two processes.

`lm_adapt` runs with AdamW on the standard library's documentation, in fp32 without dropout. The sums are the same, but
their order is not, and AdamW divides by the size of the gradient, so that rounding grows from step to step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.overhead import SHAPES, stage
from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.core.packaged import SHIPPED
from t5_pipeline.execution.launcher import stage_script
from t5_pipeline.stages.lm_adapt import lm_adapt
from t5_pipeline.stages.prepare import prepare
from t5_pipeline.stages.span_corrupt import span_corrupt

STEPS = (1, 10, 20, 40, 60)
LEARNING_RATE = 3e-3


def losses(directory: Path) -> dict[int, float]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["loss"] for row in rows if "split" not in row}


def run(rounds: int, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        tokens, model = directory / "text", directory / "pretrained"
        stage(prepare, PrepareConfig, "--corpus", "stdlib-docs", "--output-dir", str(tokens), "--vocabulary-size",
              "1000", "--vocabulary-characters", "200000")  # fmt: skip
        shape = [
            word for name, of in SHAPES["the demo's"].items() for word in (f"--init.{name.replace('_', '-')}", str(of))
        ]
        stage(span_corrupt, SpanCorruptConfig, "--tokens", str(tokens), "--output-dir", str(model), "--steps", "1",
              "--batch-size", "2", "--input-length", "64", *shape)  # fmt: skip

        def flags(output: Path, microbatch: int) -> list[str]:
            return [
                "--model", str(model), "--tokens", str(tokens), "--output-dir", str(output),
                "--steps", str(STEPS[-1]), "--segment-length", "64", "--batch-size", "7", "--precision", "fp32",
                "--microbatch-size", str(microbatch), "--dropout", "0", "--optimizer", "adamw",
                "--schedule", "constant", "--learning-rate", str(LEARNING_RATE), "--warmup-steps", "0",
                "--weight-decay", "0.001", "--log-every", "1", "--threads", "1",
            ]  # fmt: skip

        for name, microbatch in (("one", 3), ("other", 7)):
            stage(lm_adapt, LMAdaptConfig, *flags(directory / name, microbatch))
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        words = [*launcher, str(SHIPPED / "accelerate_configs" / "cpu_ddp.yaml"), str(stage_script("lm_adapt"))]
        subprocess.run([*words, *flags(directory / "ddp", 3)], check=True)
        one = losses(directory / "one")
        found = {}
        for name, label in (("other", "one process, microbatches of 7 instead of 3"), ("ddp", "DDP on two processes")):
            differences = {step: abs(loss / one[step] - 1) for step, loss in losses(directory / name).items()}
            found[label] = {str(to): max(d for step, d in differences.items() if step <= to) for to in STEPS}
    return {"learning_rate": LEARNING_RATE, "largest relative difference of the loss": found}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| compared with one process, microbatches of 3 | " + " | ".join(f"to step {step}" for step in STEPS) + " |",
        "|---|" + "---|" * len(STEPS),
    ]
    for label, of in found["largest relative difference of the loss"].items():
        lines.append(f"| {label} | " + " | ".join(f"{of[str(step)]:.1e}" for step in STEPS) + " |")
    return "\n".join(lines)
