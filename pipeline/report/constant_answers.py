"""Prompts that answer every input alike: their scores say nothing about what they learned."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from t5_pipeline.report.scores import Score

SHARE = 0.99
"""Share of the rows from which on one answer counts as constant."""
_SAMPLES = 5  # at least; tasks without labels store no more than some examples


class Constant(NamedTuple):
    """An answer, and whether it is given to all rows or only to nearly all."""

    answer: str
    always: bool


def constant_answer(score: Score) -> Constant | None:
    """The answer that a score's prompt gives to at least `SHARE` of the rows; None if there is none.

    Answers come from the confusion matrix, or without labels from the stored examples. Rows with a single true answer
    show nothing: there a constant answer can be right.
    """
    counts = score.counts()
    if counts is not None:
        if sum(any(row) for row in counts) < 2:
            return None
        given = [sum(column) for column in zip(*counts, strict=True)]
        rows = sum(given)
        most, answer = max(zip(given, score.labels or [], strict=False))
        return Constant(answer, most == rows) if most >= SHARE * rows else None
    if score.labels or len(score.samples) < _SAMPLES or len({sample.target for sample in score.samples}) < 2:
        return None
    ((answer, times),) = Counter(sample.output for sample in score.samples).most_common(1)
    return Constant(answer, True) if times == len(score.samples) else None
