"""Scores whose findings are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from t5_pipeline.report.arms import Scored, scored
from t5_pipeline.report.claims import Finding, findings
from t5_pipeline.report.collect import collect
from t5_pipeline.report.summary import summarize
from tests.report.conftest import RunBuilder

ROWS = 400


def judged(builder: RunBuilder, rows: list[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.claim.name: finding for finding in findings(arms(builder, rows))}


def arms(builder: RunBuilder, rows: list[dict[str, Any]], **parameters: int) -> list[Scored]:
    """The scores by arm; all T5s have the size of lm_adapt unless given."""
    path = builder.run_dir.path
    (path / "evaluate/scores/scores.json").write_text(json.dumps({"rows": rows, "seconds": 1.0}))
    run = collect(path, answers=True)
    size = run.models["lm_adapt"]
    for model in {row["model"] for row in rows}:
        run.models[model] = replace(size, parameters=parameters.get(model, size.parameters))
    return scored(run, summarize(run))


def rows(
    *accuracies: float, model: str | None = "lm_adapt", method: str = "prompt tuning", **more: Any
) -> list[dict[str, Any]]:
    """A row of scores for each seed."""
    prompt = {"prompt_length": 20, "prompt_init": "vocabulary"} if method == "prompt tuning" else {}
    seeds = [{"seed": seed} for seed in range(len(accuracies))] if method.endswith("tuning") else [{}]
    common = {"task": "package", "split": "test", "examples": ROWS, "method": method, "model": model, "trained": 9}
    return [
        common | prompt | seed | {"metrics": {"accuracy": accuracy}} | more
        for seed, accuracy in zip(seeds, accuracies, strict=True)
    ]


def of_models(**scores: float) -> list[dict[str, Any]]:
    """Three seeds with the same score on each T5; `_at_` in a name is an @."""
    return [row for name, score in scores.items() for row in rows(*[score] * 3, model=name.replace("_at_", "@"))]
