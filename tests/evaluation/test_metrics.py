"""Metrics against scikit-learn and scipy, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from pipeline.errors import InputError
from pipeline.evaluation.metrics import (
    BY_ANSWER,
    BY_LABEL,
    BY_TEXT,
    accuracy,
    check_metrics,
    confusion,
    exact_match,
    f1,
    illegal_share,
    macro_f1,
    mcc,
    normalise_answer,
    pearson,
    score,
    spearman,
    token_f1,
)
from pipeline.task_settings import LABEL_METRICS, TEXT_METRICS

LABELS = ["entailment", "contradiction", "neutral", "never seen"]


def random_answers(seed: int, labels: list[str], illegal: bool) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    targets = [labels[i] for i in rng.integers(0, min(3, len(labels)), 60)]
    options = [*labels, "<extra_id_0>", ""] if illegal else labels
    predictions = [t if rng.random() < 0.5 else options[rng.integers(len(options))] for t in targets]
    return predictions, targets


@pytest.mark.parametrize("illegal", [False, True])
@pytest.mark.parametrize("labels", [LABELS, ["False", "True"]])
@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed: int, labels: list[str], illegal: bool) -> None:
    predictions, targets = random_answers(seed, labels, illegal)
    # For scikit-learn every illegal answer is one more class, as here.
    legal = [p if p in labels else "illegal" for p in predictions]
    each = sklearn.metrics.f1_score(targets, legal, labels=labels, average=None, zero_division=0)
    assert accuracy(predictions, targets) == pytest.approx(sklearn.metrics.accuracy_score(targets, legal))
    assert macro_f1(predictions, targets, labels) == pytest.approx(each.mean())
    assert f1(predictions, targets, labels) == pytest.approx(each[-1])
    assert mcc(predictions, targets, labels) == pytest.approx(sklearn.metrics.matthews_corrcoef(targets, legal))
    expected = sklearn.metrics.confusion_matrix(targets, legal, labels=[*labels, "illegal"])[:-1]
    assert confusion(predictions, targets, labels).tolist() == expected.tolist()
    assert illegal_share(predictions, labels) == pytest.approx(legal.count("illegal") / 60)


def test_one_answer_for_everything_has_no_correlation() -> None:
    targets = ["a", "b", "a"]
    assert mcc(["a"] * 3, targets, ["a", "b"]) == sklearn.metrics.matthews_corrcoef(targets, ["a"] * 3) == 0
    assert pearson(["1.0"] * 3, ["1.0", "2.0", "3.0"]) == 0
    assert spearman(["1.0", "2.0"], ["3.0", "3.0"]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.round(rng.uniform(0, 5, 50) * 5) / 5
    predictions = np.round((targets + rng.normal(size=50)) * 5) / 5
    texts = [[f"{x:.1f}" for x in side] for side in (predictions, targets)]
    assert pearson(*texts) == pytest.approx(scipy.stats.pearsonr(predictions, targets).statistic)
    assert spearman(*texts) == pytest.approx(scipy.stats.spearmanr(predictions, targets).statistic)


def test_what_is_no_number_counts_as_minus_one() -> None:
    targets = ["0.0", "2.0", "5.0"]
    assert pearson(["0.2", "two", "nan"], targets) == pearson(["0.2", "-1", "-1"], targets)


def test_squad_normalisation() -> None:
    assert normalise_answer("  The Beyoncé-Knowles, (an)  A ") == "beyoncéknowles"
    assert normalise_answer("theatre and anthem") == "theatre and anthem"
    assert exact_match(["The cat.", "dog"], ["cat", ["a wolf", "the dog!"]]) == 1.0
    assert exact_match(["cats"], ["cat"]) == 0.0


def test_token_f1_counts_repeated_words_once_each() -> None:
    assert token_f1(["new new york"], ["new york"]) == pytest.approx(0.8)
    assert token_f1(["paris"], ["london"]) == 0.0
    assert token_f1([""], ["london"]) == 0.0
    assert token_f1(["big red dog"], [["dog", "red dog"]]) == pytest.approx(0.8)


def test_metrics_by_name() -> None:
    found = score(["accuracy", "macro_f1", "exact_match"], ["a", "b"], ["a", "a"], ["a", "b"])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "exact_match": 0.5}
    assert score(["accuracy"], [], []) == {"accuracy": 0.0}


def test_a_metric_that_cannot_be_is_named() -> None:
    check_metrics(["accuracy", "mcc"], ["a", "b"], "cola")
    with pytest.raises(InputError, match="task cola: no metric `bleu`; there are accuracy"):
        check_metrics(["bleu"], ["a"], "cola")
    with pytest.raises(InputError, match="`mcc` needs the task's `labels`"):
        check_metrics(["mcc"], None, "cola")


def test_settings_know_the_same_metrics() -> None:
    assert (set(TEXT_METRICS), set(LABEL_METRICS)) == (set(BY_TEXT) | set(BY_ANSWER), set(BY_LABEL))
