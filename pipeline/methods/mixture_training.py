"""The loss of a mixture of soft prompts (Qin and Eisner 2021), and its optimizer.

    p(y | x) = Σ_k w_k p(y | [P_k; x]),   w = softmax(logits),   loss = −log p(y | x)

B batch, K prompts of the mixture, S input length, T target length
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t5_pipeline.training.loss import token_loss, token_loss_reference
from t5_pipeline.training.optimizers import RATE_SCALE, prompt_optimizer


def mixture_loss(loss_KBT: Tensor, logits_K: Tensor, weights_B: Tensor) -> Tensor:
    """Σ_b weights_b·(−log Σ_k w_k exp(−Σ_t loss_kbt)), a single number [1].

    The token losses are those of `token_loss`, each with its z-loss; with one prompt this is prompt tuning's loss.

    >>> loss_KBT = torch.tensor([[[1.0, 1.0]], [[3.0, 2.0]]])
    >>> mixture_loss(loss_KBT, torch.zeros(2), torch.ones(1))    # −log(½e⁻² + ½e⁻⁵)
    tensor([2.6446])
    """
    log_p_KB = -loss_KBT.sum(dim=2)
    log_mixed_B = (logits_K.log_softmax(dim=0)[:, None] + log_p_KB).logsumexp(dim=0)
    return -(log_mixed_B * weights_B).sum().unsqueeze(0)


class MixtureWeights(nn.Module):
    """A model whose prompts are mixed, and the logits of their weights, equal at first."""

    def __init__(self, model: nn.Module, prompts: int) -> None:
        """model: gives logits [B, T, V] of (prompt_B, inputs_BS, targets_BT)."""
        super().__init__()
        self.model = model
        self.logits_K = nn.Parameter(torch.zeros(prompts))

    def forward(
        self, inputs_BS: Tensor, targets_BT: Tensor, weights_B: Tensor, z_loss: float, reference: bool = False
    ) -> Tensor:
        """The loss of a batch, each example read once with every prompt, [1]."""
        K, B = len(self.logits_K), len(inputs_BS)
        prompt_N = torch.arange(K).repeat_interleave(B)
        targets_NT = targets_BT.repeat(K, 1)
        of_tokens = token_loss_reference if reference else token_loss
        loss_NT = of_tokens(self.model(prompt_N, inputs_BS.repeat(K, 1), targets_NT), targets_NT, z_loss)
        return mixture_loss(loss_NT.view(K, B, -1), self.logits_K, weights_B)

    @property
    def weights(self) -> list[float]:
        found: list[float] = self.logits_K.detach().double().softmax(dim=0).cpu().tolist()
        return found


def mixture_optimizer(
    name: str, rows_RD: Tensor, row_prompt_R: Tensor, logits_K: Tensor, weight_decay: float, rate_of_logits: float
) -> torch.optim.Optimizer:
    """The optimizer of a bank of prompts, with the logits in a group of their own, without weight decay.

    Args:
        rate_of_logits: their learning rate, as a multiple of the prompts'.
    """
    optimizer = prompt_optimizer(name, rows_RD, row_prompt_R, weight_decay)
    optimizer.add_param_group({"params": [logits_K], "weight_decay": 0.0, RATE_SCALE: rate_of_logits})
    return optimizer
