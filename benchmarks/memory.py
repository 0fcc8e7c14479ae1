"""Peak memory of real stages on a CPU, compared with the estimate of `t5-pipeline plan`.

Each case is a whole stage in its own process. The process first runs the same stage on a T5 of 50,000 weights, so that
everything is imported and initialized. From then on its parent reads its anonymous memory (`RssAnon`: allocations, not
mapped files) every two milliseconds. The measured peak is the largest reading minus the first: weights, everything a
step allocates, and the data.

glibc returns freed memory to the system at once (every allocation of at least 64 KiB has its own pages), so that memory
in use is measured. Without these variables a stage keeps freed memory for reuse (pipeline/execution/malloc.py).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.cost.flops import shape_of, stage_memory
from t5_pipeline.cost.memory import Memory
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import SIZES

FREED = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
SMALL, BASE = "T5 1.1 Small", "Base, 2 + 2 layers"
TINY = T5Config(vocab_size=1152, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
BASE_SHAPED = T5Config(d_model=768, d_ff=2048, num_heads=12, num_layers=2, num_decoder_layers=2)
SHAPES = {SMALL: SIZES["small"], BASE: BASE_SHAPED}
TINY_WORK = {"batch_size": 2, "microbatch_size": 0}
EVERY_S = 0.002


@dataclass(frozen=True)
class Case:
    """A stage on one of the T5s; `settings` are added to those of every case."""

    kind: str
    shape: str
    settings: dict[str, Any]


CASES = [
    Case("span_corrupt", SMALL, {"batch_size": 8, "input_length": 256, "precision": "fp32"}),
    Case("lm_adapt", SMALL, {"batch_size": 4, "segment_length": 128, "packing": False, "precision": "bf16"}),
    Case(
        "lm_adapt",
        SMALL,
        {"batch_size": 8, "microbatch_size": 2, "segment_length": 256, "packing": False, "precision": "fp32"},
    ),
    Case(
        "lm_adapt",
        BASE,
        {"batch_size": 4, "segment_length": 256, "packing": False, "optimizer": "adamw", "precision": "bf16"},
    ),
    Case("model_tune", SMALL, {"batch_size": 8, "max_input_length": 256, "precision": "fp32", "select": "last"}),
    Case("model_tune", BASE, {"batch_size": 8, "max_input_length": 512, "precision": "bf16", "select": "best"}),
    Case("prompt_tune", SMALL, {"batch_size": 16, "max_input_length": 256, "precision": "fp32", "select": "last"}),
    Case("prompt_tune", SMALL, {"batch_size": 4, "max_input_length": 64, "precision": "bf16", "select": "last"}),
    Case("prompt_tune", BASE, {"batch_size": 16, "max_input_length": 384, "precision": "bf16", "select": "last"}),
    Case(
        "prompt_tune",
        SMALL,
        {"batch_size": 32, "max_input_length": 412, "precision": "bf16", "select": "last", "recompute": True},
    ),
    Case("span_corrupt", SMALL, {"batch_size": 16, "input_length": 512, "precision": "bf16", "recompute": True}),
    Case("prompt_tune", BASE, {"batch_size": 8, "max_input_length": 256, "precision": "fp32", "select": "best"}),
]


def prepare(place: Path, shapes: Mapping[str, T5Config]) -> None:
    """Write token shards of long texts, a task whose inputs are longer than any case reads, and the T5s."""
    from t5_pipeline.data_prep.corpora.documents import corpus_chunks
    from t5_pipeline.data_prep.shards.writer import write_tokens
    from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
    from t5_pipeline.modeling.load import init_t5
    from t5_pipeline.modeling.model_dir import write_model
    from t5_pipeline.modeling.model_metadata import ModelMetadata

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    texts = [" ".join(draw.choices(words, k=600)) for _ in range(80)]
    vocabulary = Vocabulary.train(texts, 500)
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_tokens(corpus_chunks(place / "texts.jsonl"), vocabulary, place / "tokens", validation_fraction=0.1)
    (place / "rows").mkdir()
    for split in ("train", "validation"):
        # A short row requires masks, without which less would be saved.
        rows = [
            {"text": text if i % 8 else "short", "label": ("first", "second")[i % 2]} for i, text in enumerate(texts)
        ]
        (place / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, shape in {**shapes, "tiny": TINY}.items():
        (place / name).mkdir()
        write_model(place / name, init_t5(shape, seed=0), vocabulary, ModelMetadata())


def recipe(case: Case, place: Path, name: str = "case") -> Path:
    """Write the case as a recipe of one stage of two steps."""
    stage: dict[str, Any] = {"uses": case.kind, "model": str(place / case.shape), "steps": 2, "checkpoint_every": 1000}
    match case.kind:
        case "lm_adapt" | "span_corrupt":
            stage |= {"tokens": str(place / "tokens"), "validation_batches": 1}
        case "model_tune":
            stage |= {"tasks": ["halves"], "validate_every": 1}
        case "prompt_tune":
            stage |= {"task": "halves", "validate_every": 1}
    task = {"data": str(place / "rows"), "inputs": "{text}", "targets": "{label}", "labels": ["first", "second"]}
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "tasks": {"halves": task}, "stages": {"it": stage | case.settings}}))
    return path


def estimated(path: Path) -> Memory:
    """The estimate of `t5-pipeline plan` for the stage of a recipe, on one CPU process."""
    found = load_recipe(path)
    (cell,) = found.cells()
    shape = shape_of(found, RunDir(path.parent / "none"), cell)
    assert shape is not None
    assert isinstance(cell.settings, TrainingConfig)
    made = stage_memory([cell.settings], shape, LaunchConfig(cpu=True))
    assert made is not None
    return made


def measured(case: Case, place: Path) -> int:
    """Peak anonymous memory of the stage's process minus that before it began, in bytes."""
    first = recipe(replace(case, shape="tiny", settings=case.settings | TINY_WORK), place, "tiny")
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "benchmarks.memory", case.kind, str(first), str(recipe(case, place)), runs]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **FREED}
        )
        assert process.stdout is not None
        before = int(process.stdout.readline() or 0)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(EVERY_S)
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {error}")
        return peak - before


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is not backed by files; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def stage(kind: str, first: str, then: str, runs: str) -> int:
    """Run the stage of one recipe in this process, print its memory, and run that of another."""
    run_here(kind, first, f"{runs}/first")
    print(anonymous_bytes(), flush=True)
    return run_here(kind, then, f"{runs}/then")


def run_here(kind: str, path: str, run_dir: str) -> int:
    """Run the stage of a recipe in this process; returns its exit code."""
    from t5_pipeline.execution.stage_process import run

    body = getattr(importlib.import_module(f"t5_pipeline.stages.{kind}"), kind)
    return run(body, STAGES[kind], ["--recipe", path, "--run-dir", run_dir], f"{kind}.py")


def measured_tensors(case: Case, place: Path) -> int:
    """Peak bytes of the stage's tensors, in this process. Unlike its memory, it does not depend on the processor."""
    with tempfile.TemporaryDirectory() as runs:
        return tensors_peak(lambda: run_here(case.kind, str(recipe(case, place)), runs))


def tensors_peak(work: Callable[[], Any]) -> int:
    """Peak bytes of the tensors that exist while `work` runs in this process, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def expected(case: Case, place: Path) -> int:
    """The estimate of the stage's peak, in bytes."""
    estimate = estimated(recipe(case, place))
    # The only checkpoint is written after the last step, when gradients and activations have been freed.
    return max(estimate.peak, estimate.weights + estimate.optimizer + estimate.snapshot) + estimate.host


def compare(case: Case, place: Path) -> dict[str, Any]:
    """One row: estimate and measurement."""
    bytes_expected, in_use = expected(case, place), measured(case, place)
    return {
        "stage": case.kind,
        "shape": case.shape,
        "settings": case.settings,
        "estimate_bytes": bytes_expected,
        "measured_bytes": in_use,
        "off": round(bytes_expected / in_use - 1, 4),
    }


def run(rounds: int, data: Path) -> dict[str, Any]:
    """Measure every case."""
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), SHAPES)
        rows = []
        for case in CASES:
            rows.append(compare(case, Path(place)))
            print(
                f"memory: case {len(rows)} of {len(CASES)}, {case.kind}: {rows[-1]['off']:+.1%}",
                file=sys.stderr,
                flush=True,
            )
        return {"name": "memory", "rows": rows}


def table(found: dict[str, Any]) -> str:
    """Rows for docs/performance.md."""
    lines = ["| T5 | stage | settings | estimate | measured | difference |", "|---" * 6 + "|"]
    for row in found["rows"]:
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        estimate, peak = (f"{row[key] / 2**20:,.0f} MiB" for key in ("estimate_bytes", "measured_bytes"))
        lines.append(f"| {row['shape']} | {row['stage']} | {settings} | {estimate} | {peak} | {row['off']:+.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(stage(*sys.argv[1:]))
