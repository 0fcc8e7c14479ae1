"""Answers of mixtures of prompts with the real T5, against those of each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from t5_pipeline.evaluation.predict import AnswerForm, AnswerOptions, Query, answer_each, answer_mixture
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5

INPUTS = [np.array(ids, np.int32) for ids in ([5, 9, 33, 1], [7, 1], [40, 41, 42, 43, 44, 1])]
FORM = AnswerForm(str, ["no", "yes", "maybe"], [[9, 1], [12, 30, 1], [8, 1]], max_length=4)
OPTIONS = AnswerOptions(torch.device("cpu"), "fp32", batch_size=8)


def queries(*forms: AnswerForm) -> list[Query]:
    return [Query(ids, form) for ids, form in zip(INPUTS, forms, strict=True)]


def test_a_mixture_is_the_weighted_sum_of_probabilities(model: PromptedT5) -> None:
    asked = queries(FORM, AnswerForm(str, max_length=3), FORM)
    alone = [answer_each(model, [k] * 3, asked, OPTIONS).scores for k in (0, 1)]
    for batch_size in (1, 4, 64):
        seen: list[int] = []
        options = replace(OPTIONS, batch_size=batch_size, on_batch=seen.append)
        mixed = answer_mixture(model, [0, 1], [0.3, 0.7], asked, options)
        assert sum(seen) == 3
        assert mixed.scores[1] == []
        assert mixed.texts[1] == mixed.decoded[1]
        for i in (0, 2):
            expected = 0.3 * np.exp(alone[0][i]) + 0.7 * np.exp(alone[1][i])
            assert np.exp(mixed.scores[i]) == pytest.approx(expected, rel=1e-4)
            assert mixed.texts[i] == FORM.labels[int(expected.argmax())]


def test_a_mixture_with_one_weight_equals_that_prompt(model: PromptedT5) -> None:
    mixed = answer_mixture(model, [0, 1], [0.0, 1.0], queries(FORM, FORM, FORM), OPTIONS)
    alone = answer_each(model, [1] * 3, queries(FORM, FORM, FORM), OPTIONS)
    assert (mixed.texts, mixed.decoded) == (alone.texts, alone.decoded)
    assert np.array(mixed.scores) == pytest.approx(np.array(alone.scores), rel=1e-4)


def test_texts_end_at_the_maximum_length_of_their_own_form(model: PromptedT5) -> None:
    """Decoded together with longer ones, a text is what it is alone."""

    def text(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids[: ids.index(1)] if 1 in ids else ids))

    asked = queries(*(AnswerForm(text, max_length=length) for length in (5, 2, 3)))
    together = answer_each(model, [0, 1, 1], asked, OPTIONS).decoded
    alone = [answer_each(model, [k], [query], OPTIONS).decoded[0] for k, query in zip((0, 1, 1), asked, strict=True)]
    assert together == alone
    assert len(alone[2].split()) == 3


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_only_the_rows_of_a_broken_prompt_have_no_answer(model: PromptedT5, number: float) -> None:
    good = model.bank.prompt(0)
    bad = torch.full_like(good, number)
    both = PromptedT5(model.t5, PromptBank([good, bad])).eval()
    for form in (FORM, replace(FORM, max_length=0), AnswerForm(str, max_length=3)):
        asked = queries(form, form, form)
        expected = answer_each(both, [0, 0, 0], asked, OPTIONS)
        assert expected.broken == [False] * 3
        found = answer_each(both, [0, 1, 0], asked, OPTIONS)
        assert found.broken == [False, True, False]
        assert (found.texts[1], found.decoded[1]) == ("", "")
        assert [found.texts[i] for i in (0, 2)] == [expected.texts[i] for i in (0, 2)]
        assert answer_mixture(both, [0, 1], [0.5, 0.5], asked, OPTIONS).broken == [True] * 3
