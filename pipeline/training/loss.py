"""Cross entropy with z-loss, and how token losses become the losses of a batch.

B batch, T target length, V vocabulary rows, C prompts in the bank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PAD = 0


def token_loss(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float = 0.0) -> Tensor:
    """−log p(target) + z_loss·(log Z)² of every token, in nats, [B, T] fp32; 0 where the target is padding (0).

    log Z = log Σ exp(logits): the second term keeps it near 0, as in T5X (1e-4 there).

    >>> logits_BTV = torch.tensor([[[0.0, 0.0, 1.0], [5.0, 0.0, 0.0]]])
    >>> token_loss(logits_BTV, torch.tensor([[2, 0]]))
    tensor([[0.5514, 0.0000]])
    """
    loss_BT: Tensor = _TokenLoss.apply(logits_BTV.float(), targets_BT.long(), z_loss)
    return loss_BT


def token_loss_plainly(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float = 0.0) -> Tensor:
    """`token_loss` as its formula reads; autograd then keeps and passes over several tensors of the logits' size."""
    logits_BTV = logits_BTV.float()
    log_z_BT = logits_BTV.logsumexp(dim=-1)
    target_BT = logits_BTV.gather(-1, targets_BT.long().unsqueeze(-1)).squeeze(-1)
    loss_BT = log_z_BT - target_BT + z_loss * log_z_BT.square()
    return torch.where(targets_BT != PAD, loss_BT, 0.0)


class _TokenLoss(torch.autograd.Function):
    """The loss with its gradient written out, ∂/∂logits = softmax·(1 + 2·z_loss·log Z) − onehot: half the time."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, targets_BT: Tensor, z_loss: float) -> Tensor:
        log_z_BT = logits_BTV.logsumexp(dim=-1)
        target_BT = logits_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits_BTV, targets_BT, log_z_BT)
        ctx.z_loss = z_loss
        return torch.where(targets_BT != PAD, log_z_BT - target_BT + z_loss * log_z_BT.square(), 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_BTV, targets_BT, log_z_BT = ctx.saved_tensors
        gradient_BT = torch.where(targets_BT != PAD, gradients[0], 0.0)
        gradient_BTV = torch.sub(logits_BTV, log_z_BT.unsqueeze(-1)).exp_()
        gradient_BTV.mul_((gradient_BT * (1 + 2 * ctx.z_loss * log_z_BT)).unsqueeze(-1))
        gradient_BTV.scatter_add_(-1, targets_BT.unsqueeze(-1), -gradient_BT.unsqueeze(-1))
        return gradient_BTV, None, None


def batch_losses(loss_BT: Tensor, weights_B: Tensor, prompt_B: Tensor, prompts: int = 1) -> Tensor:
    """Σ weights_B·Σ_T loss_BT of each prompt's own rows, [C] with C = `prompts`.

    A row's weight carries the normalisation over the *global* batch (1/target tokens for a mean, 1 for a sum), so the
    losses of microbatches and of ranks add up to the loss of the whole, exactly. Back-propagate the sum over C: a
    prompt's loss reaches no other prompt.

    >>> batch_losses(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.5, 1.0]), torch.tensor([0, 1]), prompts=2)
    tensor([2., 2.])
    """
    row_B = loss_BT.sum(dim=1) * weights_B
    return torch.zeros(prompts, dtype=row_B.dtype, device=row_B.device).index_add(0, prompt_B.long(), row_B)
