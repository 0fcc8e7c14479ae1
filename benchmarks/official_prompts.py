"""The prompts that the paper's authors published, against their published scores.

python -m benchmarks.official_prompts [--model M] [--source URL] [--output DIR]

Downloads three prompts of 100 tokens for T5 1.1 Base after 100k steps of LM adaptation, imports them for the tasks of
recipes/official-prompts.yaml, scores them with that recipe, and prints both scores of each task. Exit code 1: a score
differs from the published one by more than half a point.

Source: github.com/google-research/prompt-tuning, prompt_tuning/pretrained_prompts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.core.atomic_files import write_output
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import read_small
from t5_pipeline.report.collect import Run, collect
from t5_pipeline.serving.exchange import import_prompt

SOURCE = (
    "https://raw.githubusercontent.com/google-research/prompt-tuning/main"
    "/prompt_tuning/pretrained_prompts/t5_1_1_lm100k_base"
)
MODEL = "google/t5-base-lm-adapt"
RECIPE = Path(__file__).parent.parent / "recipes/official-prompts.yaml"
PUBLISHED = {"sst2": {"accuracy": 95.07}, "mrpc": {"f1": 89.7, "accuracy": 85.3}, "rte": {"accuracy": 68.6}}
TOLERANCE = 0.5  # points
_MAX_BYTES = 100 << 20


def compared(run: Run, published: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float, float]]:
    """Task, metric, score here and published score, in percent."""
    found = {row.task: row.metrics for row in run.scores if row.method == "prompt tuning"}
    return [
        (task, metric, 100 * found[task][metric], score)
        for task, metrics in published.items()
        for metric, score in metrics.items()
    ]


def main(
    argv: Sequence[str] | None = None,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    published: Mapping[str, Mapping[str, float]] = PUBLISHED,
) -> int:
    """Score the prompts; the recipe's tasks and the published scores by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.official_prompts", description=__doc__)
    parser.add_argument("--model", default=MODEL, help=f"the frozen T5 (default: {MODEL})")
    parser.add_argument("--source", default=SOURCE, help="URL of the folder with TASK.npy (default: the authors')")
    parser.add_argument("--output", type=Path, default=Path("runs/official-prompts"), help="directory for everything")
    given = parser.parse_args(argv)
    prompts, recipe = given.output / "prompts", given.output / "scored.yaml"
    prompts.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    settings["tasks"] = dict(tasks or settings["tasks"])
    settings["stages"]["evaluate"] |= {"model": given.model, "prompts": str(prompts)}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    for name, task in settings["tasks"].items():
        if (prompts / name).exists():
            continue
        rows, described = given.output / f"{name}.npy", given.output / f"{name}.yaml"
        url = f"{given.source}/{name}.npy"
        content = read_small(url, "--source", _MAX_BYTES)
        if content is None:
            raise InputError(f"--source: {url} does not exist; check the URL")
        write_output(rows, content)
        described.write_text(yaml.safe_dump({"name": name, **task}, sort_keys=False), encoding="utf-8")
        import_prompt(str(rows), "npy", model=given.model, task=str(described), output=str(prompts / name))
    run_dir = given.output / "run"
    command = [sys.executable, "-m", "t5_pipeline.cli.main", "run", str(recipe), "--run-dir", str(run_dir)]
    if code := subprocess.call(command):
        return code
    scores = compared(collect(run_dir), published)
    for task, metric, score, official in scores:
        print(f"{task:6} {metric:9} {score:6.2f} here  {official:6.2f} published")
    return int(any(abs(score - official) > TOLERANCE for *_, score, official in scores))


if __name__ == "__main__":
    sys.exit(main())
