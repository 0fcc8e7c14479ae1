"""Confusion matrices, and the metrics that follow from them.

A prediction that is not one of the labels is illegal: it is in a column of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[Any]
Values = NDArray[np.float64]


def confusion(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Counts [true label, predicted label] in the order of `labels`; the last column counts illegal predictions.

    >>> confusion(["b", "b", "x"], ["a", "b", "b"], ["a", "b"]).tolist()
    [[0, 1, 0], [0, 1, 1]]
    """
    number = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    for p, t in zip(predictions, targets, strict=True):
        counts[number[t], number.get(p, -1)] += 1
    return counts


def macro_f1(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """Mean of the F1 of every label (CB in SuperGLUE); 0 for a label that was neither predicted nor true."""
    return float(_macro_f1(confusion(predictions, targets, labels)))


def f1(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """F1 of the positive label, which is the *last* of `labels`: True of [False, True] (MRPC, QQP, MultiRC's F1a).

    As in T5's code an illegal prediction counts as the opposite of its target: as a false positive if the positive
    label is not true.

    >>> f1(["True", "maybe", "True"], ["True", "False", "False"], ["False", "True"])
    0.5
    """
    return float(_f1(confusion(predictions, targets, labels)))


def mcc(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """Matthews correlation (CoLA), for any number of classes; illegal predictions are a class of their own."""
    return float(_mcc(confusion(predictions, targets, labels)))


def _accuracy(counts: Counts) -> Values:
    return _hits(counts).sum(axis=-1) / np.maximum(counts.sum(axis=(-2, -1)), 1)


def _macro_f1(counts: Counts) -> Values:
    either = counts.sum(axis=-2)[..., :-1] + counts.sum(axis=-1)
    return (2 * _hits(counts) / np.maximum(either, 1)).mean(axis=-1)


def _f1(counts: Counts) -> Values:
    hits = counts[..., -1, -2]
    wrongly_positive = counts[..., :-1, -2:].sum(axis=(-2, -1))
    return 2 * hits / np.maximum(hits + wrongly_positive + counts[..., -1, :].sum(axis=-1), 1)


def _mcc(counts: Counts) -> Values:
    counts = counts.astype(np.float64)
    true, predicted, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    covariance = _hits(counts).sum(axis=-1) * total - (true * predicted[..., :-1]).sum(axis=-1)
    spread = np.sqrt((total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (true**2).sum(axis=-1)))
    return np.where(spread > 0, covariance / np.where(spread > 0, spread, 1.0), 0.0)


def _hits(counts: Counts) -> Counts:
    """Right predictions of each label."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


OF_COUNTS: dict[str, Callable[[Counts], Values]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "f1": _f1,
    "mcc": _mcc,
}
"""Metrics of confusion matrices [..., true label, predicted label or illegal]."""
