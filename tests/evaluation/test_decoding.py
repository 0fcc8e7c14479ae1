"""Greedy decoding with the real T5, against the plain forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t5_pipeline.evaluation.decoding import greedy
from t5_pipeline.modeling.prompt_bank import PromptedT5
from tests.evaluation.conftest import INPUTS_BS, PROMPT_B


@pytest.mark.parametrize("prompt_B", [PROMPT_B, None], ids=["prompts", "no prompt"])
def test_greedy_matches_argmax_of_forward_pass(model: PromptedT5, prompt_B: Tensor | None) -> None:
    ids_BT = greedy(model, *model.encode(prompt_B, INPUTS_BS), max_length=7, eos=-1)
    assert ids_BT.shape == (3, 7)
    with torch.no_grad():
        logits_BTV = model(prompt_B, INPUTS_BS, ids_BT)
    assert torch.equal(logits_BTV.argmax(-1), ids_BT)


def test_rows_end_at_eos(model: PromptedT5) -> None:
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    free_BT = greedy(model, encoded, mask, max_length=8, eos=-1)
    eos = int(free_BT[0, 2])
    ids_BT = greedy(model, encoded, mask, max_length=8, eos=eos)
    for free, row in zip(free_BT.tolist(), ids_BT.tolist(), strict=True):
        end = free.index(eos) + 1 if eos in free else 8
        assert row == (free[:end] + [0] * 8)[: len(row)]
    assert greedy(model, encoded, mask, max_length=0).shape == (3, 0)


@torch.no_grad()
def test_a_mixture_decodes_from_the_mixed_probabilities(model: PromptedT5) -> None:
    """Each token is the likeliest one under Σ_k w_k p_k(tokens so far, token), from plain forward passes."""
    weights = torch.tensor([0.3, 0.7])
    encoded, mask = model.encode(torch.tensor([0, 1]).repeat_interleave(3), INPUTS_BS.repeat(2, 1))
    ids_BT = greedy(model, encoded, mask, max_length=5, eos=-1, log_w_K=weights.log())
    assert ids_BT.shape == (3, 5)
    log_p_KBTV = torch.stack([model(torch.full((3,), k), INPUTS_BS, ids_BT) for k in (0, 1)]).log_softmax(-1)
    chosen_KBT = log_p_KBTV.gather(3, ids_BT.expand(2, 3, 5).unsqueeze(3)).squeeze(3)
    before_KBT = chosen_KBT.cumsum(2) - chosen_KBT
    p_BTV = torch.einsum("k,kbtv->btv", weights, (before_KBT.unsqueeze(3) + log_p_KBTV).exp())
    assert torch.equal(p_BTV.argmax(-1), ids_BT)

    alone = greedy(model, *model.encode(torch.ones(3, dtype=torch.long), INPUTS_BS), max_length=5, eos=-1)
    assert torch.equal(greedy(model, encoded, mask, 5, eos=-1, log_w_K=torch.tensor([0.0, 1.0]).log()), alone)
