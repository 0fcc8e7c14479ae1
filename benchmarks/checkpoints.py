"""Cost of writing checkpoints during training, and of resuming from an early and a late one.

Checkpoints: blocks of training steps of T5 1.1 Small with AdamW, alternating with and without a checkpoint that is
written in the background from the block's first step. The difference, over 300 seconds, is the cost of one checkpoint
every five minutes.

Resuming: `lm_adapt` in a fresh process, from a checkpoint of step 1 and from a copy of it labeled step 100,000:
seconds of the whole stage (it reads the checkpoint, takes one step, saves and publishes), and all bytes that the
process reads (`/proc/self/io`, libraries included).

    python -m benchmarks.checkpoints FLAG …      resume lm_adapt once with these flags; prints JSON
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.artifacts.manifest import read_started
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.adamw import AdamW
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.checkpoints.tensor_shards import TensorShard
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.loss import batch_losses, output_loss
from t5_pipeline.training.optimizers import set_learning_rate

STEPS = 12  # per block, so that it takes longer than writing
BATCH, LENGTH = 4, 128
EVERY_S = 300.0
LATE = 100_000


def checkpoints(rounds: int, shape: T5Config = SIZES["small"]) -> dict[str, Any]:
    """Seconds of a block of steps, with and without a checkpoint in the background."""
    engine = Replicated(
        ForwardScope(init_t5(shape, seed=0), "bf16", "cpu"),
        lambda trained: AdamW(trained),
        ProcessGroup(),
        torch.device("cpu"),
    )
    set_learning_rate(engine.optimizer, 1e-4)
    ids_BS = torch.randint(3, 32_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    weights_B = torch.full((BATCH,), 1 / (BATCH * LENGTH))

    def loss(model: T5) -> Tensor:
        hidden, weight = model.before_logits(model.predict(ids_BS, ids_BS))
        return batch_losses(output_loss(hidden, weight, ids_BS), weights_B, torch.zeros(BATCH)).sum()

    def step() -> None:
        engine.backward(engine.call(loss), last=True)
        engine.step()

    step()
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    copying, written = [], 0
    with tempfile.TemporaryDirectory(prefix="t5-pipeline-benchmark-") as place:
        saved = Checkpoints(Path(place), "benchmark", keep_last=1)
        for round_ in range(2 * rounds):
            which = "with" if round_ % 2 else "without"
            began = time.perf_counter()
            if which == "with":
                saved.save(round_, [*engine.weights(), *engine.moments()], {})
                copying.append(time.perf_counter() - began)
            for _ in range(STEPS):
                step()
            seconds[which].append(time.perf_counter() - began)
            saved.wait()
        written = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
    lost = statistics.median(a - b for a, b in zip(seconds["with"], seconds["without"], strict=True))
    return {
        "bytes": written,
        "steps": STEPS,
        "with_s": round(statistics.median(seconds["with"]), 3),
        "without_s": round(statistics.median(seconds["without"]), 3),
        "copy_s": round(statistics.median(copying), 3),
        "lost_s": round(lost, 3),
        "lost_at_one_in_300_s": round(max(lost, 0.0) / EVERY_S, 5),
    }


def start(flags: Sequence[str]) -> dict[str, float]:
    """Take one more step, in this process."""
    from t5_pipeline.config.adaptation import LMAdaptConfig
    from t5_pipeline.execution.stage_process import run
    from t5_pipeline.stages.lm_adapt import lm_adapt

    began = time.perf_counter()
    assert run(lm_adapt, LMAdaptConfig, list(flags), "lm_adapt.py") == 0
    read = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"seconds": time.perf_counter() - began, "bytes_read": int(read["rchar"])}


def resuming(rounds: int) -> dict[str, Any]:
    """Time and bytes of one more step after an early and a late checkpoint."""
    with tempfile.TemporaryDirectory(prefix="t5-pipeline-benchmark-") as directory:
        place = Path(directory)
        stage("prepare", "--corpus", "stdlib-docs", "--vocabulary-size", 4000, "--output-dir", place / "tokens")
        shape = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        init = [flag for name, value in shape.items() for flag in (f"--init.{name.replace('_', '-')}", value)]
        common = ["--tokens", place / "tokens", "--batch-size", 8, "--precision", "fp32", "--validate-every", 10**9]
        stage("span_corrupt", *init, *common, "--steps", 1, "--input-length", 128, "--output-dir", place / "model")
        adapt = [*common, "--model", place / "model", "--segment-length", 128, "--validation-batches", 1]
        ends: dict[int, list[dict[str, float]]] = {1: [], LATE: []}
        for round_ in range(rounds):
            for step, found in ends.items():
                output = place / f"{step}-{round_}"
                stage("lm_adapt", *adapt, "--steps", 1, "--output-dir", output)
                relabel(output, step)
                flags = [*adapt, "--steps", step + 1, "--output-dir", output]
                command = [sys.executable, "-m", "benchmarks.checkpoints", *map(str, flags)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
    early, late = (
        {key: statistics.median(row[key] for row in rows) for key in ("seconds", "bytes_read")}
        for rows in ends.values()
    )
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*ends.values(), strict=True))
    return {"step_1": early, f"step_{LATE}": late, "late_over_early": round(ratio, 3)}


def relabel(output: Path, step: int) -> None:
    """Save the checkpoint of step 1 as that of another step."""
    begun = read_started(output)
    assert begun is not None
    saved = Checkpoints(output / "checkpoints", begun.fingerprint, keep_last=1)
    found = saved.at(1)
    if step != found.step:
        saved.save(step, [TensorShard.whole(name, tensor) for name, tensor in found.tensors().items()], found.scalars)
        saved.wait()


def stage(kind: str, *flags: object) -> None:
    script = Path(__file__).parents[1] / "stages" / f"{kind}.py"
    subprocess.run([sys.executable, str(script), *map(str, flags)], capture_output=True, check=True)


def run(rounds: int, data: Path) -> dict[str, Any]:
    return {"checkpoints": checkpoints(rounds), "resuming": resuming(max(3, rounds))}


def table(found: dict[str, Any]) -> str:
    """Rows for docs/performance.md."""
    cost, late = found["checkpoints"], found["resuming"]
    rows = [
        f"| {STEPS} steps without, with a checkpoint of {cost['bytes'] / 1e9:.2f} GB in the background |"
        f" {cost['without_s']:.2f} s, {cost['with_s']:.2f} s |",
        f"| overhead of one checkpoint every {EVERY_S:.0f} s | {cost['lost_at_one_in_300_s']:.2%} |",
    ]
    for name, of in late.items():
        if isinstance(of, dict):
            step = int(name.removeprefix("step_"))
            rows.append(
                f"| one more step after step {step:,} | {of['seconds']:.2f} s, {of['bytes_read']:,} bytes read |"
            )
    rows.append(f"| late / early, paired | {late['late_over_early']:.2f} × |")
    return "\n".join(["| what | |", "|---|---|", *rows])


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1:])))
