"""Majority votes and mixtures of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.evaluation.ensemble import answer_mixture, mix, vote
from t5_pipeline.evaluation.predict import AnswerForm, Outputs

LABELS = ["no", "yes", "maybe"]
SCORES = st.lists(st.floats(-20, 0), min_size=3, max_size=3)


def labelled(rows: list[list[float]]) -> Outputs:
    texts = [LABELS[int(np.argmax(row))] for row in rows]
    return Outputs(texts, texts, rows)


@given(rows=st.lists(SCORES, min_size=1, max_size=5), copies=st.integers(1, 5))
def test_vote_of_equal_answers(rows: list[list[float]], copies: int) -> None:
    one = labelled(rows)
    assert vote([one] * copies, LABELS).texts == one.texts
    assert vote([one] * copies, LABELS).free == one.free


@given(rows=st.lists(st.lists(SCORES, min_size=2, max_size=2), min_size=1, max_size=6), data=st.data())
def test_vote_does_not_depend_on_order(rows: list[list[list[float]]], data: st.DataObject) -> None:
    voters = [labelled(row) for row in rows]
    # Rounding could break exact ties differently for each order.
    summed = np.sum([one.scores for one in voters], axis=0)
    if min(np.diff(np.sort(row)).min() for row in summed) > 1e-6:
        assert vote(voters, LABELS).texts == vote(data.draw(st.permutations(voters)), LABELS).texts


def test_vote_ties() -> None:
    a, b = labelled([[-1.0, -2.0, -9.0]]), labelled([[-5.0, -1.0, -9.0]])
    assert vote([a, b], LABELS).texts == ["yes"]  # −6 against −3
    assert vote([Outputs(["x"], ["x"]), Outputs(["y"], ["y"])]).texts == ["x"]
    assert vote([Outputs(["x"], ["x"]), Outputs(["y"], ["y"]), Outputs(["y"], ["y"])]).texts == ["y"]


@given(rows=st.lists(st.lists(SCORES, min_size=2, max_size=2), min_size=2, max_size=4), data=st.data())
def test_mixture_is_weighted_sum_of_probabilities(rows: list[list[list[float]]], data: st.DataObject) -> None:
    raw = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(rows), max_size=len(rows))))
    weights = raw / raw.sum()
    mixed = mix([labelled(row) for row in rows], weights.tolist(), [LABELS, LABELS])
    plain = np.einsum("k,knl->nl", weights, np.exp(np.array(rows)))
    np.testing.assert_allclose(np.exp(mixed.scores), plain, rtol=1e-9)
    assert mixed.texts == [LABELS[i] for i in np.array(mixed.scores).argmax(axis=1)]


def test_mixture_with_one_weight_equals_prompt() -> None:
    a, b = labelled([[-1.0, -2.0, -9.0]]), labelled([[-5.0, -1.0, -9.0]])
    assert mix([a, b], [0.0, 1.0], [LABELS]).texts == b.texts
    assert mix([a, b], [0.0, 1.0], [LABELS]).scores[0] == pytest.approx(b.scores[0])


def test_mixture_of_free_texts_takes_likeliest() -> None:
    """Each prompt's output is a candidate that all prompts score."""
    own = ["red", "blue"]
    log_p = {"red": (-1.0, -8.0), "blue": (-3.0, -1.0)}

    def answer(forms: list[AnswerForm]) -> list[Outputs]:
        (form,) = forms
        if not form.labels:
            return [Outputs([text], [text], [[]]) for text in own]
        assert [list(ids) for ids in form.label_ids] == [[3], [4]]
        return [Outputs([""], [""], [[log_p[text][k] for text in form.labels]]) for k in range(2)]

    ids = {"red": 3, "blue": 4}
    form = AnswerForm(decode=str, max_length=5, encode=lambda texts: [[ids[text]] for text in texts])
    for weights, expected in (([0.5, 0.5], "blue"), ([0.9999, 0.0001], "red")):
        found = answer_mixture(answer, weights, [form])  # type: ignore[arg-type]
        assert (found.texts, found.free) == ([expected], [expected])
