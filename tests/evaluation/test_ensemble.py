"""Majority votes of prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.ensemble import classified, ensemble_rows, vote, votes
from t5_pipeline.evaluation.predict import Outputs

LABELS = ["no", "yes", "maybe"]
SCORES = st.lists(st.floats(-20, 0), min_size=3, max_size=3)


def labeled(rows: list[list[float]]) -> Outputs:
    texts = [LABELS[int(np.argmax(row))] for row in rows]
    return Outputs(texts, texts, rows)


@given(rows=st.lists(SCORES, min_size=1, max_size=5), copies=st.integers(1, 5))
def test_vote_of_equal_answers(rows: list[list[float]], copies: int) -> None:
    one = labeled(rows)
    assert vote([one] * copies, LABELS).texts == one.texts
    assert vote([one] * copies, LABELS).decoded == one.decoded


@given(rows=st.lists(st.lists(SCORES, min_size=2, max_size=2), min_size=1, max_size=6), data=st.data())
def test_vote_does_not_depend_on_order(rows: list[list[list[float]]], data: st.DataObject) -> None:
    voters = [labeled(row) for row in rows]
    # Rounding could break exact ties differently for each order.
    summed = np.sum([one.scores for one in voters], axis=0)
    if min(np.diff(np.sort(row)).min() for row in summed) > 1e-6:
        assert vote(voters, LABELS).texts == vote(data.draw(st.permutations(voters)), LABELS).texts


def test_vote_ties() -> None:
    a, b = labeled([[-1.0, -2.0, -9.0]]), labeled([[-5.0, -1.0, -9.0]])
    assert vote([a, b], LABELS).texts == ["yes"]  # −6 against −3
    assert vote([Outputs(["x"], ["x"]), Outputs(["y"], ["y"])]).texts == ["x"]
    assert vote([Outputs(["x"], ["x"]), Outputs(["y"], ["y"]), Outputs(["y"], ["y"])]).texts == ["y"]


def test_an_illegal_output_is_a_vote_that_matches_no_label() -> None:
    """It is one text among others, loses ties against any label, and does not touch the vote by likelihood."""
    scores = [[-1.0, -2.0, -9.0]]
    no, x, y = (Outputs(["no"], [text], scores) for text in ("no", "x", "y"))
    for voters, decoded in (([x, y, no], "no"), ([x, no], "no"), ([x, x, no], "x"), ([y, x], "y")):
        found = vote(voters, LABELS)
        assert (found.texts, found.decoded) == (["no"], [decoded])


def test_probabilities_of_several_prompts_are_averaged() -> None:
    scores = [{"no": np.log(p), "yes": np.log(1 - p)} for p in (0.2, 0.4, 0.9)]
    found = classified(["yes", "yes", "no"], scores)
    assert (found.label, found.votes) == ("yes", {"yes": 2, "no": 1})
    assert found.probabilities == {"no": pytest.approx(0.5), "yes": pytest.approx(0.5)}


class Rows:
    """Rows of a task whose scores are not looked at."""

    def __len__(self) -> int:
        return 1

    def scored(self, outputs: Outputs) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("about", "variant", "trained"),
    [({"trained": 8}, "2 prompts", 16), ({"trained": 8, "variant": "on 4 tasks"}, "2 prompts, on 4 tasks", 16),
     ({}, "2 prompts", None)],
)  # fmt: skip
def test_a_vote_names_the_kind_of_its_prompts(about: dict[str, Any], variant: str, trained: int | None) -> None:
    artifact = SimpleNamespace(source="tune", origin=SimpleNamespace(cell="seed=0"), settings_digest="a", manifest=None)
    task = SimpleNamespace(name="package", labels=LABELS)
    one = SimpleNamespace(about=about, task=task, artifact=artifact, vote_group="a")
    answers: Any = [(one, Rows(), labeled([[-1.0, -2.0, -9.0]]))] * 2
    [row] = ensemble_rows(cast(TaskConfig, task), answers)
    assert (row["method"], row["variant"], row["trained"]) == ("ensemble", variant, trained)


def test_answers_in_other_unicode_forms_are_the_same_answer() -> None:
    """ByT5 can write a letter with a mark in two forms; metrics compare them as equal."""
    texts = ["tea", "caf\u00e9", "tea", "cafe\u0301", "cafe\u0301"]
    assert vote([Outputs([text], [text]) for text in texts]) == Outputs(["caf\u00e9"], ["caf\u00e9"])
    assert list(votes(texts).items()) == [("caf\u00e9", 3), ("tea", 2)]
