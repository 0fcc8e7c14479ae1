"""95% intervals over test rows: what another sample of rows might have given the same prompt.

    share of rows (accuracy, exact match)          Wilson's score interval
    F1, macro F1, Matthews correlation             percentile bootstrap of the confusion matrix
    F1 of words, ROUGE, accuracy of groups         normal interval of the mean over rows or groups
    Pearson and Spearman correlation, BLEU, chrF   normal interval, standard error by bootstrap of the rows

The spread over seeds is another quantity: what another training run might have given on the same rows. The interval of
several seeds is the mean of their lower and of their upper ends. That is exact if the seeds fail on the same rows, and
too wide otherwise.

Source: Wilson 1927; Efron & Tibshirani 1993, ch. 13.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.evaluation.confusion import OF_COUNTS
from t5_pipeline.report.scores import Score

DRAWS = 1_000
METHOD = (
    "± is the spread over seeds: what another training run might give on the same rows. The 95% interval over rows is"
    " what another sample of test rows might give: Wilson's score interval for shares of rows, the percentile bootstrap"
    f" of the confusion matrix ({DRAWS:,} draws) for F1 and Matthews correlation, the normal interval of the mean for"
    " F1 of words, ROUGE and accuracy of groups, and the normal interval with a bootstrap standard error for other"
    " correlations, BLEU and chrF. With several seeds, it is the mean of their lower and of their upper ends."
)
_Z = statistics.NormalDist().inv_cdf(0.975)
_SHARES_OF_ROWS = frozenset({"accuracy", "exact_match", "referent"})
_SIGNED = frozenset({"pearson", "spearman", "mcc"})

_Counts = tuple[tuple[int, ...], ...]


class Interval(NamedTuple):
    """The ends of an interval, on the scale of the metric."""

    low: float
    high: float


def wilson(share: float, rows: int) -> Interval:
    """Interval of a share of `rows` independent rows.

    >>> [round(end, 3) for end in wilson(0.5, 100)], [round(end, 3) for end in wilson(1.0, 20)]
    ([0.404, 0.596], [0.839, 1.0])
    """
    center = share + _Z**2 / (2 * rows)
    half = _Z * math.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    scale = 1 + _Z**2 / rows
    # By rounding, an end could miss a share of 0 or 1.
    return Interval(min(share, max(0.0, (center - half) / scale)), max(share, min(1.0, (center + half) / scale)))


@functools.lru_cache(maxsize=1024)
def bootstrap(metric: str, confusion: _Counts) -> Interval:
    """Interval of a metric of `OF_COUNTS`, from resampled rows of a confusion matrix [labels, labels + 1]."""
    low, high = np.quantile(_resampled(metric, confusion, DRAWS, np.random.default_rng(0)), [0.025, 0.975])
    return Interval(float(low), float(high))


def _resampled(metric: str, confusion: _Counts, draws: int, generator: np.random.Generator) -> NDArray[Any]:
    counts_LP = np.asarray(confusion)
    there = np.flatnonzero(counts_LP)
    rows = int(counts_LP.sum())
    drawn = np.zeros((draws, counts_LP.size), np.int64)
    drawn[:, there] = generator.multinomial(rows, counts_LP.flat[there] / rows, size=draws)
    return np.asarray(OF_COUNTS[metric](drawn.reshape(draws, *counts_LP.shape)))


def lowest_score(metric: str) -> float:
    """The lowest possible score; the highest is 1."""
    return -1.0 if metric in _SIGNED else 0.0


def row_interval(score: Score, metric: str) -> Interval | None:
    """Interval over the rows of one score; None if the score does not contain what it needs.

    A confusion matrix is used only if the metric computed from it is the recorded one.
    """
    value = score.metrics.get(metric)
    if value is None or score.examples <= 0:
        return None
    if metric in _SHARES_OF_ROWS:
        return wilson(value, score.examples) if 0 <= value <= 1 else None
    lowest = lowest_score(metric)
    if (error := score.standard_errors.get(metric)) is not None and lowest <= value <= 1:
        return Interval(max(lowest, value - _Z * error), min(1.0, value + _Z * error))
    counts = counts_of(score, metric)
    return None if counts is None else bootstrap(metric, counts)


def has_row_scores(score: Score, metric: str) -> bool:
    """Whether a score says what other test rows might have given: a share, a known error, or a confusion matrix."""
    if metric in _SHARES_OF_ROWS:
        return score.examples > 0 and 0 <= score.metrics[metric] <= 1
    return metric in score.standard_errors or counts_of(score, metric) is not None


def resampled_scores(score: Score, metric: str, draws: int, generator: np.random.Generator) -> NDArray[Any]:
    """Scores of resampled test rows [draws]; the score itself if it does not contain what this needs."""
    value, counts = score.metrics[metric], counts_of(score, metric)
    if metric in _SHARES_OF_ROWS and score.examples > 0 and 0 <= value <= 1:
        return generator.binomial(score.examples, value, size=draws) / score.examples
    if metric in score.standard_errors:
        return generator.normal(value, score.standard_errors[metric], size=draws)
    return np.full(draws, value) if counts is None else _resampled(metric, counts, draws, generator)


def counts_of(score: Score, metric: str) -> _Counts | None:
    """The confusion matrix from which a metric was computed; None if there is none."""
    counts = score.counts() if metric in OF_COUNTS else None
    if counts is None:
        return None
    recorded = math.isclose(float(OF_COUNTS[metric](np.asarray(counts))), score.metrics[metric], abs_tol=1e-6)
    return tuple(map(tuple, counts)) if recorded else None


def mean_interval(intervals: Sequence[Interval | None]) -> Interval | None:
    """Mean of the lower and of the upper ends; None if one of the intervals is unknown."""
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(intervals):
        return None
    return Interval(statistics.fmean(i.low for i in known), statistics.fmean(i.high for i in known))
