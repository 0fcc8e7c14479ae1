"""Metrics of confusion matrices against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from t5_pipeline.evaluation.confusion import confusion, f1, macro_f1, mcc
from t5_pipeline.evaluation.metrics import accuracy, illegal_share

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
    if not illegal:
        assert f1(predictions, targets, labels) == pytest.approx(each[-1])
    assert mcc(predictions, targets, labels) == pytest.approx(sklearn.metrics.matthews_corrcoef(targets, legal))
    expected = sklearn.metrics.confusion_matrix(targets, legal, labels=[*labels, "illegal"])[:-1]
    assert confusion(predictions, targets, labels).tolist() == expected.tolist()
    assert illegal_share(predictions, labels) == pytest.approx(legal.count("illegal") / 60)


@pytest.mark.parametrize("seed", range(5))
def test_f1_counts_illegal_answer_as_opposite(seed: int) -> None:
    """As T5's f1_score_with_invalid does."""
    opposite = {"False": "True", "True": "False"}
    predictions, targets = random_answers(seed, list(opposite), illegal=True)
    legal = [p if p in opposite else opposite[t] for p, t in zip(predictions, targets, strict=True)]
    assert legal != predictions
    expected = sklearn.metrics.f1_score(targets, legal, pos_label="True")
    assert f1(predictions, targets, list(opposite)) == pytest.approx(expected)


def test_f1_without_positives_is_0() -> None:
    assert f1(["no"], ["no"], ["no", "yes"]) == 0
    assert f1([], [], ["no", "yes"]) == 0


def test_constant_answers_have_no_matthews_correlation() -> None:
    targets = ["a", "b", "a"]
    assert mcc(["a"] * 3, targets, ["a", "b"]) == sklearn.metrics.matthews_corrcoef(targets, ["a"] * 3) == 0
