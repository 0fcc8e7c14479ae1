"""Cross entropy with z-loss, of tokens and of batches.

B batch, T target length, D d_model, V vocabulary rows, C prompts in the bank, N target tokens, n some of them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from t5_pipeline.config.stage import Precision
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.limits import LOSS_ROWS
from t5_pipeline.training.segment_sums import segment_sums


def token_loss(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float = 0.0, pad: int = 0) -> Tensor:
    """−log p(target) + z_loss·(log Z)² of every token, in nats, [B, T] fp32; 0 where the target is padding.

    log Z = log Σ exp(logits): the second term keeps it near 0, as in T5X (1e-4 there).

    >>> logits_BTV = torch.tensor([[[0.0, 0.0, 1.0], [5.0, 0.0, 0.0]]])
    >>> token_loss(logits_BTV, torch.tensor([[2, 0]]))
    tensor([[0.5514, 0.0000]])
    """
    loss_BT: Tensor = _TokenLoss.apply(logits_BTV.float(), targets_BT.long(), z_loss, pad)
    return loss_BT


def token_loss_reference(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float = 0.0, pad: int = 0) -> Tensor:
    """Reference for `token_loss`: its formula as written. Autograd keeps several tensors of the logits' size."""
    logits_BTV = logits_BTV.float()
    log_z_BT = logits_BTV.logsumexp(dim=-1)
    target_BT = logits_BTV.gather(-1, targets_BT.long().unsqueeze(-1)).squeeze(-1)
    loss_BT = log_z_BT - target_BT + z_loss * log_z_BT.square()
    return torch.where(targets_BT != pad, loss_BT, 0.0)


class _TokenLoss(torch.autograd.Function):
    """The loss with an explicit gradient, ∂/∂logits = softmax·(1 + 2·z_loss·log Z) − onehot, to save time."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, targets_BT: Tensor, z_loss: float, pad: int) -> Tensor:
        log_z_BT = logits_BTV.logsumexp(dim=-1)
        target_BT = logits_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits_BTV, targets_BT, log_z_BT)
        ctx.z_loss, ctx.pad = z_loss, pad
        return torch.where(targets_BT != pad, log_z_BT - target_BT + z_loss * log_z_BT.square(), 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits_BTV, targets_BT, log_z_BT = ctx.saved_tensors
        gradient_BT = torch.where(targets_BT != ctx.pad, gradients[0], 0.0)
        gradient_BTV = torch.sub(logits_BTV, log_z_BT.unsqueeze(-1)).exp_()
        gradient_BTV.mul_((gradient_BT * (1 + 2 * ctx.z_loss * log_z_BT)).unsqueeze(-1))
        gradient_BTV.scatter_add_(-1, targets_BT.unsqueeze(-1), -gradient_BT.unsqueeze(-1))
        return gradient_BTV, None, None, None


def output_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    z_loss: float = 0.0,
    precision: Precision = "bf16",
    pad: int = 0,
) -> Tensor:
    """`token_loss` [B, T], fp32, of the logits hidden·weightᵀ, without storing all of them at once.

    On a CPU the logits of padding are not computed (on a GPU, selecting rows would make the host wait for the device),
    and the gradient of all logits is kept. A GPU computes the logits again in the backward pass: their product is a
    small part of a step, and all logits of a batch would be a large part of the memory. Softmax, log Z and loss are
    fp32.

    Args:
        precision: of the product. bf16 leaves `hidden_BTD` in its dtype: if that is bf16, the factors and each logit
            are rounded, but not the sum (a TPU rounds the factors even of T5X's fp32 product). fp32 rounds nothing.
    """
    real_BT = targets_BT != pad
    on_cpu = hidden_BTD.device.type == "cpu"
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        hidden_ND = hidden_BTD[real_BT] if on_cpu else hidden_BTD.flatten(0, 1)
        targets_N = targets_BT[real_BT] if on_cpu else targets_BT.flatten()
        hidden_ND = hidden_ND.float() if precision == "fp32" else hidden_ND
        way = _OutputLoss if on_cpu else _RecomputedLoss
        loss_N: Tensor = way.apply(hidden_ND, weight_VD, targets_N.long(), z_loss)
    if on_cpu:
        return torch.zeros(targets_BT.shape).masked_scatter(real_BT, loss_N)
    return torch.where(real_BT, loss_N.view(targets_BT.shape), 0.0)


class OutputModel(Protocol):
    """A model whose decoder outputs become logits: a T5, or one with prompts."""

    @property
    def special(self) -> SpecialTokens: ...
    def logits(self, hidden_BTD: Tensor, /) -> Tensor: ...
    def before_logits(self, hidden_BTD: Tensor, /) -> tuple[Tensor, Tensor]: ...


class LossSettings(Protocol):
    """The settings of a stage that decide the loss of a token."""

    @property
    def z_loss(self) -> float: ...
    @property
    def logits_precision(self) -> Precision: ...
    @property
    def reference_ops(self) -> Sequence[str]: ...


def model_loss(
    model: OutputModel,
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    z_loss: float,
    precision: Precision,
    reference: bool,
) -> Tensor:
    """Loss [B, T] of a model's decoder outputs: `output_loss`, or with `reference` its definition on fp32 logits."""
    if reference:
        return token_loss_reference(model.logits(hidden_BTD), targets_BT, z_loss, model.special.pad)
    hidden_BTD, weight_VD = model.before_logits(hidden_BTD)
    return output_loss(hidden_BTD, weight_VD, targets_BT, z_loss, precision, model.special.pad)


def target_loss(model: OutputModel, hidden_BTD: Tensor, targets_BT: Tensor, c: LossSettings) -> Tensor:
    """Loss [B, T] of each target token from the decoder's outputs, with the settings of a stage."""
    return model_loss(model, hidden_BTD, targets_BT, c.z_loss, c.logits_precision, "loss" in c.reference_ops)


class _OutputLoss(torch.autograd.Function):
    """The loss of each token, computed for a few rows of logits at a time; only the gradient of the logits is kept.

    It is kept in the dtype of `hidden_ND`, for a loss gradient of 1; backward scales the rows for any other.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
        weight = weight_VD.to(hidden_ND.dtype)
        needed = any(ctx.needs_input_grad[:2])
        losses, gradients = [], []
        n = LOSS_ROWS.get(hidden_ND.device.type, 512)
        for hidden_nD, targets_n in zip(hidden_ND.split(n), targets_N.split(n), strict=True):
            p_nV, log_z_n1, loss_n1 = _softmax_and_loss(hidden_nD @ weight.T, targets_n.unsqueeze(-1), z_loss)
            losses.append(loss_n1.squeeze(-1))
            if needed:
                p_nV *= 1 + 2 * z_loss * log_z_n1
                p_nV.scatter_add_(-1, targets_n.unsqueeze(-1), -torch.ones_like(log_z_n1))
                gradients.append(p_nV.to(hidden_ND.dtype))
        if needed:
            gradient_NV = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
            ctx.save_for_backward(hidden_ND, weight, gradient_NV)
            ctx.weight_dtype = weight_VD.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, weight, gradient_NV = ctx.saved_tensors
        scale_N1 = gradients[0].unsqueeze(-1)  # fp32: every gradient is rounded once
        hidden_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            hidden_gradient = (gradient_NV @ weight).mul_(scale_N1)
        if ctx.needs_input_grad[1]:
            scaled_ND = (hidden_ND * scale_N1).to(hidden_ND.dtype)
            weight_gradient = (gradient_NV.T @ scaled_ND).to(ctx.weight_dtype)
        return hidden_gradient, weight_gradient, None, None


class _RecomputedLoss(torch.autograd.Function):
    """`_OutputLoss` that keeps nothing of the logits: backward computes them again, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.z_loss = z_loss
        weight, n = weight_VD.to(hidden_ND.dtype), LOSS_ROWS.get(hidden_ND.device.type, 512)
        losses = [
            _softmax_and_loss(hidden_nD @ weight.T, targets_n1, z_loss)[2]
            for hidden_nD, targets_n1 in zip(hidden_ND.split(n), targets_N.unsqueeze(-1).split(n), strict=True)
        ]
        return torch.cat(losses).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        dtype = hidden_ND.dtype
        weight, n = weight_VD.to(dtype), LOSS_ROWS.get(hidden_ND.device.type, 512)
        weight_gradient = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        hidden_gradients = []
        columns = (hidden_ND, targets_N.unsqueeze(-1), gradients[0].unsqueeze(-1))
        for hidden_nD, targets_n1, scale_n1 in zip(*(x.split(n) for x in columns), strict=True):
            p_nV, log_z_n1, _ = _softmax_and_loss(hidden_nD @ weight.T, targets_n1, ctx.z_loss)
            p_nV *= (1 + 2 * ctx.z_loss * log_z_n1) * scale_n1
            p_nV.scatter_add_(-1, targets_n1, -scale_n1)
            gradient_nV = p_nV.to(dtype)
            if ctx.needs_input_grad[0]:
                hidden_gradients.append(gradient_nV @ weight)
            if weight_gradient is not None:
                weight_gradient += gradient_nV.T @ hidden_nD
        return torch.cat(hidden_gradients) if hidden_gradients else None, weight_gradient, None, None


def _softmax_and_loss(logits_nV: Tensor, targets_n1: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax [n, V], log Z [n, 1] and loss [n, 1] of a few rows of logits, all fp32."""
    p_nV = logits_nV.softmax(-1, dtype=torch.float32)
    # log Z from the likeliest token: much faster than logsumexp on a CPU.
    log_z_n1 = logits_nV.amax(-1, keepdim=True).float() - p_nV.amax(-1, keepdim=True).log()
    target_n1 = logits_nV.gather(-1, targets_n1).float()
    return p_nV, log_z_n1, log_z_n1 - target_n1 + z_loss * log_z_n1.square()


def batch_losses(loss_BT: Tensor, weights_B: Tensor, prompt_B: Tensor, prompts: int = 1) -> Tensor:
    """Σ weights_B·Σ_T loss_BT over each prompt's own rows, [C] with C = `prompts`.

    A row's weight contains the normalization over the *global* batch (1/target tokens for a mean, 1 for a sum), so the
    losses of microbatches and ranks add up to the loss of the global batch. Back-propagate the sum over C: the loss of
    one prompt has no gradient in another.

    >>> batch_losses(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.5, 1.0]), torch.tensor([0, 1]), prompts=2)
    tensor([2., 2.])
    """
    row_B = loss_BT.sum(dim=1) * weights_B
    return segment_sums(row_B, prompt_B.long(), prompts)
