"""The paper's findings as contrasts of scores, and verdicts on them by one fixed rule.

A contrast is a weighted sum of the mean scores of arms, positive if the finding holds: `{20 tokens: 1, 1 token: -1}`.
A finding is judged by the mean of its contrasts over all tasks and arms of a run that have what it needs. Each LM
adaptation is compared with the span corruption that it started from.
The interval is a percentile bootstrap over seeds and test rows (`Scored.drawn`). The verdict follows from the 95%
interval: above 0, below 0, or neither.

Source: Lester et al. 2021, Figures 1, 3 and 4, Tables 1 and 3; Efron & Tibshirani 1993, ch. 13.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t5_pipeline.report.arms import (
    DRAWS,
    LM_ADAPTATION,
    SENTINEL,
    SPAN_CORRUPTION,
    Arm,
    Grouping,
    PromptSetting,
    Scored,
    by_initializer,
    by_length,
    by_pretraining,
    groups,
    own,
    usual_prompts,
    usual_setting,
    without_prompt,
)
from t5_pipeline.report.intervals import Interval
from t5_pipeline.report.scores import MODEL_TUNING

Verdict = Literal["confirmed", "not confirmed", "undecided"]
Contrast = Mapping[Arm, float]
Contrasts = Callable[[Sequence[Arm], PromptSetting | None], Iterator[Contrast]]

MIN_SEEDS = 3
RULE = (
    "A finding is confirmed if the 95% interval of its contrast is above 0, and not confirmed if it is below 0. It is"
    f" undecided if the interval contains 0, or if a trained method has fewer than {MIN_SEEDS} seeds. The interval is a"
    f" percentile bootstrap over seeds and test rows ({DRAWS:,} draws); all methods of a task get the same drawn rows."
    " (Without recorded answers to each row, each method gets rows of its own, and the interval is usually wider.)"
    " The spread over n seeds is scaled by √(n/(n − 1)). With few seeds, the interval is still too narrow if the"
    " seeds matter more than the rows: for the difference of two methods, it contains the true difference in about 85%"
    " of cases with 3 seeds each, 91% with 5, and 93% with 10, instead of 95%."
)
LONG, ONE = 20, 1  # the paper's lengths: most of the gain is reached at 20 tokens


@dataclass(frozen=True)
class Claim:
    """A finding of the paper.

    Attributes:
        name: a short name, for the saved table.
        text: the finding, as a sentence.
        contrast: the contrast in words.
        of: the contrasts that the arms of a task allow, given the run's usual prompt.
    """

    name: str
    text: str
    source: str
    contrast: str
    of: Contrasts


@dataclass(frozen=True)
class Finding:
    """The judgment of a claim by the scores of a run.

    Attributes:
        difference: mean contrast over tasks, on the scale of the metrics.
        tasks: names of the tasks that it is a mean of.
        seeds: smallest number of seeds of an arm; 0 if none of the arms is trained.
        over_seeds: those of the tasks whose test rows are not resampled.
    """

    claim: Claim
    difference: float
    interval: Interval
    verdict: Verdict
    tasks: tuple[str, ...]
    seeds: int
    over_seeds: tuple[str, ...] = ()


def findings(tasks: Sequence[Scored]) -> list[Finding]:
    """Judge the claims for which a run has scores."""
    usual = usual_setting(arm for task in tasks for arm in task.by_arm)
    found = []
    for claim in CLAIMS:
        contrasts = [(task, contrast) for task in tasks for contrast in claim.of(list(task.by_arm), usual)]
        if not contrasts:
            continue
        drawn_KD = [
            np.sum([w * task.drawn(arm) for arm, w in contrast.items()], axis=0) for task, contrast in contrasts
        ]
        low, high = np.quantile(np.mean(drawn_KD, axis=0), [0.025, 0.975])
        rows = [task.by_arm[arm] for task, contrast in contrasts for arm in contrast]
        seeds = min((len(r) for r in rows if r[0].seed is not None and r[0].trained != 0), default=0)
        values = [sum(w * task.mean(arm) for arm, w in contrast.items()) for task, contrast in contrasts]
        found.append(
            Finding(
                claim,
                float(np.mean(values)),
                Interval(float(low), float(high)),
                verdict(float(low), float(high), seeds),
                tuple(dict.fromkeys(task.task.task for task, _ in contrasts)),
                seeds,
                not_resampled([(task, arm) for task, contrast in contrasts for arm in contrast]),
            )
        )
    return found


def not_resampled(drawn: Iterable[tuple[Scored, Arm]]) -> tuple[str, ...]:
    """Names of the tasks whose test rows the draws do not resample."""
    return tuple(dict.fromkeys(task.task.task for task, arm in drawn if not task.resamples_rows(arm)))


def verdict(low: float, high: float, seeds: int) -> Verdict:
    """The verdict on a contrast with this 95% interval.

    >>> verdict(0.1, 0.3, 5), verdict(-0.3, -0.1, 5), verdict(-0.1, 0.2, 5), verdict(0.1, 0.3, 2)
    ('confirmed', 'not confirmed', 'undecided', 'undecided')
    """
    if 0 < seeds < MIN_SEEDS or low <= 0 <= high:
        return "undecided"
    return "confirmed" if low > 0 else "not confirmed"


# --------------------------------------------------------------------------------------------------------- contrasts


def _more(grouping: Grouping, better: object, worse: object) -> Contrasts:
    """Contrasts of two values of one property."""

    def of(arms: Sequence[Arm], _usual: PromptSetting | None) -> Iterator[Contrast]:
        for group in grouping(own(arms)):
            if better in group and worse in group:
                yield {group[better]: 1.0, group[worse]: -1.0}

    return of


def _plateau(arms: Sequence[Arm], _usual: PromptSetting | None) -> Iterator[Contrast]:
    for group in by_length(own(arms)):
        longest = max(length or 0 for length in group)
        if ONE in group and LONG in group and longest > LONG:
            yield {group[LONG]: 2.0, group[ONE]: -1.0, group[longest]: -1.0}


def _against(method: str, sign: float = 1.0, shifted: bool = False) -> Contrasts:
    """Contrasts of the usual prompt and another method on the same T5."""

    def of(arms: Sequence[Arm], usual: PromptSetting | None) -> Iterator[Contrast]:
        for prompt in usual_prompts(arms, usual, shifted):
            for other in arms:
                same_t5 = without_prompt(other) == without_prompt(prompt)
                if other.method == method and same_t5 and _fits(other, prompt):
                    yield {prompt: sign, other: -sign}

    return of


def _fits(other: Arm, prompt: Arm) -> bool:
    """Whether another method has no prompt, or prompts like this one."""
    prompts = (other.prompt_length, other.prompt_init)
    # A vote names further settings of its prompts after their number.
    same = other.method != "ensemble" or other.other.partition(", ")[2] == prompt.other
    return same and prompts in ((None, None), (prompt.prompt_length, prompt.prompt_init))


def _narrower(arms: Sequence[Arm], usual: PromptSetting | None) -> Iterator[Contrast]:
    """Contrasts of each two T5s of the smallest and of the largest size."""
    for prompts in groups(usual_prompts(arms, usual), "parameters", "t5"):
        for models in groups(own(arms, MODEL_TUNING), "parameters", "t5"):
            t5s = [t5 for t5 in prompts if t5 in models and without_prompt(prompts[t5]) == without_prompt(models[t5])]
            sizes = sorted({size for size, _ in t5s if size})
            for small, large in itertools.product(t5s, t5s):
                if len(sizes) > 1 and (small[0], large[0]) == (sizes[0], sizes[-1]):
                    yield {prompts[large]: 1.0, models[large]: -1.0, prompts[small]: -1.0, models[small]: 1.0}


CLAIMS = (
    Claim("length", "A prompt of 20 tokens is better than one of a single token.", "Figure 3(a)",
          "20 tokens − 1 token", _more(by_length, LONG, ONE)),
    Claim("plateau", "Prompts longer than 20 tokens gain less than the first 20 do.", "Figure 3(a)",
          "(20 tokens − 1) − (longest − 20)", _plateau),
    Claim("vocabulary", "Initializing from the vocabulary is better than random rows.", "Figure 3(b)",
          "vocabulary − random", _more(by_initializer, "vocabulary", "uniform")),
    Claim("labels", "Initializing from the labels is better than random rows.", "Figure 3(b)",
          "class labels − random", _more(by_initializer, "class_labels", "uniform")),
    Claim("adaptation", "An LM-adapted T5 is a better base than one of span corruption.", "Figure 3(c)",
          "LM adaptation − span corruption",
          _more(by_pretraining, (LM_ADAPTATION, 1.0), (SPAN_CORRUPTION, 0.0))),
    Claim("sentinel", "A sentinel in the targets does not replace LM adaptation.", "Figure 3(c)",
          "LM adaptation − (span corruption + sentinel)",
          _more(by_pretraining, (LM_ADAPTATION, 1.0), (SENTINEL, None))),
    Claim("steps", "More LM adaptation is better: all of it beats a tenth.", "Figure 3(d)",
          "100% − 10% of the steps", _more(by_pretraining, (LM_ADAPTATION, 1.0), (LM_ADAPTATION, 0.1))),
    Claim("model-tuning", "Small T5s need model tuning: prompts are behind.", "Figure 1",
          "model tuning − prompt tuning", _against(MODEL_TUNING, -1.0)),
    Claim("size", "Larger T5s narrow the gap between prompts and model tuning.", "Figure 1",
          "gap of the smallest T5 − gap of the largest", _narrower),
    Claim("design", "Prompt tuning is better than prompt design.", "Figure 1",
          "prompt tuning − prompt design", _against("prompt design")),
    Claim("ensemble", "The vote of several prompts is better than one of them on average.", "Table 3",
          "vote − mean of the prompts", _against("ensemble", -1.0)),
    Claim("shift", "Prompts keep more under domain shift than model tuning.", "Table 1",
          "prompt tuning − model tuning, on a task of another domain", _against(MODEL_TUNING, shifted=True)),
)  # fmt: skip
