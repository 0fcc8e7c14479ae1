from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.evaluation.metrics import score
from t5_pipeline.evaluation.squad import exact_match, normalize_answer, token_f1


def test_squad_normalization() -> None:
    assert normalize_answer("  The Beyoncé-Knowles, (an)  A ") == "beyoncéknowles"
    assert normalize_answer("theatre and anthem") == "theatre and anthem"
    assert normalize_answer("\u201cthe\u201d") == "\u201c \u201d"  # an article leaves a space between other quotes
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
    found = score(["exact_match", "token_f1"], [prediction], [answers[0]], answers=[answers]).metrics
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


def test_texts_without_words_match_exactly_and_share_none() -> None:
    """As in T5's code, whose F1 is 0 if no word is shared."""
    found = score(["exact_match", "token_f1"], ["", "The", "a!"], ["", "", "an"]).metrics
    assert found == {"exact_match": 1.0, "token_f1": 0.0}


def test_all_acceptable_answers_count() -> None:
    """ReCoRD and SQuAD: the best answer, after SQuAD's normalization."""
    answers = [["Ada Lovelace", "the Countess"], ["1815"]]
    found = score(["exact_match", "token_f1"], ["countess!", "in 1815"], ["Ada Lovelace", "1815"], answers=answers)
    assert found.metrics == {"exact_match": 0.5, "token_f1": pytest.approx((1 + 2 / 3) / 2)}
