"""Metrics of predicted texts: fractions between 0 and 1, or correlations between −1 and 1.

A prediction that is not one of the task's labels is illegal: wrong in every metric, and its share is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t5_pipeline.core.normal_form import normal_form
from t5_pipeline.data_prep.tasks.config import METRICS
from t5_pipeline.evaluation.confusion import f1, macro_f1, mcc
from t5_pipeline.evaluation.correlation import CORRELATIONS, correlation_of_drawn_rows, pearson, spearman
from t5_pipeline.evaluation.squad import exact_match, normalize_answer, token_f1
from t5_pipeline.evaluation.text_metrics import OF_CORPUS, OF_TEXTS, OfDrawnRows, of_drawn_rows

DRAWS = 1_000
"""Bootstrap draws of the standard error of a correlation, BLEU or chrF."""


def accuracy(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Share of predictions that equal their target.

    >>> accuracy(["yes", "no", "maybe"], ["yes", "yes", "no"])
    0.3333333333333333
    """
    return _mean([p == t for p, t in zip(predictions, targets, strict=True)])


def illegal_share(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Share of predictions that are not one of the labels."""
    legal = set(labels)
    return _mean([p not in legal for p in predictions])


# As T5's code lists them.
_DETERMINERS = frozenset(
    {"a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their"}
    | {"these", "this", "those", "which", "whose", "your"}
)


def referent(predictions: Sequence[str], targets: Sequence[str], holds: Sequence[bool]) -> float:
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


def group_accuracy(predictions: Sequence[str], targets: Sequence[str], groups: Sequence[str]) -> list[float]:
    """1 for each group in which every prediction equals its target, else 0; the metric is their mean.

    Source: MultiRC's exact match per question.

    >>> group_accuracy(["True", "False", "True"], ["True", "True", "True"], ["q1", "q1", "q2"])
    [0.0, 1.0]
    """
    right: dict[str, bool] = {}
    for prediction, target, group in zip(predictions, targets, groups, strict=True):
        right[group] = right.get(group, True) and prediction == target
    return list(map(float, right.values()))


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
    predictions: Sequence[str],
    targets: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    answers: Sequence[Sequence[str]] | None = None,
    groups: Sequence[str] | None = None,
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
    names: Sequence[str],
    predictions: Sequence[str],
    targets: Sequence[str],
    *,
    answers: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Standard errors over rows of the named correlations, BLEU and chrF: their standard deviation over `DRAWS` draws.

    Args:
        answers: as for `score`.

    Source: Efron & Tibshirani 1993, ch. 6.
    """
    rows, references = len(predictions), answers or [[target] for target in targets]
    of_drawn: dict[str, OfDrawnRows] = {
        name: correlation_of_drawn_rows(name, predictions, targets) for name in names if name in CORRELATIONS
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


def right(
    names: Sequence[str],
    predictions: Sequence[str],
    targets: Sequence[str],
    *,
    answers: Sequence[Sequence[str]] | None = None,
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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))
