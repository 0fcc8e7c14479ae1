"""Intervals over rows against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t5_pipeline.evaluation import metrics
from t5_pipeline.evaluation.confusion import macro_f1
from t5_pipeline.evaluation.squad import token_f1
from t5_pipeline.report.intervals import (
    Interval,
    bootstrap,
    has_row_scores,
    mean_interval,
    resampled_scores,
    row_interval,
    wilson,
)
from t5_pipeline.report.scores import Score

LABELS = ["a", "b", "c"]


def score(**changed: Any) -> Score:
    given = {"task": "t", "method": "prompt tuning", "split": "test", "examples": 200, "metrics": {}, "labels": LABELS}
    return Score(**{**given, **changed})


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (3, 10), (10, 10), (170, 200)])
def test_wilson_interval_contains_the_shares_that_fit(right: int, rows: int) -> None:
    """Its ends are the shares p with |right / rows - p| = 1.96 standard errors at p."""
    for p in wilson(right / rows, rows):
        if 1e-9 < p < 1 - 1e-9:
            assert abs(right / rows - p) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / rows), rel=1e-6)


def texts(counts: list[list[int]]) -> tuple[list[str], list[str]]:
    """Predictions and targets with these counts."""
    pairs = [
        (predicted, true)
        for true, row in zip(LABELS, counts, strict=True)
        for predicted, number in zip([*LABELS, "?"], row, strict=True)
        for _ in range(number)
    ]
    return [p for p, _ in pairs], [t for _, t in pairs]


COUNTS = [[50, 20, 9, 1], [10, 40, 10, 0], [5, 15, 38, 2]]


@pytest.mark.parametrize("rows", [7, 450, 500, 1000, 1066])
def test_wilson_interval_contains_the_share_itself(rows: int) -> None:
    for share in (0.0, 1 / rows, 1.0):
        low, high = wilson(share, rows)
        assert 0.0 <= low <= share <= high <= 1.0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "f1", "mcc"])
def test_bootstrap_agrees_with_resampled_rows(metric: str) -> None:
    predictions, targets = (np.array(side) for side in texts(COUNTS))
    rng, found = np.random.default_rng(7), []
    for _ in range(1500):
        rows = rng.integers(len(targets), size=len(targets))
        found.append(
            metrics.score([metric], predictions[rows].tolist(), targets[rows].tolist(), LABELS).metrics[metric]
        )
    assert list(bootstrap(metric, tuple(map(tuple, COUNTS)))) == pytest.approx(
        list(np.quantile(found, [0.025, 0.975])), abs=0.02
    )


def test_accuracy_needs_only_the_rows_and_f1_a_matrix_that_fits() -> None:
    predictions, targets = texts(COUNTS)
    value = macro_f1(predictions, targets, LABELS)
    fits = score(metrics={"accuracy": 0.64, "macro_f1": value, "pearson": 0.5}, confusion=COUNTS)
    assert row_interval(fits, "accuracy") == wilson(0.64, 200)
    assert row_interval(fits, "macro_f1") == bootstrap("macro_f1", tuple(map(tuple, COUNTS)))
    assert row_interval(fits, "pearson") is None
    assert row_interval(score(metrics={"macro_f1": value + 0.01}, confusion=COUNTS), "macro_f1") is None
    assert row_interval(score(metrics={"macro_f1": value}), "macro_f1") is None


def test_means_over_rows_have_the_interval_of_resampled_rows() -> None:
    """F1 of words: recorded with its standard error by evaluation, and resampled here row by row."""
    rng = np.random.default_rng(3)
    words = ["a red house", "red", "blue house", "green barn by the lake", "house"]
    predictions, targets = rng.choice(words, 400).tolist(), rng.choice(words, 400).tolist()
    found = metrics.score(["token_f1", "exact_match"], predictions, targets)
    assert found.standard_errors.keys() == {"token_f1"}
    made = score(metrics=found.metrics, standard_errors=found.standard_errors, examples=400)
    interval = row_interval(made, "token_f1")
    of_rows = np.array([np.mean(token_f1([p], [t])) for p, t in zip(predictions, targets, strict=True)])
    draws = of_rows[rng.integers(400, size=(1000, 400))].mean(axis=1)
    assert interval == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01)
    assert np.quantile(resampled_scores(made, "token_f1", 4000, rng), [0.025, 0.975]) == pytest.approx(
        interval, abs=0.01
    )
    assert has_row_scores(made, "token_f1")


def test_interval_of_a_mean_stays_between_0_and_1() -> None:
    perfect = score(metrics={"rouge1": 0.99}, standard_errors={"rouge1": 0.02})
    assert row_interval(perfect, "rouge1") == Interval(pytest.approx(0.951, abs=1e-3), 1.0)
    assert row_interval(score(metrics={"rouge1": 0.99}), "rouge1") is None


def test_interval_of_a_correlation_stays_between_minus_1_and_1() -> None:
    negative = score(metrics={"pearson": -0.98}, standard_errors={"pearson": 0.02})
    assert row_interval(negative, "pearson") == Interval(-1.0, pytest.approx(-0.941, abs=1e-3))
    assert has_row_scores(negative, "pearson")


def test_interval_of_several_seeds() -> None:
    assert mean_interval([Interval(0.25, 0.5), Interval(0.5, 1.0)]) == Interval(0.375, 0.75)
    assert mean_interval([Interval(0.25, 0.5), None]) is None
