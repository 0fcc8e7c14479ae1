"""Optimizers of models and prompts: their state, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t5_pipeline.training.optimizers import model_optimizer, prompt_optimizer, set_learning_rate
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


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="`sgd`"):
        model_optimizer("sgd", [nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="`sgd`"):
        prompt_optimizer("sgd", nn.Parameter(torch.ones(4, 2)), torch.zeros(4, dtype=torch.long))
