"""Scores as text."""

from __future__ import annotations

from collections.abc import Mapping


def scores_text(scores: Mapping[str, float]) -> str:
    """Metrics times 100, as in the report.

    >>> scores_text({"accuracy": 0.8667, "mcc": -0.0001})
    'accuracy 86.7, mcc 0.0'
    """
    return ", ".join(f"{metric} {100 * value:z.1f}" for metric, value in scores.items())
