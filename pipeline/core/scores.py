"""Scores as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

MEAN_OF_TASKS = "mean"
"""Name of the score of several tasks among their metrics."""


def average(scores: Mapping[str, float]) -> float:
    """The score that chooses a checkpoint: the average of a task's metrics, or the mean over tasks of these averages.

    >>> average({"accuracy": 0.5, "f1": 0.75}), average({"mean": 0.6, "a accuracy": 0.8, "b f1": 0.4, "b mcc": 0.4})
    (0.625, 0.6)
    """
    return scores[MEAN_OF_TASKS] if MEAN_OF_TASKS in scores else statistics.fmean(scores.values())


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
