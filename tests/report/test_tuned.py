"""The results that `tune` prints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from t5_pipeline.config.recipe import Recipe
from t5_pipeline.report.collect import Run, collect
from t5_pipeline.report.scores import Score
from t5_pipeline.report.tuned import score_on_test, tuned_text
from tests.report.conftest import RunBuilder


def score(method: str, accuracy: float, cell: str | None = None, seed: int | None = None, **more: Any) -> Score:
    return Score(task="tone", method=method, cell=cell, seed=seed, split="test", examples=40,
                 metrics={"accuracy": accuracy}, **more)  # fmt: skip


def run(*scores: Score) -> Run:
    return Run(cast(Recipe, None), "", [], list(scores))


BASE = (score("no prompt", 0.0), score("majority class", 0.5))
MATRIX = {"labels": ["bad", "good"], "confusion": [[18, 1, 1], [3, 17, 0]]}


def test_scores_and_confusions_of_the_kept_seed() -> None:
    seeds = (score("prompt tuning", 0.5, "seed=0", 0), score("prompt tuning", 0.875, "seed=1", 1, **MATRIX))
    lines = tuned_text(run(*BASE, *seeds), "seed=1")
    assert lines == [
        "tone: scores × 100 on 40 test rows",
        "                step  accuracy  95% interval",
        "seed 0                    50.0  35.2 to 64.8",
        "seed 1 (kept)             87.5  73.9 to 94.5",
        "no prompt                  0.0    0.0 to 8.8",
        "majority class            50.0  35.2 to 64.8",
        "",
        "true ↓ answer →  bad  good  illegal",
        "bad               18     1        1",
        "good               3    17        0",
    ]
    assert score_on_test(run(*BASE, *seeds), "seed=1") == "accuracy 87.5 (95% interval: 73.9 to 94.5), on 40 rows"
    assert score_on_test(run(*BASE), "seed=1") is None
    one = score("prompt tuning", 1.0, "seed=0", 0).model_copy(update={"examples": 1})
    assert tuned_text(run(one), "seed=0")[0] == "tone: scores × 100 on 1 test row"


@pytest.mark.parametrize(
    ("split", "kept", "said"),
    [("validation", "seed=1", ["the step and the seed"]), ("validation", None, ["the step"]), ("test", "seed=1", [])],
)
def test_scores_on_the_rows_that_chose_the_prompt_are_named_so(
    finished: RunBuilder, split: str, kept: str | None, said: list[str]
) -> None:
    cell = "model=lm_adapt,seed=0"  # whose step validation scores chose
    both = [score("prompt tuning", 0.5, name, seed, **MATRIX) for seed, name in enumerate((cell, "seed=1"))]
    found = replace(collect(finished.run_dir.path), scores=[one.model_copy(update={"split": split}) for one in both])
    too_high = "scores of prompts are a little too high. Give others as --test."
    notes = [line for line in tuned_text(found, kept) if line.startswith("These rows")]
    assert notes == [f"These rows also chose {what}: {too_high}" for what in said]


def test_a_vote_and_many_labels() -> None:
    labels = [f"l{i}" for i in range(13)]
    confusion = [[0] * i + [2] + [0] * (13 - i) for i in range(13)]
    confusion[3][5], confusion[4][13] = 9, 1
    lines = tuned_text(run(*BASE, score("ensemble", 0.5, labels=labels, confusion=confusion)), None)
    assert lines[2].startswith("majority vote")
    assert lines[-4:] == ["", "true  answer   rows", "l3    l5       9", "l4    illegal  1"]
    assert tuned_text(run(), None) == []
