"""Majority vote of several prompts (Lester et al. 2021, §6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5_pipeline.config.sweep import without_seed
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.normal_form import normal_form
from t5_pipeline.data_prep.corpora.row import first_duplicate
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.costs import trained_numbers
from t5_pipeline.evaluation.held_out import HeldOut
from t5_pipeline.evaluation.label_scoring import probabilities
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.methods.base import Candidate

Answer = tuple[Candidate, HeldOut, Outputs]
"""A candidate, the rows of a task as it reads them, and its answers to them."""


def ensemble_rows(task: TaskConfig, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows of scores.json for the majority votes of prompts that differ only in their seed."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer[0].vote_group is not None:
            groups.setdefault(answer[0].vote_group, []).append(answer)
    rows = []
    for group in groups.values():
        if len(group) > 1:
            first, split, _ = group[0]
            row = {"method": "ensemble", "examples": len(split)}
            row |= {name: first.about[name] for name in ("prompt_length", "prompt_init") if name in first.about}
            # Prompts that were tuned on several tasks are named: their vote is not one of the task's own prompts.
            row["variant"] = ", ".join(filter(None, [f"{len(group)} prompts", first.about.get("variant")]))
            if first.task.name != task.name:
                row["trained_on"] = first.task.name
            sources = {candidate.artifact.source for candidate, _, _ in group}
            row["source"] = sources.pop() if len(sources) == 1 else None
            row["cell"] = without_seed(first.artifact.origin.cell) or None
            row["settings"] = first.artifact.settings_digest
            trained = [number for candidate, _, _ in group if (number := trained_numbers(candidate)) is not None]
            row["trained"] = sum(trained) if len(trained) == len(group) else None
            rows.append(row | split.scored(vote([outputs for _, _, outputs in group], task.labels or ())))
    return rows


def voters(names: str | Sequence[str], known: Container[str]) -> list[str]:
    """The prompts that vote: a list of names, one name, or several joined by "+".

    Args:
        known: names of all prompts; one that contains "+" is a single prompt.

    >>> voters("a+b", known={"a", "b"}), voters("a+b", known={"a", "b", "a+b"})
    (['a', 'b'], ['a+b'])
    """
    if not isinstance(names, str):
        return list(names)
    return [names] if names in known else names.split("+")


def check_votes(names: Sequence[str]) -> None:
    """Check that every prompt of a vote has one vote.

    Raises:
        InputError: if one is named twice.
    """
    twice = first_duplicate(names)
    if twice is not None:
        raise InputError(f"prompt `{twice}` would vote more than once; name each prompt once")


def vote(outputs: Sequence[Outputs], labels: Sequence[str] = ()) -> Outputs:
    """The most frequent answer to each input: one vote over the likeliest labels, and one over the decoded texts.

    A decoded text that is not a label is a vote for this text, and wrong if it wins. Ties go to the label with the
    highest log p summed over the prompts, before any text that is not a label; then to the earliest prompt's answer.

    >>> vote([Outputs(["a"], ["a"]), Outputs(["b"], ["x"]), Outputs(["b"], ["b"])]).texts
    ['b']
    """
    texts, decoded = [], []
    for i in range(len(outputs[0].texts)):
        summed = np.sum([one.scores[i] for one in outputs], axis=0) if labels else None
        likelihood = dict(zip(labels, summed, strict=True)) if summed is not None else {}
        texts.append(_most_frequent([one.texts[i] for one in outputs], likelihood))
        if outputs[0].decoded:
            decoded.append(_most_frequent([one.decoded[i] for one in outputs], likelihood))
    return Outputs(texts, decoded)


@dataclass(frozen=True)
class Classification:
    """The label of an input.

    Attributes:
        label: the likeliest label, or the one that most prompts vote for.
        probabilities: probability of each label relative to the others; for a vote the mean over the prompts.
        votes: number of prompts with each answer; None for a single prompt.
    """

    label: str
    probabilities: dict[str, float]
    votes: dict[str, int] | None = None


def classified(texts: Sequence[str], scores: Sequence[Mapping[str, float]]) -> Classification:
    """The label that prompts give an input.

    Args:
        texts: each prompt's answer.
        scores: each prompt's log p of the labels.

    >>> classified(["a"], [{"a": 0.0, "b": 0.0}])
    Classification(label='a', probabilities={'a': 0.5, 'b': 0.5}, votes=None)
    """
    each = [probabilities(one) for one in scores]
    mean = {label: sum(one[label] for one in each) / len(each) for label in each[0]}
    if len(texts) == 1:
        return Classification(texts[0], mean)
    outputs = [Outputs([text], [], [list(one.values())]) for text, one in zip(texts, scores, strict=True)]
    return Classification(vote(outputs, list(mean)).texts[0], mean, votes(texts))


def votes(answers: Iterable[str]) -> dict[str, int]:
    """The number of votes for each answer, in descending order; on ties the earliest answer first.

    Answers that are equal in the Unicode normal form are one, as metrics compare them. It is written as the first.

    >>> votes(["no", "cafe\\u0301", "caf\\u00e9"]) == {"cafe\\u0301": 2, "no": 1}
    True
    """
    written: dict[str, str] = {}
    return dict(Counter(written.setdefault(normal_form(answer), answer) for answer in answers).most_common())


def _most_frequent(answers: Sequence[str], likelihood: dict[str, float]) -> str:
    counts = votes(answers)
    return max(counts, key=lambda answer: (counts[answer], likelihood.get(answer, -math.inf)))
