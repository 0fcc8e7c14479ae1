"""A sweep of 16 settings in one batch, compared with 16 separate runs and with a single prompt.

Runs `prompt_tune` itself: inputs are rows of BoolQ (docs/tasks.md), at most 512 tokens beside the prompt, on a random
T5 of 2 + 2 layers with T5's vocabulary. All runs have the same batches, seed and validation rows, and no dropout.
`--rounds N` trains for 16·N steps. Goals: the cost of at most five single prompts, and the settings that are best in
the separate runs. A random T5 learns little, so nearly equal losses decide; a pretrained one separates settings better.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import seconds
from benchmarks.prompt_tuning import TASKS, has_tasks
from t5_pipeline.artifacts.manifest import Manifest, read
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.execution.metrics_log import read_rows
from t5_pipeline.execution.stage_process import run as run_stage
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.stages.prompt_tune import prompt_tune

SWEEP: dict[str, list[Any]] = {
    "learning_rate": [0.03, 0.1, 0.3, 1.0],
    "reparametrization": ["none", "low_rank"],
    "prompt_length": [20, 50],
}
SHAPE = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}


def tune(directory: Path, name: str, steps: int, **settings: Any) -> tuple[float, Manifest]:
    """Run prompt_tune; returns its seconds and its manifest."""
    every = max(1, steps // 4)
    flags = ["--model", str(directory / "model"), "--task", str(directory / "task.yaml"), "--precision", "fp32"]
    flags += ["--dropout", "0", "--batch-size", "8", "--validation-limit", "32", "--scoring", "likelihood"]
    counts = {"steps": steps, "validate_every": every, "checkpoint_every": steps, "log_every": every}
    for key, value in (counts | settings).items():
        flags += [f"--{key.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    flags += ["--output-dir", str(directory / name)]

    def once() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = run_stage(prompt_tune, PromptTuneConfig, flags, "prompt_tune.py")
        assert code == 0, said.getvalue()

    took = seconds(once)
    manifest = read(directory / name)
    assert manifest is not None
    return took, manifest


def best_validation(run: Path) -> tuple[float, float]:
    """The highest score of a run with one prompt, and its lowest loss, negated."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if row is not None and row.scores]
    return max((statistics.fmean(row.scores[""].values()), -row.losses[""]) for row in rows)


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    if not has_tasks(data, "sweep"):
        return None
    steps = 16 * rounds
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        LoadedT5.init(SHAPE, Vocabulary.load(data / "t5"), seed=0).save(directory / "model", ModelMetadata())
        rows = TASKS["boolq"]["splits"]["train"]
        splits = {"train": f"{rows}[:90%]", "validation": f"{rows}[90%:]"}
        place = str((data / TASKS["boolq"]["data"]).resolve())
        task = {**TASKS["boolq"], "name": "boolq", "data": place, "splits": splits}
        (directory / "task.yaml").write_text(json.dumps(task))
        common: dict[str, Any] = {"model": "m", "task": TaskConfig.model_validate(task), "steps": steps}
        c = PromptTuneConfig.model_validate({**common, "sweep": SWEEP, "first_rung": 2 * rounds})
        swept_s, manifest = tune(directory, "sweep", steps, sweep=SWEEP, first_rung=c.first_rung)
        times = {}
        for name, trial in c.trials().items():
            times[name], _ = tune(directory, name, steps, **{key: getattr(trial, key) for key in SWEEP})
            print(name, round(times[name], 1), best_validation(directory / name), file=sys.stderr, flush=True)
        best = max(times, key=lambda name: best_validation(directory / name))
        one = statistics.fmean(times.values())
    return {
        "settings": len(times),
        "steps": steps,
        "rungs": c.rungs(steps),
        "examples_of_one": round(c.prompt_steps(steps) / steps, 2),
        "sweep_s": round(swept_s, 1),
        "separate_s": round(sum(times.values()), 1),
        "one_s": round(one, 1),
        "sweep_of_one": round(swept_s / one, 2),
        "selected": manifest.facts["sweep"]["winner"],
        "best_of_separate": best,
    }


def table(found: dict[str, Any]) -> str:
    same = "the same" if found["selected"] == found["best_of_separate"] else "another one"
    return "\n".join(
        [
            "| settings | steps | one batch | separate runs | one prompt | one batch / one prompt |",
            "|---|---|---|---|---|---|",
            f"| {found['settings']} | {found['steps']} | {found['sweep_s']} s | {found['separate_s']} s"
            f" | {found['one_s']} s | {found['sweep_of_one']} × ({found['examples_of_one']} × the examples) |",
            "",
            f"Selected: {found['selected']}; the best of the separate runs is {same} ({found['best_of_separate']}).",
        ]
    )
