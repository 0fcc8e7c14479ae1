"""Label scoring with the real T5, against the plain forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t5_pipeline.evaluation import label_scoring
from t5_pipeline.evaluation.decoding import Continuations, Decoding
from t5_pipeline.evaluation.label_scoring import score_labels
from t5_pipeline.modeling.prompt_bank import PromptedT5
from tests.evaluation.conftest import INPUTS_BS, PROMPT_B

LABELS = [[10, 11, 12, 1], [10, 1], [20, 21, 1], [50, 1]]


@torch.no_grad()
def log_p_of_forward(model: PromptedT5, prompt_B: Tensor | None, label: list[int]) -> Tensor:
    """The label as the target of an ordinary forward pass, one example at a time."""
    found = []
    for index, inputs_S in enumerate(INPUTS_BS):
        inputs = inputs_S[inputs_S != 0].unsqueeze(0)
        logits_TV = model(None if prompt_B is None else prompt_B[index : index + 1], inputs, torch.tensor([label]))[0]
        found.append(logits_TV.log_softmax(-1)[range(len(label)), label].sum())
    return torch.stack(found)


@pytest.mark.parametrize("prompt_B", [PROMPT_B, None], ids=["prompts", "no prompt"])
@pytest.mark.parametrize("at_once", [2048, 3])
def test_scores_equal_log_probabilities_of_labels(
    model: PromptedT5, prompt_B: Tensor | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_scoring, "SCORED_LOGITS_ROWS", at_once)
    scores_BL = score_labels(model, *model.encode(prompt_B, INPUTS_BS), LABELS)
    expected_BL = torch.stack([log_p_of_forward(model, prompt_B, label) for label in LABELS], dim=1)
    assert scores_BL.dtype == torch.float32
    assert torch.allclose(scores_BL, expected_BL, rtol=1e-5, atol=1e-4)


def test_a_bounded_number_of_label_tokens_is_decoded_at_once(
    model: PromptedT5, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a batch of inputs with thousands of labels takes tens of gigabytes."""
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    whole_BL = score_labels(model, encoded, mask, LABELS)
    decode, tokens = model.decode, []

    def counted(inputs_RT: Tensor, *rest: Any) -> Tensor:
        tokens.append(inputs_RT.numel())
        return decode(inputs_RT, *rest)

    monkeypatch.setattr(model, "decode", counted)
    for at_once, expected in ((35, [32, 16]), (1, [16] * 3)):
        monkeypatch.setattr(label_scoring, "SCORED_LABEL_TOKENS", at_once)
        tokens.clear()
        assert torch.allclose(score_labels(model, encoded, mask, LABELS), whole_BL, rtol=1e-5, atol=1e-4)
        assert tokens == expected


def test_scores_are_normalized(model: PromptedT5) -> None:
    """Σ over v of p(v)·p(EOS | v) by enumeration: scores are normalized probabilities, EOS included."""
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    scores_BL = score_labels(model, encoded, mask, [[v] for v in range(64)])
    assert torch.allclose(scores_BL.exp().sum(1), torch.ones(3), atol=1e-5)


def test_encoder_runs_once(model: PromptedT5) -> None:
    calls = []
    model.t5.encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    score_labels(model, encoded, mask, LABELS * 5)
    Decoding().decode(Continuations(model, encoded, mask), 4, range(3))
    assert len(calls) == 1
