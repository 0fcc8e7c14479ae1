"""Answers of candidates that share a T5; most of it is tested through the stage (tests/stages/test_evaluate.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from t5_pipeline.evaluation.decoding import NoAnswer
from t5_pipeline.evaluation.evaluator import Evaluator
from t5_pipeline.evaluation.predict import Outputs


class Split:
    """Two rows of a task."""

    form = None
    rows = SimpleNamespace(inputs=[[5, 1], [6, 1]])
    task = SimpleNamespace(labels=["a", "b"])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(("broken", "named"), [(1, "t5-small"), (2, "runs/b/prompt")])
def test_scores_of_a_broken_candidate_are_an_error(broken: int, named: str) -> None:
    """Otherwise each of its answers would be a first label, or an empty text, and counted."""
    outputs = Outputs.none(4)
    outputs.broken[broken] = True
    evaluator: Any = Evaluator.__new__(Evaluator)
    evaluator.name, evaluator.c, evaluator.on_batch = "t5-small", SimpleNamespace(batch_size=4), None
    evaluator.answerer = SimpleNamespace(answer=lambda *_: outputs)
    candidate = SimpleNamespace(artifact=SimpleNamespace(path="runs/b/prompt"))
    with pytest.raises(NoAnswer, match=f"^{named}: log probabilities are not finite"):
        evaluator._asked([(None, Split()), (candidate, Split())])
