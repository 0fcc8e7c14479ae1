"""Metrics of predicted texts: fractions between 0 and 1, or correlations between −1 and 1.

A prediction that is not one of the task's labels is illegal: wrong in every metric, and its share is reported.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.core.normal_form import normal_form
from t5_pipeline.data_prep.tasks.config import METRICS
from t5_pipeline.evaluation.text_metrics import OF_CORPUS, OF_TEXTS, OfDrawnRows, of_drawn_rows

Texts = Sequence[str]
# Free-text tasks may have several acceptable answers per row: the best one counts.
Answers = Sequence[str | Sequence[str]]
Counts = NDArray[Any]
Values = NDArray[np.float64]

DRAWS = 1_000
"""Bootstrap draws of the standard error of a correlation, BLEU or chrF."""


def accuracy(predictions: Texts, targets: Texts) -> float:
    """Share of predictions that equal their target.

    >>> accuracy(["yes", "no", "maybe"], ["yes", "yes", "no"])
    0.3333333333333333
    """
    return _mean([p == t for p, t in zip(predictions, targets, strict=True)])


def illegal_share(predictions: Texts, labels: Texts) -> float:
    """Share of predictions that are not one of the labels."""
    legal = set(labels)
    return _mean([p not in legal for p in predictions])


def confusion(predictions: Texts, targets: Texts, labels: Texts) -> NDArray[np.int64]:
    """Counts [true label, predicted label] in the order of `labels`; the last column counts illegal predictions.

    >>> confusion(["b", "b", "x"], ["a", "b", "b"], ["a", "b"]).tolist()
    [[0, 1, 0], [0, 1, 1]]
    """
    number = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    for p, t in zip(predictions, targets, strict=True):
        counts[number[t], number.get(p, -1)] += 1
    return counts


def macro_f1(predictions: Texts, targets: Texts, labels: Texts) -> float:
    """Mean of the F1 of every label (CB in SuperGLUE); 0 for a label that was neither predicted nor true."""
    return float(_macro_f1(confusion(predictions, targets, labels)))


def f1(predictions: Texts, targets: Texts, labels: Texts) -> float:
    """F1 of the positive label, which is the *last* of `labels`: True of [False, True] (MRPC, QQP, MultiRC's F1a).

    As in T5's code an illegal prediction counts as the opposite of its target: as a false positive if the positive
    label is not true.

    >>> f1(["True", "maybe", "True"], ["True", "False", "False"], ["False", "True"])
    0.5
    """
    return float(_f1(confusion(predictions, targets, labels)))


def mcc(predictions: Texts, targets: Texts, labels: Texts) -> float:
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


def normalize_answer(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single spaces.

    >>> normalize_answer("The  U.S. Army's an old idea!")
    'us armys old idea'
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


# As T5's code lists them.
_DETERMINERS = frozenset(
    {"a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their"}
    | {"these", "this", "those", "which", "whose", "your"}
)


def referent(predictions: Texts, targets: Texts, holds: Sequence[bool]) -> float:
    """Share of rows for which "the prediction names the target" agrees with `holds` (WSC, by word subset).

    As in T5's code (t5/data/postprocessors.py, wsc_simple): ignoring case and determiners, the words of one text must
    be a subset of the other's, and both or neither must have an apostrophe ("Bob" does not name "Bob's hat"). A
    prediction without words is wrong whatever `holds` says.

    >>> referent(["The pony", "pony", "a this"], ["pony", "the boy", "boy"], [True, False, False])
    0.6666666666666666
    """
    return _mean([_names(p, t) is bool(h) for p, t, h in zip(predictions, targets, holds, strict=True)])


def _names(prediction: str, target: str) -> bool | None:
    """Whether the prediction names the target; None if it has no words, so that it agrees with neither answer."""
    p, t = ({w for w in text.lower().split() if w not in _DETERMINERS} for text in (prediction, target))
    if not p:
        return None
    # A target without words becomes the empty word, which no prediction names.
    return any("'" in w for w in p) == any("'" in w for w in t) and (p <= t or (t or {""}) <= p)


def group_accuracy(predictions: Texts, targets: Texts, groups: Texts) -> list[float]:
    """1 for each group in which every prediction equals its target, else 0; the metric is their mean.

    Source: MultiRC's exact match per question.

    >>> group_accuracy(["True", "False", "True"], ["True", "True", "True"], ["q1", "q1", "q2"])
    [0.0, 1.0]
    """
    right: dict[str, bool] = {}
    for prediction, target, group in zip(predictions, targets, groups, strict=True):
        right[group] = right.get(group, True) and prediction == target
    return list(map(float, right.values()))


def exact_match(predictions: Texts, targets: Answers) -> float:
    """Share of predictions that equal an acceptable answer after SQuAD's normalization."""
    return _mean(_best(predictions, targets, lambda p, t: float(p == t)))


def token_f1(predictions: Texts, targets: Answers) -> list[float]:
    """F1 of the words shared by each prediction and its best answer, after SQuAD's normalization.

    The metric is their mean.

    >>> token_f1(["the red house"], [["a house", "red barn by the lake"]])
    [0.6666666666666666]
    """
    return _best(predictions, targets, _shared_words)


def pearson(predictions: Texts, targets: Texts) -> float:
    """Correlation of the texts as numbers (STS-B); 0 if either side is constant.

    As in T5's code, a text that is not a number counts as −1.
    """
    return _correlation(_numbers(predictions), _numbers(targets))


def spearman(predictions: Texts, targets: Texts) -> float:
    """Rank correlation of the texts as numbers; equal numbers share the mean of their ranks."""
    return _rank_correlation(_numbers(predictions), _numbers(targets))


_COMPUTE: dict[str, Callable[..., float | list[float]]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "token_f1": token_f1,
    "pearson": pearson,
    "spearman": spearman,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "group_accuracy": group_accuracy,
    "referent": referent,
}
_OF_ANSWERS = ("exact_match", "token_f1")


@dataclass(frozen=True)
class Scores:
    """Metrics of the answers to all rows.

    Attributes:
        standard_errors: of the metrics that are means over rows or groups. Those of shares of rows and of metrics of
            the confusion matrix follow from these; `bootstrap_errors` estimates those of correlations, BLEU and chrF.
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]


def score(
    names: Sequence[str],
    predictions: Texts,
    targets: Texts,
    labels: Texts | None = None,
    *,
    answers: Sequence[Texts] | None = None,
    groups: Texts | None = None,
    holds: Sequence[bool] | None = None,
) -> Scores:
    """The named metrics (`METRICS` of data_prep/tasks/config.py, whose needs a `TaskConfig` has checked).

    Texts are compared in one Unicode normal form, except by ROUGE, BLEU and chrF.

    Args:
        labels: all labels (f1, macro_f1, mcc).
        answers: all acceptable answers of each row, if there are more than its target (exact_match, token_f1, ROUGE,
            BLEU, chrF).
        groups: group of each row (group_accuracy).
        holds: whether each row's target is true (referent).

    >>> score(["token_f1", "accuracy"], ["a b", "c"], ["b", "d"])
    Scores(metrics={'token_f1': 0.5, 'accuracy': 0.0}, standard_errors={'token_f1': 0.5})
    """
    references = answers or [[target] for target in targets]
    found: dict[str, float | list[float]]
    found = {name: OF_TEXTS[name](predictions, references) for name in names if name in OF_TEXTS}
    predictions, targets = list(map(normal_form, predictions)), list(map(normal_form, targets))
    labels = labels and list(map(normal_form, labels))
    answers = answers and [list(map(normal_form, of_row)) for of_row in answers]
    needs = {"": (), "labels": (labels,), "group": (groups,), "holds": (holds,)}
    for name in (name for name in names if name not in found):
        found[name] = _COMPUTE[name](predictions, (name in _OF_ANSWERS and answers) or targets, *needs[METRICS[name]])
    each = {name: values for name in names if isinstance(values := found[name], list)}
    metrics = {name: _mean(value) if isinstance(value := found[name], list) else value for name in names}
    return Scores(metrics, {name: _standard_error(values) for name, values in each.items() if len(values) > 1})


def bootstrap_errors(
    names: Sequence[str], predictions: Texts, targets: Texts, *, answers: Sequence[Texts] | None = None
) -> dict[str, float]:
    """Standard errors over rows of the named correlations, BLEU and chrF: their standard deviation over `DRAWS` draws.

    Args:
        answers: as for `score`.

    Source: Efron & Tibshirani 1993, ch. 6.
    """
    rows, references = len(predictions), answers or [[target] for target in targets]
    of_drawn: dict[str, OfDrawnRows] = {
        name: _of_drawn_numbers(_OF_NUMBERS[name], predictions, targets) for name in names if name in _OF_NUMBERS
    }
    of_drawn |= {name: of_drawn_rows(name, predictions, references) for name in names if name in OF_CORPUS}
    if not of_drawn or rows < 2:
        return {}
    generator = np.random.default_rng(0)
    values: dict[str, list[float]] = {name: [] for name in of_drawn}
    for _ in range(DRAWS):
        drawn_T = generator.integers(rows, size=rows)
        for name, metric in of_drawn.items():
            values[name].append(metric(drawn_T))
    return {name: float(np.std(of_draws, ddof=1)) for name, of_draws in values.items()}


def _of_drawn_numbers(metric: Callable[[Values, Values], float], predictions: Texts, targets: Texts) -> OfDrawnRows:
    x, y = (_numbers(list(map(normal_form, texts))) for texts in (predictions, targets))
    return lambda drawn_T: metric(x[drawn_T], y[drawn_T])


def right(
    names: Sequence[str],
    predictions: Texts,
    targets: Texts,
    *,
    answers: Sequence[Texts] | None = None,
    holds: Sequence[bool] | None = None,
) -> list[bool]:
    """Whether each prediction is right as the named metrics see it, for the display of single rows.

    With `referent`, if it agrees with `holds`; with `exact_match` or `token_f1`, if it equals an acceptable answer in
    SQuAD's normalization; with ROUGE, BLEU or chrF, if it equals one in a Unicode normal form; otherwise if it equals
    its target in that form.

    >>> right(["exact_match"], ["The Broncos!"], ["Denver"], answers=[["Denver", "broncos"]])
    [True]
    >>> right(["referent"], ["the pony", "the pony"], ["pony", "pony"], holds=[True, False])
    [True, False]
    >>> right(["accuracy"], ["broncos"], ["Denver"], answers=[["Denver", "broncos"]])
    [False]
    """
    if "referent" in names and holds is not None:
        return [_names(p, t) is bool(h) for p, t, h in zip(predictions, targets, holds, strict=True)]
    form = normalize_answer if set(_OF_ANSWERS).intersection(names) else str
    several = any(name in _OF_ANSWERS or name in OF_TEXTS for name in names)
    acceptable = (several and answers) or [[target] for target in targets]
    return [
        form(normal_form(p)) in [form(normal_form(one)) for one in of_row]
        for p, of_row in zip(predictions, acceptable, strict=True)
    ]


def task_average(metrics: Mapping[str, float]) -> float:
    """The mean over a task's metrics, as in the averages of GLUE and SuperGLUE.

    >>> task_average({"f1": 0.5, "accuracy": 0.75})
    0.625
    """
    return _mean(list(metrics.values()))


def _mean(values: Sequence[float] | Values) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _best(predictions: Texts, targets: Answers, compare: Callable[[str, str], float]) -> list[float]:
    best = []
    for prediction, answers in zip(predictions, targets, strict=True):
        p = normalize_answer(prediction)
        acceptable = [answers] if isinstance(answers, str) else answers
        best.append(max(compare(p, normalize_answer(answer)) for answer in acceptable))
    return best


def _shared_words(prediction: str, target: str) -> float:
    predicted, true = Counter(prediction.split()), Counter(target.split())
    shared = (predicted & true).total()
    return 2 * shared / (predicted.total() + true.total()) if shared else 0.0


def _numbers(texts: Texts) -> Values:
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


def _correlation(x: Values, y: Values) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # before rounding of the means makes them differ
        return 0.0
    x, y = (side / np.abs(side).max() for side in (x - _mean(x), y - _mean(y)))
    return float(np.clip(x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)), -1, 1))


def _rank_correlation(x: Values, y: Values) -> float:
    return _correlation(_ranks(x), _ranks(y))


_OF_NUMBERS = {"pearson": _correlation, "spearman": _rank_correlation}
