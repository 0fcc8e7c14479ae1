"""Prompts before a frozen T5: only they train, independently of one another."""

from __future__ import annotations

import copy

import pytest
import torch

from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5, shift_right
from tests.modeling.conftest import tensors_digest, token_loss, token_rows

LENGTHS = [3, 7, 1, 7]


def _prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(length, 32, generator=generator) for length in LENGTHS]


@pytest.fixture
def prompted(model: T5) -> PromptedT5:
    return PromptedT5(model, PromptBank(_prompts())).eval()


def test_gather_pads_on_the_left() -> None:
    prompts = _prompts()
    rows, mask = PromptBank(prompts).gather(torch.tensor([2, 1, 0]))
    assert rows.shape == (3, 7, 32)
    assert mask.sum(1).tolist() == [1, 7, 3]
    for row, real, index in zip(rows, mask, [2, 1, 0], strict=True):
        assert torch.equal(row[real], prompts[index])
        assert not row[~real].any()
        assert real.tolist() == sorted(real.tolist())


def test_gather_pads_to_the_longest_named_prompt() -> None:
    rows, mask = PromptBank(_prompts()).gather(torch.tensor([0, 2]))
    assert rows.shape == (2, 3, 32)
    assert mask.tolist() == [[True] * 3, [False, False, True]]


def test_prompt_round_trip() -> None:
    bank = PromptBank(_prompts())
    assert len(bank) == 4
    for index, prompt in enumerate(_prompts()):
        assert torch.equal(bank.prompt(index), prompt)
    assert bank.row_prompt_R.tolist() == [0] * 3 + [1] * 7 + [2] + [3] * 7
    assert list(bank.state_dict()) == ["rows_RD"]
    assert bank.rows_RD.numel() == sum(LENGTHS) * 32


def test_it_is_t5_over_prompt_and_input(prompted: PromptedT5) -> None:
    inputs, targets = token_rows([6, 6], seed=1), token_rows([4, 5], seed=2)
    t5, prompt = prompted.t5, prompted.bank.prompt(1)
    embedded = torch.cat([prompt.expand(2, -1, -1), t5.embed(inputs)], dim=1)
    expected = t5.logits(t5.decode(t5.embed(shift_right(targets)), t5.encode(embedded, None), None))
    torch.testing.assert_close(prompted(torch.tensor([1, 1]), inputs, targets), expected)
    torch.testing.assert_close(prompted(None, inputs, targets), t5(inputs, targets))


def test_results_do_not_depend_on_other_prompts(model: T5) -> None:
    prompt_B = torch.tensor([1, 0, 2, 0, 3, 1, 2])
    inputs = token_rows([5, 9, 4, 12, 3, 8, 6], seed=3)
    targets = token_rows([4, 2, 6, 3, 5, 3, 4], seed=4)
    together = PromptedT5(model, PromptBank(_prompts())).eval()
    logits = together(prompt_B, inputs, targets)
    token_loss(logits, targets).backward()

    for index, prompt in enumerate(_prompts()):
        alone = PromptedT5(model, PromptBank([prompt])).eval()
        rows = prompt_B == index
        own_inputs, own_targets = inputs[rows], targets[rows]
        own_inputs = own_inputs[:, : (own_inputs != 0).sum(1).max()]
        own_logits = alone(torch.zeros(int(rows.sum()), dtype=torch.int32), own_inputs, own_targets)
        token_loss(own_logits, own_targets).backward()
        torch.testing.assert_close(logits[rows], own_logits, atol=1e-5, rtol=1e-5)
        start = together.bank.offsets[index]
        gradient = together.bank.rows_RD.grad[start : start + len(prompt)]
        expected = alone.bank.rows_RD.grad
        assert (gradient - expected).norm() / expected.norm() < 1e-5
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_only_the_named_prompts(prompted: PromptedT5) -> None:
    inputs, targets = token_rows([6, 4], seed=1), token_rows([4, 5], seed=2)
    token_loss(prompted(torch.tensor([3, 0]), inputs, targets), targets).backward()
    norms = [prompted.bank.rows_RD.grad[prompted.bank.row_prompt_R == index].norm().item() for index in range(4)]
    assert [norm > 0 for norm in norms] == [True, False, False, True]


def test_nothing_of_t5_changes_in_training(model: T5) -> None:
    prompted = PromptedT5(model, PromptBank(_prompts())).train()
    before, rows_before = tensors_digest(model.state_dict().items()), prompted.bank.rows_RD.detach().clone()
    learning = [p for p in prompted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == sum(LENGTHS) * 32
    torch.manual_seed(0)
    for step in range(5):
        inputs, targets = token_rows([6, 4, 8, 5], seed=step), token_rows([4, 5, 2, 3], seed=step + 10)
        token_loss(prompted(torch.arange(4), inputs, targets), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert tensors_digest(model.state_dict().items()) == before
    assert all(p.grad is None for p in model.parameters())
    assert bool((prompted.bank.rows_RD.detach() != rows_before).any(1).all())


def test_dropout_of_the_frozen_model_only_in_training(prompted: PromptedT5) -> None:
    inputs, targets, prompt_B = token_rows([6], seed=1), token_rows([4], seed=2), torch.tensor([0])
    calm = prompted(prompt_B, inputs, targets)
    torch.manual_seed(0)
    noisy = prompted.train()(prompt_B, inputs, targets)
    assert not torch.allclose(noisy, calm)
    assert torch.equal(prompted.eval()(prompt_B, inputs, targets), calm)


def test_a_frozen_t5_in_bf16_trains_an_fp32_prompt(model: T5) -> None:
    prompted = PromptedT5(copy.deepcopy(model).bfloat16(), PromptBank(_prompts())).eval()
    inputs, targets, prompt_B = token_rows([6, 4], seed=1), token_rows([4, 5], seed=2), torch.tensor([0, 1])
    exact = PromptedT5(model, PromptBank(_prompts())).eval()
    token_loss(exact(prompt_B, inputs, targets), targets).backward()
    token_loss(prompted(prompt_B, inputs, targets), targets).backward()
    gradient, expected = prompted.bank.rows_RD.grad, exact.bank.rows_RD.grad
    assert gradient.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), 0) > 0.98


def test_wrong_shapes_are_rejected(model: T5) -> None:
    with pytest.raises(ValueError, match="width 16 do not fit a T5 of width 32"):
        PromptedT5(model, PromptBank([torch.ones(2, 16)]))
    with pytest.raises(ValueError, match="share one width"):
        PromptBank([torch.ones(2, 16), torch.ones(2, 8)])
    with pytest.raises(ValueError, match="have rows"):
        PromptBank([torch.ones(0, 16)])
