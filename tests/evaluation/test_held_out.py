"""Greedy decoding and label scoring with the real T5, against the plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from t5_pipeline.evaluation import label_scoring
from t5_pipeline.evaluation.decoding import greedy
from t5_pipeline.evaluation.label_scoring import score_labels
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5

SHAPE = T5Config(
    vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
INPUTS_BS = torch.tensor([[5, 9, 33, 1, 0, 0], [7, 1, 0, 0, 0, 0], [40, 41, 42, 43, 44, 1]])
PROMPT_B = torch.tensor([1, 0, 1])
LABELS = [[10, 11, 12, 1], [10, 1], [20, 21, 1], [50, 1]]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> PromptedT5:
    """With weights larger than at the start, so that different prompts give different answers."""
    torch.set_num_threads(1)
    t5 = init_t5(replace(SHAPE, tied=request.param), seed=3)
    with torch.no_grad():
        for name, p in t5.named_parameters():
            p.mul_(2.0 if "norm" not in name else 1.0)
    generator = torch.Generator().manual_seed(0)
    bank = PromptBank([torch.randn(length, 24, generator=generator) for length in (2, 5)])
    return PromptedT5(t5, bank).eval()


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
def test_scores_are_the_log_probabilities_of_the_whole_labels(
    model: PromptedT5, prompt_B: Tensor | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_scoring, "SCORED_LOGITS_ROWS", at_once)
    scores_BL = score_labels(model, *model.encode(prompt_B, INPUTS_BS), LABELS)
    expected_BL = torch.stack([log_p_of_forward(model, prompt_B, label) for label in LABELS], dim=1)
    assert scores_BL.dtype == torch.float32
    assert torch.allclose(scores_BL, expected_BL, rtol=1e-5, atol=1e-4)


def test_every_two_token_label_together_has_the_probability_of_ending_after_one(model: PromptedT5) -> None:
    """Σ over v of p(v)·p(EOS | v) by enumeration: scores are normalised probabilities, EOS included."""
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    scores_BL = score_labels(model, encoded, mask, [[v] for v in range(64)])
    assert torch.allclose(scores_BL.exp().sum(1), torch.ones(3), atol=1e-5)


def test_the_encoder_runs_once_whatever_the_number_of_labels(model: PromptedT5) -> None:
    calls = []
    model.t5.encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    score_labels(model, encoded, mask, LABELS * 5)
    greedy(model, encoded, mask, max_length=4)
    assert len(calls) == 1


@pytest.mark.parametrize("prompt_B", [PROMPT_B, None], ids=["prompts", "no prompt"])
def test_greedy_takes_the_likeliest_token_of_a_forward_pass_each_time(
    model: PromptedT5, prompt_B: Tensor | None
) -> None:
    ids_BT = greedy(model, *model.encode(prompt_B, INPUTS_BS), max_length=7, eos=-1)
    assert ids_BT.shape == (3, 7)
    with torch.no_grad():
        logits_BTV = model(prompt_B, INPUTS_BS, ids_BT)
    assert torch.equal(logits_BTV.argmax(-1), ids_BT)


def test_rows_end_at_their_eos_and_decoding_ends_with_the_last_row(model: PromptedT5) -> None:
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    free_BT = greedy(model, encoded, mask, max_length=8, eos=-1)
    eos = int(free_BT[0, 2])
    ids_BT = greedy(model, encoded, mask, max_length=8, eos=eos)
    for free, row in zip(free_BT.tolist(), ids_BT.tolist(), strict=True):
        end = free.index(eos) + 1 if eos in free else 8
        assert row == (free[:end] + [0] * 8)[: len(row)]
    assert greedy(model, encoded, mask, max_length=0).shape == (3, 0)
