"""Metrics against scikit-learn, scipy and values computed by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import METRICS
from t5_pipeline.evaluation.metrics import (
    accuracy,
    bootstrap_errors,
    confusion,
    exact_match,
    f1,
    group_accuracy,
    illegal_share,
    macro_f1,
    mcc,
    normalize_answer,
    pearson,
    referent,
    score,
    spearman,
    task_average,
    token_f1,
)
from t5_pipeline.evaluation.text_metrics import check_installed, of_drawn_rows

LABELS = ["entailment", "contradiction", "neutral", "never seen"]


def metrics_of(*given: Any, **needs: Any) -> dict[str, float]:
    return score(*given, **needs).metrics


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


def test_constant_answers_have_no_correlation() -> None:
    targets = ["a", "b", "a"]
    assert mcc(["a"] * 3, targets, ["a", "b"]) == sklearn.metrics.matthews_corrcoef(targets, ["a"] * 3) == 0
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


def test_squad_normalization() -> None:
    assert normalize_answer("  The Beyoncé-Knowles, (an)  A ") == "beyoncéknowles"
    assert normalize_answer("theatre and anthem") == "theatre and anthem"
    assert exact_match(["The cat.", "dog"], ["cat", ["a wolf", "the dog!"]]) == 1.0
    assert exact_match(["cats"], ["cat"]) == 0.0


def test_token_f1_counts_repeated_words() -> None:
    assert token_f1(["new new york"], ["new york"]) == pytest.approx([0.8])
    assert token_f1(["paris"], ["london"]) == [0.0]
    assert token_f1([""], ["london"]) == [0.0]
    assert token_f1(["big red dog"], [["dog", "red dog"]]) == pytest.approx([0.8])


@pytest.mark.parametrize(("prediction", "answers", "em", "f1_score"), [
    ("The Broncos", ["Denver Broncos", "broncos!"], 1, 1),  # an article, punctuation, case; the best answer counts
    ("Denver, Colorado", ["in Denver Colorado"], 0, 0.8),
    ("Saint Bernadette Soubirous, in 1858.", ["Saint Bernadette Soubirous"], 0, 0.75),
    ("1,000", ["1000"], 1, 1),
    ("well-known", ["well known"], 0, 0),  # a hyphen is removed without leaving a space
    ("an a the", ["of"], 0, 0),
    ("the the cat", ["cat cat dog"], 0, 0.5),
])  # fmt: skip
def test_squad_cases(prediction: str, answers: list[str], em: float, f1_score: float) -> None:
    found = metrics_of(["exact_match", "token_f1"], [prediction], [answers[0]], answers=[answers])
    assert found == {"exact_match": em, "token_f1": pytest.approx(f1_score)}


WORDS = st.lists(st.sampled_from(["the", "Red", "red", "house,", "boat", "a"]), max_size=4).map(" ".join)


@given(rows=st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5), more=WORDS)
def test_properties_of_answer_metrics(rows: list[tuple[str, list[str]]], more: str) -> None:
    predictions, answers = [p for p, _ in rows], [a for _, a in rows]
    em, shared = exact_match(predictions, answers), np.array(token_f1(predictions, answers))
    assert 0 <= em <= 1
    assert np.all((shared >= 0) & (shared <= 1))
    # Another acceptable answer never lowers a score.
    wider = [[*acceptable, more] for acceptable in answers]
    assert exact_match(predictions, wider) >= em
    assert np.all(token_f1(predictions, wider) >= shared)
    # With one answer per row, F1 is symmetric, and not below exact match if words remain.
    first = [acceptable[0] for acceptable in answers]
    assert token_f1(predictions, first) == pytest.approx(token_f1(first, predictions))
    if all(normalize_answer(answer) for answer in first):
        assert np.mean(token_f1(predictions, first)) >= exact_match(predictions, first) - 1e-12


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
def test_group_accuracy_counts_groups(rows: list[tuple[str, bool]]) -> None:
    groups, right = [g for g, _ in rows], [r for _, r in rows]
    predictions, targets = ["True" if r else "False" for r in right], ["True"] * len(rows)
    of_groups = [all(r for g, r in rows if g == group) for group in dict.fromkeys(groups)]
    assert group_accuracy(predictions, targets, groups) == of_groups
    alone = [str(i) for i in range(len(rows))]
    assert np.mean(group_accuracy(predictions, targets, alone)) == pytest.approx(accuracy(predictions, targets))


def test_texts_without_words_match_exactly_and_share_none() -> None:
    """As in T5's code, whose F1 is 0 if no word is shared."""
    found = score(["exact_match", "token_f1"], ["", "The", "a!"], ["", "", "an"]).metrics
    assert found == {"exact_match": 1.0, "token_f1": 0.0}


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


def test_all_acceptable_answers_count() -> None:
    """ReCoRD and SQuAD: the best answer, after SQuAD's normalization."""
    answers = [["Ada Lovelace", "the Countess"], ["1815"]]
    found = metrics_of(["exact_match", "token_f1"], ["countess!", "in 1815"], ["Ada Lovelace", "1815"], answers=answers)
    assert found == {"exact_match": 0.5, "token_f1": pytest.approx((1 + 2 / 3) / 2)}


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
