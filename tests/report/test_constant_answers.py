"""Prompts that always give the same answer are named, not praised."""

from __future__ import annotations

from typing import Any

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.constant_answers import Constant, constant_answer
from t5_pipeline.report.page import render
from t5_pipeline.report.scores import Score
from t5_pipeline.report.sentences import headline, model_comparison
from tests.report.test_summary import of_rows


def score(confusion: list[list[int]] | None, outputs: list[str] | None = None) -> Score:
    samples = [{"input": "i", "target": str(n % 2), "output": text} for n, text in enumerate(outputs or [])]
    labels = ["no", "yes"] if confusion else None
    return Score(task="t", method="m", split="test", examples=9, metrics={}, labels=labels, confusion=confusion,
                 samples=samples)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (score([[0, 60], [0, 40]]), Constant("yes", True)),
        (score([[60, 0, 0], [40, 0, 0]]), Constant("no", True)),
        (score([[599, 1], [400, 0]]), Constant("no", False)),
        (score([[58, 2], [40, 0]]), None),
        (score([[0, 0, 60], [0, 0, 40]]), None),  # illegal outputs differ from one another
        (score([[60, 0], [0, 0]]), None),  # every row has the same target
        (score(None, ["0"] * 6), Constant("0", True)),
        (score(None, ["0"] * 4), None),
        (score(None, ["0"] * 6 + ["1"]), None),
    ],
)
def test_constant_answer(found: Score, expected: Constant | None) -> None:
    assert constant_answer(found) == expected


def constant(rows: list[dict[str, Any]], model: str, seeds: set[int]) -> list[dict[str, Any]]:
    """The rows, with prompts of some seeds that always answer `email`, and still score highest."""
    return [
        {**row, "confusion": [[0, 80, 0], [0, 60, 0], [0, 60, 0]], "metrics": {"accuracy": 0.9, "macro_f1": 0.9}}
        if row["method"] == "prompt tuning" and row["model"] == model and row["seed"] in seeds
        else row
        for row in rows
    ]


def test_headline_names_prompts_that_always_answer_alike(finished) -> None:
    (task,) = of_rows(finished, lambda rows: constant(rows, "span_corrupt", {0, 1, 2}))
    assert (headline(task) or "").replace("\u00a0", " ") == (
        "With span corruption, every prompt of 4 tokens gives one answer to all inputs (“email”) of package:"
        " 90.0 ± 0.0% accuracy, 50.0 points above the majority class (40.0%)."
    )
    assert "one answer to all inputs (“email”)" in render(collect(finished.run_dir.path))


def test_headline_names_seeds_that_always_answer_alike(finished) -> None:
    (task,) = of_rows(finished, lambda rows: constant(rows, "lm_adapt", {1}))
    said = headline(task) or ""
    assert said.startswith("With LM adaptation @40 steps, prompts of 4 tokens reach")
    assert said.endswith(" 1 of 3 seeds gives one answer to all inputs (“email”).")


@pytest.mark.parametrize(
    ("scoring", "share", "said"), [("decode", 0.975, True), ("decode", 0.25, False), ("likelihood", 0.975, False)]
)
def test_headline_names_prompts_that_seldom_give_a_label(finished, scoring: str, share: float, said: bool) -> None:
    changes = {"scoring": scoring, "illegal": share}
    (task,) = of_rows(finished, lambda rows: [r | changes if r["method"] == "prompt tuning" else r for r in rows])
    assert (headline(task) or "").endswith(". 97.5% of the decoded texts are not a label.") is said


def test_comparison_names_them_too(finished) -> None:
    (task,) = of_rows(
        finished,
        lambda rows: constant([{**r, "metrics": {"accuracy": 0.95}} if r["model"] == "lm_adapt" else r for r in rows],
                              "sentinel", {0, 2}),
    )  # fmt: skip
    assert "2 of 3 seeds give one answer to all inputs (“email”)" in (model_comparison(task) or "")


def test_a_difference_within_the_interval_is_not_a_result(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "metrics": {"accuracy": 0.43}} if row["method"] == "prompt tuning" else row for row in rows]

    (task,) = of_rows(finished, change)
    assert (headline(task) or "").endswith(", a difference within the 95% interval over the test rows.")
