"""Metrics against scikit-learn, scipy and values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.tasks.config import METRICS
from t5_pipeline.evaluation.metrics import accuracy, bootstrap_errors, group_accuracy, referent, score, task_average
from t5_pipeline.evaluation.text_metrics import of_drawn_rows


def metrics_of(*given: Any, **needs: Any) -> dict[str, float]:
    return score(*given, **needs).metrics


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
def test_group_accuracy_counts_groups(rows: list[tuple[str, bool]]) -> None:
    groups, right = [g for g, _ in rows], [r for _, r in rows]
    predictions, targets = ["True" if r else "False" for r in right], ["True"] * len(rows)
    of_groups = [all(r for g, r in rows if g == group) for group in dict.fromkeys(groups)]
    assert group_accuracy(predictions, targets, groups) == of_groups
    alone = [str(i) for i in range(len(rows))]
    assert np.mean(group_accuracy(predictions, targets, alone)) == pytest.approx(accuracy(predictions, targets))


def test_multirc() -> None:
    """SuperGLUE's: F1 over all answers, exact match of each question's answers; an illegal answer is wrong in both."""
    targets = ["True", "False", "False", "True", "True", "False"]
    predictions = ["True", "False", "True", "True", "True", "true"]
    legal = [*predictions[:-1], "True"]
    found = metrics_of(["f1", "group_accuracy"], predictions, targets, ["False", "True"], groups=list("aabccd"))
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(targets, legal, pos_label="True"))
    assert found["group_accuracy"] == 0.5


@pytest.mark.parametrize(("prediction", "target", "named"), [
    ("bunny", "the fuzzy bunny", True),
    ("The Fuzzy Bunny ", "bunny", True),
    ("his mother", "Her mother", True),
    ("fuzzy dog", "the fuzzy bunny", False),
    ("bunny.", "bunny", False),
    ("Bob", "Bob's hat", False),  # only one has an apostrophe
    ("Bob's bike", "bike of Bob", False),
    ("bob's bike", "Bob's", True),
    ("the dog's owner", "owner", False),
    ("owner", "the dog's owner", False),
    ("pony", "the", False),  # a target without words is named by nothing
])  # fmt: skip
def test_referent_by_word_subset(prediction: str, target: str, named: bool) -> None:
    """T5's wsc_simple: right if naming the target agrees with `holds`."""
    for holds in (True, False):
        assert metrics_of(["referent"], [prediction], [target], holds=[holds]) == {"referent": float(named == holds)}
        assert referent([f"the {prediction.upper()}"], [target], [holds]) == float(named == holds)


@pytest.mark.parametrize("empty", ["", "  ", "a this", "THE"])
def test_a_referent_without_words_is_never_correct(empty: str) -> None:
    """T5's wsc_simple gives −1, so that an empty answer does not match the false rows."""
    holds = [True, False, False, True, False]
    targets = ["pony", "the boy", "Bob's hat", "the", ""]
    assert referent([empty] * 5, targets, holds) == 0.0
    assert referent(["cat"] * 5, targets, holds) == 0.6


def test_texts_are_compared_in_one_normal_form() -> None:
    one, other = "cafe\u0301", "caf\u00e9"
    assert metrics_of(["accuracy"], [one], [other])["accuracy"] == 1
    assert metrics_of(["macro_f1"], [one, "x"], [other, "x"], labels=[one, "x"])["macro_f1"] == 1
    assert metrics_of(["exact_match"], [one], ["y"], answers=[[other, "y"]])["exact_match"] == 1


def test_metrics_by_name() -> None:
    found = metrics_of(["accuracy", "macro_f1", "exact_match"], ["a", "b"], ["a", "a"], ["a", "b"])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "exact_match": 0.5}
    assert metrics_of(["accuracy"], [], []) == {"accuracy": 0.0}


def test_task_average() -> None:
    """CB of SuperGLUE: macro-F1 and accuracy count as one task."""
    predictions, targets, labels = ["a", "b", "c", "a"], ["a", "b", "b", "c"], ["a", "b", "c"]
    found = metrics_of(["macro_f1", "accuracy"], predictions, targets, labels)
    both = (sklearn.metrics.f1_score(targets, predictions, average="macro") + 0.5) / 2
    assert task_average(found) == pytest.approx(both)
    assert task_average({"accuracy": 0.25}) == 0.25


def test_every_metric_of_the_settings_is_computed() -> None:
    needs = {"labels": ["a", "b"], "groups": ["q"], "holds": [True]}
    assert set(metrics_of(list(METRICS), ["a"], ["a"], **needs)) == set(METRICS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pearson", "spearman", "bleu", "chrf"])
def test_bootstrap_errors_are_those_of_resampled_rows(name: str) -> None:
    """The metric itself, computed on 300 draws."""
    rng = np.random.default_rng(5)
    if name in ("pearson", "spearman"):
        targets = [f"{x:.1f}" for x in rng.normal(size=60)]
        predictions = [f"{float(t) + x:.1f}" for t, x in zip(targets, rng.normal(size=60), strict=True)]
    else:
        words = np.array(["the", "a", "red", "house", "is", "near", "small", "lake", "and", "green"])
        predictions, targets = ([" ".join(rng.choice(words, 9)) for _ in range(60)] for _ in range(2))
        predictions[:30] = targets[:30]
    answers = [[target, "another answer"] if i % 2 else [target] for i, target in enumerate(targets)]
    answers = None if name in ("pearson", "spearman") else answers
    of_rows = None if answers is None else of_drawn_rows(name, predictions, answers)
    found = []
    for _ in range(300):
        rows = rng.integers(60, size=60)
        drawn = [[of_row[i] for i in rows] for of_row in (predictions, targets)]
        several = None if answers is None else [answers[i] for i in rows]
        found.append(metrics_of([name], *drawn, answers=several)[name])
        if of_rows is not None:
            assert of_rows(rows) == pytest.approx(found[-1], abs=1e-12)
    errors = bootstrap_errors(["accuracy", name], predictions, targets, answers=answers)
    assert errors == {name: pytest.approx(np.std(found), rel=0.15)}
    assert bootstrap_errors([name], predictions[:1], targets[:1]) == {}
