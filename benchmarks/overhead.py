"""Overhead of logging, progress, checkpoints and data in a training step, and of a late start.

The stages `prepare` and `lm_adapt` run on the standard library's documentation, with the demo's T5 (the worst case,
because its steps are the shortest) and with T5 1.1 Small. Each part is timed in place. Building batches counts in full,
although it runs in a background thread; a checkpoint counts once in `checkpoint_every` steps (default 1000), a line of
the log once in `log_every` (default 10).

Late start: time and page faults in a fresh process, from opening the shards to the batch of step 0 or 100,000.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import t5_pipeline.training.loop
from benchmarks.machine import Clock, paired
from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.stage_process import run as run_stage
from t5_pipeline.stages.lm_adapt import lm_adapt
from t5_pipeline.stages.prepare import prepare
from t5_pipeline.stages.span_corrupt import span_corrupt
from t5_pipeline.training.checkpoints.store import Checkpoints

STEPS = 20
LATE = 100_000
SHAPES = {
    "the demo's": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
    "T5 1.1 Small": {
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 8,
        "num_decoder_layers": 8,
        "num_heads": 6,
    },
}
PIECES = {
    "data": (LMBatches, "at"),
    "logging": (MetricsLog, "write"),
    "progress": (Progress, "update"),
    "checkpoints": (Checkpoints, "save"),
}


@contextmanager
def timed(owner: Any, name: str, times: list[float]) -> Iterator[None]:
    """Record the seconds of every call of a function."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = Clock.now()
        try:
            return plain(*args, **kwargs)
        finally:
            times.append(Clock.now() - began)

    setattr(owner, name, clocked)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def stage(body: Any, cls: Any, *flags: str) -> None:
    if code := run_stage(body, cls, [*flags, "--overwrite"], f"{cls.kind}.py"):
        raise SystemExit(code)


def shares(tokens: str, model: str, directory: Path) -> dict[str, Any]:
    """Seconds of each part, and their shares of a step."""
    times: dict[str, list[float]] = {name: [] for name in (*PIECES, "step")}
    flags = ["--tokens", tokens, "--output-dir", str(directory / "adapted"), "--steps", str(STEPS)]
    flags += ["--model", model, "--segment-length", "64", "--batch-size", "32", "--precision", "fp32"]
    with timed(t5_pipeline.training.loop, "gradients", times["step"]):
        stack = [timed(owner, name, times[piece]) for piece, (owner, name) in PIECES.items()]
        for context in stack:
            context.__enter__()
        try:
            stage(lm_adapt, LMAdaptConfig, *flags)
        finally:
            for context in stack:
                context.__exit__(None, None, None)
    settings = LMAdaptConfig.model_fields
    every = {
        "data": 1,
        "logging": settings["log_every"].default,
        "progress": 1,
        "checkpoints": settings["checkpoint_every"].default,
    }
    step = statistics.median(times["step"])
    lost = {name: statistics.median(times[name]) / every[name] / step for name in PIECES}
    return {
        "forward_and_backward_s": round(step, 4),
        "seconds": {name: round(statistics.median(times[name]), 6) for name in PIECES},
        "every": every,
        "lost": {name: round(share, 5) for name, share in lost.items()},
        "lost_together": round(sum(lost.values()), 4),
    }


def late(tokens: str, step: int) -> dict[str, Any]:
    """Seconds and page faults until the batch of a step, in a fresh process."""
    code = f"""
import json, resource, time
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.shards.reader import TokenShards
def faults():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
before, began = faults(), time.perf_counter()
batches = LMBatches(PrefixLM(TokenShards.open({tokens!r}), 0, 64), 32, 0)
batches.at({step})
print(json.dumps([time.perf_counter() - began, faults() - before]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, pages = json.loads(done.stdout)
    return {"seconds": seconds, "pages": pages}


def run(rounds: int, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        stage(prepare, PrepareConfig, "--corpus", "stdlib-docs", "--output-dir", str(directory / "text"),
              "--vocabulary-size", "4000")  # fmt: skip
        tokens = str(directory / "text")
        found: dict[str, Any] = {"models": {}}
        for name, numbers in SHAPES.items():
            shape = [flag for key, value in numbers.items() for flag in (f"--init.{key.replace('_', '-')}", str(value))]
            stage(span_corrupt, SpanCorruptConfig, "--tokens", tokens, "--output-dir", str(directory / "pretrained"),
                  "--steps", "1", "--batch-size", "2", "--input-length", "64", *shape)  # fmt: skip
            found["models"][name] = shares(tokens, str(directory / "pretrained"), directory)
        shards = str(directory / "text" / "tokens")
        starts = [(late(shards, 0), late(shards, LATE)) for _ in range(rounds)]
    early, later = zip(*starts, strict=True)
    pages = [statistics.median(row["pages"] for row in side) for side in (early, later)]
    found["late_start"] = {
        "step": LATE,
        "pages": pages,
        "pages_ratio": round(pages[1] / pages[0], 3),
        **paired("step 0", [row["seconds"] for row in later], [row["seconds"] for row in early]),
    }
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| T5 | forward and backward | part | seconds | every … steps | share of a step |",
        "|---|---|---|---|---|---|",
    ]
    for model, of in found["models"].items():
        for name, share in of["lost"].items():
            lines.append(
                f"| {model} | {of['forward_and_backward_s']} s | {name} | {of['seconds'][name]} | {of['every'][name]}"
                f" | {share:.2%} |"
            )
        lines.append(f"| {model} | | total | | | {of['lost_together']:.2%} |")
    late_ = found["late_start"]
    lines += [
        "",
        f"Until the batch of step {late_['step']:,}: {late_['ours_s']} s, {late_['pages'][1]:,.0f} pages;"
        f" of step 0: {late_['theirs_s']} s, {late_['pages'][0]:,.0f} pages ({late_['pages_ratio']} ×).",
    ]
    return "\n".join(lines)
