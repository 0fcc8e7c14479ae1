"""Correlations of texts that are numbers (STS-B): between −1 and 1, and 0 if either side is constant.

As in T5's code, a text that is not a number counts as −1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.core.normal_form import normal_form

Values = NDArray[np.float64]


def pearson(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Correlation of the texts as numbers."""
    return _pearson(_numbers(predictions), _numbers(targets))


def spearman(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Rank correlation of the texts as numbers; equal numbers share the mean of their ranks."""
    return _spearman(_numbers(predictions), _numbers(targets))


def correlation_of_drawn_rows(
    name: str, predictions: Sequence[str], targets: Sequence[str]
) -> Callable[[NDArray[np.int64]], float]:
    """A metric of `CORRELATIONS` as a function of the numbers of drawn rows."""
    x, y = (_numbers(list(map(normal_form, texts))) for texts in (predictions, targets))
    return lambda drawn: CORRELATIONS[name](x[drawn], y[drawn])


def _pearson(x: Values, y: Values) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # before rounding of the means makes them differ
        return 0.0
    x, y = (side / np.abs(side).max() for side in (x - x.mean(), y - y.mean()))
    return float(np.clip(x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)), -1, 1))


def _spearman(x: Values, y: Values) -> float:
    return _pearson(_ranks(x), _ranks(y))


CORRELATIONS: dict[str, Callable[[Values, Values], float]] = {"pearson": _pearson, "spearman": _spearman}
"""Correlations of numbers [rows] by name."""


def _numbers(texts: Sequence[str]) -> Values:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            return -1.0
        return value if np.isfinite(value) else -1.0

    return np.array([number(text) for text in texts])


def _ranks(x: Values) -> Values:
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]
