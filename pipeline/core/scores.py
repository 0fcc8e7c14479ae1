"""Scores as text."""

from __future__ import annotations

from collections.abc import Mapping


def score_text(score: float) -> str:
    """A score times 100, as in the report.

    >>> score_text(0.8667), score_text(-0.0001)
    ('86.7', '0.0')
    """
    return f"{100 * score:z.1f}"


def scores_text(scores: Mapping[str, float]) -> str:
    """The scores of several metrics.

    >>> scores_text({"accuracy": 0.8667, "f1": 0.5})
    'accuracy 86.7, f1 50.0'
    """
    return ", ".join(f"{metric} {score_text(value)}" for metric, value in scores.items())
