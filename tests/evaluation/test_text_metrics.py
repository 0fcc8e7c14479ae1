"""ROUGE, BLEU and chrF against values computed by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.evaluation.metrics import score
from t5_pipeline.evaluation.text_metrics import check_installed


def metrics_of(*given: Any, **needs: Any) -> dict[str, float]:
    return score(*given, **needs).metrics


def test_rouge_by_hand() -> None:
    """Against counts by hand: F of shared words, pairs, and longest common subsequences."""
    prediction, target = "the cat sat on a mat", "the cat slept on the mat"
    found = metrics_of(["rouge1", "rouge2", "rougeL"], [prediction, "x"], [target, "y"])
    assert found == pytest.approx({"rouge1": (4 / 6) / 2, "rouge2": (1 / 5) / 2, "rougeL": (4 / 6) / 2})
    # A sentence that moved counts only if the text is divided into sentences, as T5 does at " . ".
    moved = metrics_of(["rougeL", "rougeLsum"], ["b c . a d"], ["a d . b c"])
    assert moved["rougeL"] == pytest.approx(0.5)
    assert moved["rougeLsum"] == 1
    # No stemming; the best acceptable answer counts.
    assert metrics_of(["rouge1"], ["cats"], ["cat"]) == {"rouge1": 0}
    assert metrics_of(["rouge1"], ["cats"], ["cat"], answers=[["cat", "cats"]]) == {"rouge1": 1}


def test_bleu_and_chrf_by_hand() -> None:
    """BLEU as the geometric mean of the corpus' n-gram precisions; chrF2 as the F of its character n-grams."""
    predictions, targets = ["the cat sat on the mat .", "a b"], ["the cat sat on a mat .", "a b c"]
    found = metrics_of(["bleu", "chrf"], predictions, targets)
    precision = np.array([8 / 9, 5 / 7, 2 / 5, 1 / 4])  # matches of both rows, by words 1 to 4
    assert found["bleu"] == pytest.approx(np.exp(1 - 10 / 9) * np.exp(np.log(precision).mean()))
    recall = (2 / 3 + 1 / 2) / 2  # of 1- and 2-grams, the longest that both texts have
    assert metrics_of(["chrf"], ["ab"], ["abc"])["chrf"] == pytest.approx(5 * recall / (4 + recall))
    assert metrics_of(["bleu", "chrf"], ["a b c d", "x y z w"], ["q", "x y z w"], answers=[["q", "a b c d"], ["x y z w"]]) == {
        "bleu": pytest.approx(1), "chrf": pytest.approx(1)
    }  # fmt: skip
    # Unlike the other metrics, these compare texts as they are.
    assert metrics_of(["rouge1", "chrf"], ["ﬁ"], ["fi"]) == {"rouge1": 0, "chrf": 0}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(["accuracy", "token_f1"])
    for name, package in (("rougeL", "rouge_score"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")):
        with pytest.raises(InputError, match=rf"`{name}` needs {package}; pip install 't5-pipeline\[metrics\]'"):
            check_installed(["accuracy", name])
