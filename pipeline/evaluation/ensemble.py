"""Answers of several prompts combined: majority vote (Lester et al. 2021, §6), mixture (Qin and Eisner 2021).

N inputs, K prompts, L labels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.evaluation.held_out import HeldOut
from t5_pipeline.evaluation.predict import AnswerForm, Ids, Outputs, answer_each
from t5_pipeline.methods.base import Candidate, ReadingModel
from t5_pipeline.modeling.limits import SCORED_EXAMPLES

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
            row["variant"] = f"{len(group)} prompts"
            if first.task.name != task.name:
                row["trained_on"] = first.task.name
            row["trained"] = sum(candidate.about["trained"] for candidate, _, _ in group)
            rows.append(row | split.scored(vote([outputs for _, _, outputs in group], task.labels or ())))
    return rows


def vote(outputs: Sequence[Outputs], labels: Sequence[str] = ()) -> Outputs:
    """The most frequent answer to each input.

    Ties go to the label with the highest log p summed over the prompts, or for free text to the earliest prompt's
    answer. Greedy outputs are voted on separately.

    >>> vote([Outputs(["a"], ["a"]), Outputs(["b"], ["x"]), Outputs(["b"], ["b"])]).texts
    ['b']
    """
    texts, free = [], []
    for i in range(len(outputs[0].texts)):
        summed = np.sum([one.scores[i] for one in outputs], axis=0) if labels else None
        likelihood = dict(zip(labels, summed, strict=True)) if summed is not None else {}
        texts.append(_most_frequent([one.texts[i] for one in outputs], likelihood))
        if outputs[0].free:
            free.append(_most_frequent([one.free[i] for one in outputs], {}))
    return Outputs(texts, free)


def _most_frequent(answers: Sequence[str], likelihood: dict[str, float]) -> str:
    counts = Counter(answers)
    first = {answer: -answers.index(answer) for answer in counts}
    return max(counts, key=lambda answer: (counts[answer], likelihood.get(answer, 0.0), first[answer]))


def mix(outputs: Sequence[Outputs], weights: Sequence[float], labels: Sequence[Sequence[str]]) -> Outputs:
    """The likeliest label of each input under Σ_k w_k p_k, with its log as scores.

    Args:
        outputs: answers of each prompt, with the log p of every label.
        labels: labels of each input.
    """
    log_p_KNL = [[np.asarray(scores, dtype=np.float64) for scores in one.scores] for one in outputs]
    with np.errstate(divide="ignore"):
        log_w_K = np.log(np.asarray(weights, dtype=np.float64))
    texts, scores = [], []
    for i, names in enumerate(labels):
        mixed_L = np.logaddexp.reduce([log_w + one[i] for log_w, one in zip(log_w_K, log_p_KNL, strict=True)], axis=0)
        texts.append(names[int(mixed_L.argmax())])
        scores.append(mixed_L.tolist())
    return Outputs(texts, [], scores)


def answer_mixture(
    answer: Callable[[Sequence[AnswerForm]], list[Outputs]], weights: Sequence[float], forms: Sequence[AnswerForm]
) -> Outputs:
    """Answers of a mixture. For free text each prompt's greedy output is a candidate, and the likeliest one wins.

    Args:
        answer: gives each prompt's answers to all inputs, in these forms.
        forms: form of each input's answer.
    """
    outputs = answer(forms)
    if all(form.labels for form in forms):
        # Greedy outputs cannot be mixed token by token: those of the prompt with the largest weight are kept.
        return replace(
            mix(outputs, weights, [form.labels for form in forms]), free=outputs[int(np.argmax(weights))].free
        )
    texts = [[one.texts[i] for one in outputs] for i in range(len(forms))]
    asked = [replace(form, labels=each, label_ids=form.encode(each), max_length=0)
             for form, each in zip(forms, texts, strict=True)]  # fmt: skip
    mixed = mix(answer(asked), weights, texts)
    return Outputs(mixed.texts, mixed.texts)


def mixture_answers(
    model: ReadingModel,
    prompts: Sequence[int],
    weights: Sequence[float],
    inputs: Sequence[Ids],
    forms: Sequence[AnswerForm],
    *,
    device: torch.device,
    precision: str,
    batch_size: int = SCORED_EXAMPLES,
    decoding: Decoding | None = None,
    numbers: Sequence[int] | None = None,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Outputs:
    """Answers of a mixture, each input once per prompt in mixed batches.

    Args:
        prompts: the mixture's prompts in the model's bank.
        inputs, forms: ids of each input, and form of its answer.
        decoding, numbers: as for `answer_each`.
        on_batch: receives the number of examples after each batch.
    """
    numbers = range(len(inputs)) if numbers is None else numbers

    def answer(forms: Sequence[AnswerForm]) -> list[Outputs]:
        found = answer_each(
            model,
            [prompt for prompt in prompts for _ in inputs],
            [ids for _ in prompts for ids in inputs],
            [form for _ in prompts for form in forms],
            batch_size=batch_size,
            device=device,
            precision=precision,
            decoding=decoding,
            numbers=[number for _ in prompts for number in numbers],
            on_batch=on_batch,
        )
        return [found.part(k * len(inputs), (k + 1) * len(inputs)) for k in range(len(prompts))]

    return answer_mixture(answer, weights, forms)
