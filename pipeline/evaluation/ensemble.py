"""Several prompts that answer together: a majority vote (Lester et al. 2021, §6), or a mixture (Qin and Eisner 2021).

N inputs, K prompts, L labels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from t5_pipeline.evaluation.predict import AnswerForm, Outputs, ReadingModel, answer_each

EncodeLabels = Callable[[Sequence[str]], Sequence[Sequence[int]]]


def vote(outputs: Sequence[Outputs], labels: Sequence[str] = ()) -> Outputs:
    """The most frequent answer to each input.

    Of answers that are as frequent, the label with the highest log p, summed over the prompts; of free texts the one
    that an earlier prompt gave. What is decoded freely is voted on by itself.

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
    """The likeliest label of each input under Σ_k w_k p_k, with log of that as its scores.

    Args:
        outputs: of each prompt, with the log p of every label.
        labels: of each input.
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
    answer: Callable[[Sequence[AnswerForm]], list[Outputs]],
    weights: Sequence[float],
    forms: Sequence[AnswerForm],
    encode: EncodeLabels,
) -> Outputs:
    """Answers of a mixture. Of free text each prompt's own greedy output is a candidate, and the likeliest is taken.

    Args:
        answer: what each prompt of the mixture answers to all inputs, in these forms.
        forms: of each input.
        encode: target ids of texts, as in training.
    """
    outputs = answer(forms)
    if all(form.labels for form in forms):
        return replace(mix(outputs, weights, [form.labels for form in forms]), free=_heaviest(outputs, weights))
    candidates = [[one.texts[i] for one in outputs] for i in range(len(forms))]
    asked = [AnswerForm(form.decode, texts, encode(texts), 0) for form, texts in zip(forms, candidates, strict=True)]
    mixed = mix(answer(asked), weights, candidates)
    return Outputs(mixed.texts, mixed.texts)


def _heaviest(outputs: Sequence[Outputs], weights: Sequence[float]) -> list[str]:
    """What the prompt of the largest weight decodes freely: text by text there is no mixture of decodings."""
    return outputs[int(np.argmax(weights))].free


def together(
    model: ReadingModel,
    prompts: Sequence[int],
    inputs: Sequence[np.ndarray],
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Callable[[Sequence[AnswerForm]], list[Outputs]]:
    """A function that gives each prompt's answers to the same inputs, each input once per prompt in mixed batches."""

    def answer(forms: Sequence[AnswerForm]) -> list[Outputs]:
        found = answer_each(
            model,
            [prompt for prompt in prompts for _ in inputs],
            [ids for _ in prompts for ids in inputs],
            [form for _ in prompts for form in forms],
            batch_size=batch_size,
            device=device,
            precision=precision,
            on_batch=on_batch,
        )
        size = len(inputs)
        return [found.part(k * size, (k + 1) * size) for k in range(len(prompts))]

    return answer
