"""Optimizers of models and prompts: their state, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t5_pipeline.modeling.prompt_bank import PromptBank
from t5_pipeline.modeling.reparametrization import LowRank
from t5_pipeline.training.adafactor import Adafactor
from t5_pipeline.training.optimizers import (
    PromptRule,
    bank_optimizer,
    model_optimizer,
    prompt_optimizer,
    set_learning_rate,
)
from tests.training.gradient_streams import LENGTHS


def test_prompt_optimizers_keep_one_or_two_numbers_for_each_of_a_prompt() -> None:
    rows_RD = nn.Parameter(torch.ones(sum(LENGTHS), 32))
    row_prompt_R = torch.repeat_interleave(torch.tensor(LENGTHS))
    for name, numbers in (("adafactor", 1), ("adamw", 2)):
        optimizer = prompt_optimizer(name, rows_RD, row_prompt_R)
        rows_RD.grad = torch.ones_like(rows_RD)
        optimizer.step()
        state = [value for value in optimizer.state[rows_RD].values() if value.ndim]
        assert sum(value.numel() for value in state) == numbers * rows_RD.numel()


def test_parameters_without_a_gradient_do_not_change() -> None:
    for name in ("adafactor", "adamw"):
        still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        optimizer = model_optimizer(name, [still, moving], weight_decay=0.1)
        set_learning_rate(optimizer, 0.1)
        moving.grad = torch.ones_like(moving)
        optimizer.step()
        assert torch.equal(still, torch.ones(2, 2))
        assert not optimizer.state[still]
        assert moving.max() < 0.9


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_prompt_that_waits_does_not_change(name: str) -> None:
    """The gradient of a prompt that is not in the batch is 0: it would still decay, and its moments would count."""

    def train(prompts: int, active: list[int]) -> PromptBank:
        bank = PromptBank([torch.ones(2, 4)] * prompts, range(prompts))
        optimizer = bank_optimizer(name, bank.parameters(), bank.parts, [PromptRule(weight_decay=0.1)] * prompts)
        for step, trains in enumerate(active):
            set_learning_rate(optimizer, *(0.3 if index == trains else None for index in range(prompts)))
            (bank.split(bank.rows())[trains] * (step % 3 + 1)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return bank

    together = train(2, [0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert together.prompt(0).equal(train(1, [0] * 6).prompt(0))
    assert together.prompt(1).equal(train(1, [0] * 3).prompt(0))


def test_every_prompt_of_a_bank_has_its_own_rule() -> None:
    """Also if an earlier prompt has another one: each moves like the only parameter of an optimizer of its own."""
    rules = [PromptRule(), PromptRule(0.01, 0.25, 1000), PromptRule(0.02, 2.0, factored=True)]
    starts = [torch.full((length, 130), 0.5) for length in (3, 4, 140)]
    bank = PromptBank(starts, range(3))
    optimizer = bank_optimizer("adafactor", bank.parameters(), bank.parts, rules)
    alone = [nn.Parameter(start.clone()) for start in starts]
    own = [
        Adafactor(
            [{"params": [p], "clipping": rule.clipping}], weight_decay=rule.weight_decay, parameter_scaling=False,
            step_offset=rule.step_offset, min_dim_to_factor=128 if rule.factored else None,
        )
        for p, rule in zip(alone, rules, strict=True)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        rates = [0.3, 0.1, 0.2]
        set_learning_rate(optimizer, *rates)
        for p, single, each, rate in zip(bank.parameters(), alone, own, rates, strict=True):
            p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step % 3)
            single.grad = p.grad.clone()
            set_learning_rate(each, rate)
            each.step()
        optimizer.step()
    for p, single in zip(bank.parameters(), alone, strict=True):
        torch.testing.assert_close(p.detach(), single.detach(), rtol=1e-5, atol=1e-5)


def test_only_plain_prompts_are_factored() -> None:
    bank = PromptBank([torch.ones(130, 140), LowRank.uniform(130, 140, rank=135, seed=0)])
    optimizer = bank_optimizer("adafactor", bank.parameters(), bank.parts, [PromptRule(factored=True)] * 2)
    bank.rows().sum().backward()
    optimizer.step()
    kept = [set(optimizer.state[p]) - {"step"} for p in bank.parameters()]
    assert kept == [{"mean_square", "row", "column"}, {"mean_square"}, {"mean_square"}]


def test_model_optimizers_count_from_the_offset_and_decay() -> None:
    for name in ("adafactor", "adamw"):
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = model_optimizer(name, [weight], weight_decay=0.25, step_offset=1000)
        set_learning_rate(optimizer, 0.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.equal(weight, torch.full((2, 2), 0.75))
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = model_optimizer("adafactor", [weight], step_offset=1000)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["mean_square"], torch.full((2, 2), 1001**-0.8))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="`sgd`"):
        model_optimizer("sgd", [nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="`sgd`"):
        prompt_optimizer("sgd", nn.Parameter(torch.ones(4, 2)), torch.zeros(4, dtype=torch.long))
