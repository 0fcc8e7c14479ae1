"""Correlations against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from t5_pipeline.evaluation.correlation import pearson, spearman


def test_constant_answers_have_no_correlation() -> None:
    assert pearson(["1.0"] * 3, ["1.0", "2.0", "3.0"]) == 0
    # The mean of seven equal numbers is not always that number.
    assert {pearson(["3.4"] * n, ["1.1"] * n) for n in range(1, 12)} == {0.0}
    assert pearson(["1e200", "0.0", "0.0"], ["1.0", "0.0", "0.0"]) == pytest.approx(1)
    assert spearman(["1.0", "2.0"], ["3.0", "3.0"]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.round(rng.uniform(0, 5, 50) * 5) / 5
    predictions = np.round((targets + rng.normal(size=50)) * 5) / 5
    texts = [[f"{x:.1f}" for x in side] for side in (predictions, targets)]
    assert pearson(*texts) == pytest.approx(scipy.stats.pearsonr(predictions, targets).statistic)
    assert spearman(*texts) == pytest.approx(scipy.stats.spearmanr(predictions, targets).statistic)


def test_text_that_is_not_a_number_counts_as_minus_one() -> None:
    targets = ["0.0", "2.0", "5.0"]
    assert pearson(["0.2", "two", "nan"], targets) == pearson(["0.2", "-1", "-1"], targets)
