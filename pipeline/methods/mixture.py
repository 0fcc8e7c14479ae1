"""A mixture of soft prompts (Qin and Eisner 2021): its files, loss and optimizer.

    p(y | x) = Σ_k w_k p(y | [P_k; x]),   w = softmax(logits),   loss = −log p(y | x)

    mixture.json {"format": 1, "weights": [0.3, 0.7], "step": 2000, "scores": {…}}
    0/prompt.json 0/prompt.safetensors  1/…       prompts that can also be used alone

B batch, K prompts of the mixture, S input length, T target length
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.execution.context import log
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.soft_prompt import Prompt, described
from t5_pipeline.modeling.prompt_bank import BankPart
from t5_pipeline.training.loss import token_loss, token_loss_reference
from t5_pipeline.training.optimizers import PromptRule, bank_optimizer


def check_starts(starts: Sequence[Tensor], dropout: float) -> Sequence[Tensor]:
    """The components' first rows, checked to differ: equal ones have equal gradients, except for dropout.

    Raises:
        InputError: if they would stay equal.
    """
    if len(starts) > 1 and all(torch.equal(starts[0], other) for other in starts[1:]):
        same = f"prompt_init: gives all {len(starts)} components the same rows"
        if not dropout:
            raise InputError(f"{same}, so they would stay equal; use `vocabulary` or `uniform`, or set `dropout`")
        log.warning("%s, so only dropout tells them apart; `vocabulary` and `uniform` differ by component", same)
    return starts


class MixtureInfo(Record):
    """mixture.json."""

    file_name: ClassVar[str] = "mixture.json"
    what: ClassVar[str] = "a mixture of prompts"
    repair: ClassVar[str] = "run prompt_mixture again to rebuild it"

    format: Literal[1] = 1
    weights: list[float] = Field(min_length=1)
    step: int
    scores: dict[str, float]

    @field_validator("weights")
    @classmethod
    def weights_add_up(cls, value: list[float]) -> list[float]:
        if min(value) < 0 or not math.isclose(sum(value), 1, abs_tol=1e-4):
            raise ValueError("do not add up to 1")
        return value


@dataclass(frozen=True)
class Mixture:
    """Prompts of one task on one frozen T5, and their weights, which add up to 1."""

    prompts: list[Prompt]
    weights: list[float]
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    def save(self, directory: str | Path) -> None:
        for number, prompt in enumerate(self.prompts):
            prompt.save(Path(directory) / str(number))
        MixtureInfo(weights=self.weights, step=self.step, scores=self.scores).save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Mixture:
        """Read a mixture.

        Raises:
            InputError: if a file is missing or damaged, or the prompts are of different T5s.
        """
        info = MixtureInfo.load(directory)
        prompts = [Prompt.load(Path(directory) / str(number)) for number in range(len(info.weights))]
        if len({prompt.info.base_model_digest for prompt in prompts}) > 1:
            raise InputError(f"{directory}: contains prompts of different T5s; {info.repair}")
        return cls(prompts, info.weights, info.step, info.scores)


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    mixture = Mixture.load(artifact.path)
    prompts, info = [prompt.rows_PD for prompt in mixture.prompts], mixture.prompts[0].info
    about = described(info) | {
        "trained": sum(rows_PD.numel() + 1 for rows_PD in prompts),
        "variant": f"{len(prompts)} prompts",
        "step": mixture.step,
    }
    yield Candidate.of("prompt mixture", artifact, info, about, prompts=prompts, weights=mixture.weights)


# -------------------------------------------------------------------------------------------------------- training


def mixture_loss(loss_KBT: Tensor, logits_K: Tensor, weights_B: Tensor) -> Tensor:
    """Σ_b weights_b·(−log Σ_k w_k exp(−Σ_t loss_kbt)), a single number [1].

    The token losses are those of `token_loss`, each with its z-loss. With one prompt it is the loss of prompt tuning.

    >>> loss_KBT = torch.tensor([[[1.0, 1.0]], [[3.0, 2.0]]])
    >>> mixture_loss(loss_KBT, torch.zeros(2), torch.ones(1))    # −log(½e⁻² + ½e⁻⁵)
    tensor([2.6446])
    """
    log_p_KB = -loss_KBT.sum(dim=2)
    log_mixed_B = (logits_K.log_softmax(dim=0)[:, None] + log_p_KB).logsumexp(dim=0)
    return -(log_mixed_B * weights_B).sum().unsqueeze(0)


class MixtureModel(nn.Module):
    """A mixture in training: a prompted model and the logits of its prompts' weights, which start equal."""

    def __init__(self, model: nn.Module, prompts: int, pad: int = 0) -> None:
        """
        Args:
            model: gives logits [B, T, V] for (prompt_B, inputs_BS, targets_BT).
            prompts: number of prompts, K.
            pad: id of padding.
        """
        super().__init__()
        self.model = model
        self.pad = pad
        self.logits_K = nn.Parameter(torch.zeros(prompts))

    def forward(
        self, inputs_BS: Tensor, targets_BT: Tensor, weights_B: Tensor, z_loss: float, reference: bool = False
    ) -> Tensor:
        """The loss of a batch [1], in nats; each example is read once with every prompt.

        Args:
            weights_B: weight of each example, as of `batch_losses`.
            z_loss: factor of (log Z)² in the token losses, as of `token_loss`.
            reference: compute the token losses by their definition.
        """
        K, B = len(self.logits_K), len(inputs_BS)
        # On the device, because a CUDA graph cannot copy from the host.
        prompt_N = torch.arange(K, device=inputs_BS.device).unsqueeze(1).expand(K, B).flatten()
        targets_NT = targets_BT.repeat(K, 1)
        of_tokens = token_loss_reference if reference else token_loss
        loss_NT = of_tokens(self.model(prompt_N, inputs_BS.repeat(K, 1), targets_NT), targets_NT, z_loss, self.pad)
        return mixture_loss(loss_NT.view(K, B, -1), self.logits_K, weights_B)

    @property
    def weights(self) -> list[float]:
        """The weight of each prompt, which add up to 1."""
        found: list[float] = self.logits_K.detach().double().softmax(dim=0).cpu().tolist()
        return found


def mixture_optimizer(
    name: str,
    rows_RD: Tensor,
    row_prompt_R: Tensor,
    logits_K: Tensor,
    weight_decay: float,
    rate_of_logits: float,
    step_offset: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer of a prompt bank, with the logits in a parameter group of their own, without weight decay.

    Args:
        rate_of_logits: learning rate of the logits, as a multiple of the prompts'.
        step_offset: steps that Adafactor's β₂ counts before the first.
    """
    parts = [BankPart([0], row_prompt_R), BankPart([1], None, factors=True)]
    rules = [
        PromptRule(weight_decay, step_offset=step_offset),
        PromptRule(step_offset=step_offset, factor_rate=rate_of_logits),
    ]
    return bank_optimizer(name, [rows_RD, logits_K], parts, rules)
