"""T5's attention over given queries, keys and values: the reference, and faster implementations.

    out = softmax(q kᵀ + bias) v        no 1/√K: T5 puts that factor into the initialization of q

Tests compare outputs and gradients of all implementations.

Shapes: B batch, H heads, Q query positions, S key positions, K head width.
The bias broadcasts to [B, H, Q, S]: relative position bias, mask (0 or MASKED), or their sum. A mask can also be passed
separately, so that a bias shared by all examples stays [1, H, Q, S], and so does its gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.modeling.compilation import CompiledForward

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MASKED = -1e9
"""Added to the score of a hidden key. Finite, so that a row without any visible key does not become NaN."""


def attend(q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Attention by the fastest of the three implementations.

    On a CPU, torch's fused kernel has no gradient for the bias (it falls back to a composition that is slower than the
    reference), and in bf16 it is slower than plain products. A compiler fuses what lies between the products.

    Args:
        bias: broadcasts to [B, H, Q, S].
        mask: 0 or MASKED, broadcasts to [B, H, Q, S]; added to the bias.

    Returns:
        [B, H, Q, K].
    """
    if in_bf16_on_cpu(q_BHQK):
        if torch.compiler.is_compiling():
            return attention_reference(q_BHQK, k_BHSK, v_BHSK, bias, mask, torch.bfloat16)
        return attend_by_products(q_BHQK, k_BHSK, v_BHSK, bias, mask)
    bias_learns = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if bias_learns and q_BHQK.device.type == "cpu":
        return attention_reference(q_BHQK, k_BHSK, v_BHSK, bias, mask)
    return attend_fused(q_BHQK, k_BHSK, v_BHSK, bias, mask)


def attention_reference(
    q_BHQK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    bias: Tensor | None,
    mask: Tensor | None = None,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Attention as defined, computed in fp32 or in `compute`, and returned in the dtype of q.

    >>> q = torch.tensor([[[[1.0]]]]); k = torch.tensor([[[[0.0], [0.0]]]]); v = torch.tensor([[[[2.0], [4.0]]]])
    >>> attention_reference(q, k, v, None).item(), attention_reference(q, k, v, torch.tensor([0.0, MASKED])).item()
    (3.0, 2.0)
    """
    with torch.autocast(q_BHQK.device.type, enabled=False):
        scores_BHQS = q_BHQK.to(compute) @ k_BHSK.to(compute).transpose(-1, -2)
        for added in (bias, mask):
            if added is not None:
                scores_BHQS = scores_BHQS + added.to(compute)
        return (scores_BHQS.softmax(-1) @ v_BHSK.to(compute)).to(q_BHQK.dtype)


def attend_fused(
    q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Attention by torch's fused kernels; on a CPU in fp32, where their backward pass is faster than in bf16."""
    if mask is not None:
        bias = mask if bias is None else bias + mask
    dtype = q_BHQK.dtype
    compute = torch.float32 if q_BHQK.device.type == "cpu" else dtype
    with torch.autocast(q_BHQK.device.type, enabled=False):
        return F.scaled_dot_product_attention(
            q_BHQK.to(compute),
            k_BHSK.to(compute),
            v_BHSK.to(compute),
            attn_mask=None if bias is None else bias.to(compute),
            scale=1.0,
        ).to(dtype)


def attend_flex(
    q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, table_HN: Tensor, far: int, visible: BlockMask
) -> Tensor:
    """Attention by FlexAttention, which looks up position biases and never stores scores; fast if compiled, on a GPU.

    Args:
        table_HN: bias of the distances −far … far, fp32 [H, 2·far + 1]; farther ones share those at the ends.
        visible: from `block_mask`; whole blocks of hidden keys are skipped.
    """
    from torch.nn.attention.flex_attention import flex_attention

    def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + table_HN[h, (k - q).clamp(-far, far) + far]

    with torch.autocast(q_BHQK.device.type, enabled=False):
        out_BHQK: Tensor = flex_attention(q_BHQK, k_BHSK, v_BHSK, biased, visible, scale=1.0)  # type: ignore[assignment]
    return out_BHQK


compiled_flex = CompiledForward(attend_flex, dynamic=False)
"""`attend_flex`, compiled for each size of a batch: torch 2.11 and 2.13 cannot compile it for all sizes at once."""


def block_mask(mask: Tensor) -> BlockMask:
    """The mask of `attend_flex`.

    Args:
        mask: True at visible keys, bool [B, S], or [1 or B, S, S] if it depends on the query.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    visible_BQS = mask[:, None] if mask.dim() == 2 else mask
    rows, queries = len(mask) > 1, mask.dim() == 3

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible_BQS[b if rows else 0, q if queries else 0, k]

    length = mask.size(-1)
    return create_block_mask(seen, len(mask), None, length, length, device=str(mask.device))


def in_bf16_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and its matrix products are in bf16, by its dtype or by autocast."""
    if x.device.type != "cpu":
        return False
    return x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def attend_by_products(
    q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Attention in bf16, with sums and softmax in fp32 internally; T5X too keeps scores in the model's dtype."""
    dtype = q_BHQK.dtype
    with torch.autocast(q_BHQK.device.type, enabled=False):
        out_BHQK: Tensor = _Products.apply(
            q_BHQK,
            k_BHSK,
            v_BHSK,
            None if bias is None else bias.to(dtype),
            None if mask is None else mask.to(dtype),
        )
    return out_BHQK


def attend_to_states(
    q_BHQK: Tensor,
    key_ED: Tensor,
    value_ED: Tensor,
    states_BSD: Tensor,
    bias: Tensor | None,
    kept_BHS1: Tensor | None = None,
) -> Tensor:
    """Attention to projected states, without computing their keys and values.

        q (y Kᵀ)ᵀ = (q K) yᵀ        softmax(…) (y Vᵀ) = (softmax(…) y) Vᵀ        for each head

    Takes far fewer products for few queries (the tokens of a label), more for many: see limits.attends_without_keys.

    Args:
        key_ED, value_ED: weights of the projections, E = H·K.
        kept_BHS1: dropout mask of each key's value.
    """
    dtype, (H, Q) = q_BHQK.dtype, q_BHQK.shape[1:3]
    with torch.autocast(q_BHQK.device.type, enabled=False):
        states_BSD = states_BSD.to(dtype)
        key_HKD, value_HKD = (weight.to(dtype).unflatten(0, (H, -1)) for weight in (key_ED, value_ED))
        asked_BHQD = torch.einsum("bhqk,hkd->bhqd", q_BHQK, key_HKD)
        scores_BHQS = (asked_BHQD.flatten(1, 2) @ states_BSD.mT).unflatten(1, (H, Q))
        if bias is not None:
            scores_BHQS = scores_BHQS + bias.to(dtype)
        weights_BHQS = scores_BHQS.softmax(-1)
        if kept_BHS1 is not None:
            weights_BHQS = weights_BHQS * kept_BHS1.mT
        seen_BHQD = (weights_BHQS.flatten(1, 2) @ states_BSD).unflatten(1, (H, Q))
        return torch.einsum("bhqd,hkd->bhqk", seen_BHQD, value_HKD)


class _Products(torch.autograd.Function):
    """Attention with a handwritten gradient: five products and as few passes over the scores as possible."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        B, H, Q, S = *q.shape[:3], k.size(2)
        q, k, v = (x.reshape(B * H, -1, x.size(-1)) for x in (q, k, v))
        if bias is None and mask is None:
            scores = torch.bmm(q, k.mT)
        else:
            # The bias is added before the product is rounded.
            scores = q.new_empty(B, H, Q, S)
            if bias is not None and mask is not None:
                torch.add(bias, mask, out=scores) if _spans(bias, mask, scores) else scores.copy_(bias).add_(mask)
            else:
                scores.copy_(bias if bias is not None else mask)  # type: ignore[arg-type]
            scores = scores.view(B * H, Q, S).baddbmm_(q, k.mT)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.bias_shape = None if bias is None else bias.shape
        return torch.bmm(weights, v).view(B, H, Q, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        B, H = gradients[0].shape[:2]
        out = gradients[0].reshape(B * H, -1, v.size(-1))
        v_gradient = torch.bmm(weights.mT, out)
        scores = torch._softmax_backward_data(torch.bmm(out, v.mT), weights, -1, weights.dtype)
        q_gradient, k_gradient = torch.bmm(scores, k), torch.bmm(scores.mT, q)
        bias_gradient = None
        if ctx.needs_input_grad[3]:
            bias_gradient = scores.view(B, H, *scores.shape[1:]).sum_to_size(ctx.bias_shape)
        q_gradient, k_gradient, v_gradient = (
            x.view(B, H, -1, x.size(-1)) for x in (q_gradient, k_gradient, v_gradient)
        )
        return q_gradient, k_gradient, v_gradient, bias_gradient, None


def _spans(a: Tensor, b: Tensor, whole: Tensor) -> bool:
    return torch.broadcast_shapes(a.shape, b.shape) == whole.shape


def mask_bias(mask: Tensor | None) -> Tensor | None:
    """The mask as a bias to add to the scores.

    Args:
        mask: True at visible keys, bool [B, S], or [B, Q, S] if it depends on the query; None hides nothing.

    Returns:
        fp32 [B, 1, 1 or Q, S], or None.
    """
    if mask is None:
        return None
    mask_B1QS = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return torch.zeros((), device=mask.device).where(mask_B1QS, MASKED)
