"""Greedy decoding with the real T5, against the plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.evaluation.decoding import greedy
from t5_pipeline.modeling.prompt_bank import PromptedT5
from tests.evaluation.conftest import INPUTS_BS, PROMPT_B


def use(monkeypatch: pytest.MonkeyPatch, model: PromptedT5, special: SpecialTokens) -> None:
    monkeypatch.setattr(model.t5, "shape", replace(model.t5.shape, special=special))


@pytest.mark.parametrize("prompt_B", [PROMPT_B, None], ids=["prompts", "no prompt"])
@pytest.mark.parametrize("start", [0, 5])
def test_greedy_matches_argmax_of_forward_pass(
    model: PromptedT5, prompt_B: Tensor | None, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, model, SpecialTokens(eos=-1, start=start))
    ids_BT = greedy(model, *model.encode(prompt_B, INPUTS_BS), max_length=7)
    assert ids_BT.shape == (3, 7)
    with torch.no_grad():
        logits_BTV = model(prompt_B, INPUTS_BS, ids_BT)
    assert torch.equal(logits_BTV.argmax(-1), ids_BT)


def test_rows_end_at_eos(model: PromptedT5, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    use(monkeypatch, model, SpecialTokens(eos=-1))
    free_BT = greedy(model, encoded, mask, max_length=8)
    eos = int(free_BT[0, 2])
    use(monkeypatch, model, SpecialTokens(pad=7, eos=eos))
    ids_BT = greedy(model, encoded, mask, max_length=8)
    for free, row in zip(free_BT.tolist(), ids_BT.tolist(), strict=True):
        end = free.index(eos) + 1 if eos in free else 8
        assert row == (free[:end] + [7] * 8)[: len(row)]
    assert greedy(model, encoded, mask, max_length=0).shape == (3, 0)
