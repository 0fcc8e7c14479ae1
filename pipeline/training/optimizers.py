"""The optimizers of models and of banks of prompts, and the learning rate of a step.

R rows of a prompt bank, D d_model
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.modeling.limits import FACTORED_FROM
from t5_pipeline.modeling.prompt_bank import BankPart
from t5_pipeline.training.adafactor import Adafactor
from t5_pipeline.training.adamw import AdamW


def model_optimizer(
    name: str, parameters: Iterable[Tensor], weight_decay: float = 0.0, step_offset: int = 0
) -> torch.optim.Optimizer:
    """The optimizer for the weights of a whole T5: T5X's Adafactor (factored, scaled by the parameter), or AdamW.

    Args:
        step_offset: steps that Adafactor's β₂ counts before the first.
    """
    if _is_adafactor(name):
        return Adafactor(parameters, weight_decay=weight_decay, step_offset=step_offset)
    return AdamW(parameters, weight_decay=weight_decay)


def prompt_optimizer(
    name: str,
    rows_RD: Tensor,
    row_prompt_R: Tensor,
    weight_decay: float = 0.0,
    step_offset: int = 0,
    factored: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer for plain prompts that are trained alike: that of `bank_optimizer`.

    Args:
        row_prompt_R: index of each row's prompt.
        factored: factor the prompts of at least 128 rows, p + d numbers each.
    """
    part, rule = BankPart([0], row_prompt_R), PromptRule(weight_decay, step_offset=step_offset, factored=factored)
    return bank_optimizer(name, [rows_RD], [part], [rule])


@dataclass(frozen=True)
class PromptRule:
    """How an optimizer trains one prompt of a bank. `clipping`, `step_offset` and `factored` are those of Adafactor.

    Attributes:
        factor_rate: learning rate of its factors, as a multiple of the prompt's.
    """

    weight_decay: float = 0.0
    clipping: float = 1.0
    step_offset: int = 0
    factored: bool = False
    factor_rate: float = 1.0


def bank_optimizer(
    name: str, parameters: Iterable[Tensor], parts: Sequence[BankPart], rules: Sequence[PromptRule]
) -> torch.optim.Optimizer:
    """The optimizer for a bank of prompts: Adafactor unscaled, clipped per prompt (§3.1), or AdamW.

    The updates of a reparametrized prompt are clipped per parameter.

    Optimizer state: one number for each trained number of a prompt with Adafactor, two with AdamW. Each parameter has a
    group of its own. Its rate is the one of its first prompt (`set_learning_rate`).

    A step changes neither the parameters nor the state of prompts that wait.

    Args:
        parameters: those of the bank, in order.
        parts: of the bank, one for each parameter.
        rules: one for each prompt; the prompts of a part must have the same one.
    """
    adafactor = _is_adafactor(name)
    groups: list[dict[str, Any]] = []
    for p, part in zip(parameters, parts, strict=True):
        rule = rules[part.prompts[0]]
        group = {"params": [p], "weight_decay": rule.weight_decay, _RATE: part.prompts[0]}
        if part.factors:
            group[_RATE_SCALE] = rule.factor_rate
        if adafactor:
            smallest = FACTORED_FROM if rule.factored and part.segments is not None else None
            group |= {"segments": part.segments, "clipping": rule.clipping, "step_offset": rule.step_offset}
            group |= {"min_dim_to_factor": smallest}
        groups.append(group)
    optimizer = Adafactor(groups, parameter_scaling=False) if adafactor else AdamW(groups)
    optimizer.register_step_pre_hook(_hold_waiting)
    return optimizer


def _is_adafactor(name: str) -> bool:
    """Whether the setting `optimizer` names Adafactor, not AdamW; there is no other."""
    if name not in ("adafactor", "adamw"):
        raise ValueError(f"unknown optimizer `{name}`; use adafactor or adamw")
    return name == "adafactor"


_RATE_SCALE = "rate_scale"
_RATE = "rate"  # which rate of `set_learning_rate` is the group's
_WAITS = "waits"


def set_learning_rate(optimizer: torch.optim.Optimizer, *rates: float | None) -> None:
    """Set the rate of a step: one for all groups, or one for each prompt of a bank.

    A group with `rate_scale` gets that multiple of it. None is for a prompt that waits, in a group of its own.
    """
    for group in optimizer.param_groups:
        rate = rates[group.get(_RATE, 0) if len(rates) > 1 else 0]
        group["lr"] = (rate or 0.0) * group.get(_RATE_SCALE, 1.0)
        group[_WAITS] = rate is None


def _hold_waiting(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
    """Clear the gradients of prompts that wait. They are 0, but weight decay and moments would still change."""
    for group in optimizer.param_groups:
        for p in group["params"] if group.get(_WAITS) else ():
            p.grad = None
