"""Exact match and F1 of SQuAD, which compare answers after a normalization of their own (also ReCoRD)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

# A row may have several acceptable answers: the best one counts.
Answers = Sequence[str | Sequence[str]]


def normalize_answer(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single spaces.

    >>> normalize_answer("The  U.S. Army's an old idea!")
    'us armys old idea'
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(predictions: Sequence[str], answers: Answers) -> float:
    """Share of predictions that equal an acceptable answer after SQuAD's normalization."""
    matches = _best(predictions, answers, lambda p, a: float(p == a))
    return sum(matches) / max(len(matches), 1)


def token_f1(predictions: Sequence[str], answers: Answers) -> list[float]:
    """F1 of the words shared by each prediction and its best answer, after SQuAD's normalization.

    The metric is their mean.

    >>> token_f1(["the red house"], [["a house", "red barn by the lake"]])
    [0.6666666666666666]
    """
    return _best(predictions, answers, _shared_words)


def _best(predictions: Sequence[str], answers: Answers, compare: Callable[[str, str], float]) -> list[float]:
    best = []
    for prediction, of_row in zip(predictions, answers, strict=True):
        p = normalize_answer(prediction)
        acceptable = [of_row] if isinstance(of_row, str) else of_row
        best.append(max(compare(p, normalize_answer(answer)) for answer in acceptable))
    return best


def _shared_words(prediction: str, answer: str) -> float:
    predicted, correct = Counter(prediction.split()), Counter(answer.split())
    shared = (predicted & correct).total()
    return 2 * shared / (predicted.total() + correct.total()) if shared else 0.0
