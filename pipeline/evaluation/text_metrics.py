"""ROUGE, BLEU and chrF, by the packages that papers use: fractions between 0 and 1.

    rouge1, rouge2, rougeL, rougeLsum   rouge-score: mean F of the rows, without stemming, as in T5's code
    bleu, chrf                          sacrebleu with its defaults (tokenizer 13a; chrF2), of the whole corpus

Texts are compared as they are, without a Unicode normal form. With several acceptable answers, ROUGE takes the best
and sacrebleu all as references.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import metric_packages

References = Sequence[Sequence[str]]
OfDrawnRows = Callable[[NDArray[np.int64]], float]
"""Numbers of the drawn rows [rows] → the metric of these rows."""
OF_CORPUS = {"bleu": "BLEU", "chrf": "CHRF"}
"""Metrics that are not means over rows, and their classes in sacrebleu."""


def rouge(kind: str, predictions: Sequence[str], references: References) -> list[float]:
    """F of a ROUGE of each row; `rougeLsum` divides texts into sentences at line breaks and at " . ", as in T5's code.

    The metric is their mean. T5's code resamples the rows and takes the median of their means, which is this mean up to
    the draws.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind])
    return [
        scorer.score_multi([_sentences(text) for text in of_row], _sentences(prediction))[kind].fmeasure
        for prediction, of_row in zip(predictions, references, strict=True)
    ]


def bleu(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU of detokenized texts."""
    from sacrebleu import corpus_bleu

    return _corpus(corpus_bleu, predictions, references)


def chrf(predictions: Sequence[str], references: References) -> float:
    """Corpus chrF2: character n-grams, recall twice as important as precision."""
    from sacrebleu import corpus_chrf

    return _corpus(corpus_chrf, predictions, references)


def of_drawn_rows(name: str, predictions: Sequence[str], references: References) -> OfDrawnRows:
    """A metric of `OF_CORPUS` as a function of drawn rows.

    It adds up the statistics of each row. So does sacrebleu's bootstrap, which needs memory for all draws at once. No
    public function gives the statistics, so two private ones are used; a test compares them with public functions.
    """
    import sacrebleu

    metric = getattr(sacrebleu, OF_CORPUS[name])()
    statistics = np.array(metric._extract_corpus_statistics(list(predictions), _streams(references)), np.float64)
    return lambda drawn: float(metric._compute_score_from_stats(statistics[drawn].sum(axis=0)).score) / 100


OF_TEXTS: dict[str, Callable[[Sequence[str], References], float | list[float]]] = {
    **{kind: partial(rouge, kind) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    "bleu": bleu,
    "chrf": chrf,
}
"""The metrics by name: (predictions, references of each row) → score, or the score of each row."""


def check_installed(metrics: Iterable[str]) -> None:
    """Check that the packages of the named metrics are installed.

    Raises:
        InputError: if one is not.
    """
    for name in metrics:
        for package in metric_packages([name]):
            if importlib.util.find_spec(package) is None:
                raise InputError(f"metrics: `{name}` needs {package}; pip install 't5-pipeline[metrics]'")


def _sentences(text: str) -> str:
    return text.replace(" . ", " .\n")


def _corpus(score: Callable, predictions: Sequence[str], references: References) -> float:
    # sacrebleu can exceed 100 by rounding.
    return min(1.0, float(score(list(predictions), _streams(references)).score) / 100) if predictions else 0.0


def _streams(references: References) -> list[list[str | None]]:
    """A stream for the first references of all rows, one for the second, …; None where a row has fewer."""
    return [list(stream) for stream in itertools.zip_longest(*references)]
