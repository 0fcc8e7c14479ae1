"""T5's attention over given queries, keys and values: the definition, and the fused kernel that replaces it.

    out = softmax(q kᵀ + bias) v        no 1/√K: T5 puts that factor into the initialisation of q

Both functions have one signature, and a test compares their outputs and gradients.

Shapes: B batch, H heads, Q query positions, S key positions, K head width.
The bias is anything that broadcasts to [B, H, Q, S]: relative position bias, mask (0 or MASKED), or their sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e9
"""Added to the score of a key that must not be seen. Finite: a row without any visible key stays free of NaN."""


def attend(q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by the faster of the two ways, as out_BHQK.

    On a CPU the fused kernel has no gradient for the bias; asked for one, it falls back to a slow composition,
    which the plain definition beats by a third.
    """
    bias_learns = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if bias_learns and q_BHQK.device.type == "cpu":
        return attend_plainly(q_BHQK, k_BHSK, v_BHSK, bias)
    return attend_fused(q_BHQK, k_BHSK, v_BHSK, bias)


def attend_plainly(q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, computed in fp32 and returned in the dtype of q.

    >>> q = torch.tensor([[[[1.0]]]]); k = torch.tensor([[[[0.0], [0.0]]]]); v = torch.tensor([[[[2.0], [4.0]]]])
    >>> attend_plainly(q, k, v, None).item(), attend_plainly(q, k, v, torch.tensor([0.0, MASKED])).item()
    (3.0, 2.0)
    """
    with torch.autocast(q_BHQK.device.type, enabled=False):
        scores_BHQS = q_BHQK.float() @ k_BHSK.float().transpose(-1, -2)
        if bias is not None:
            scores_BHQS = scores_BHQS + bias.float()
        return (scores_BHQS.softmax(-1) @ v_BHSK.float()).to(q_BHQK.dtype)


def attend_fused(q_BHQK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """The same by torch's fused kernels. On a CPU in fp32: the kernel's backward pass in bf16 is four times slower."""
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


def mask_bias(mask: Tensor | None) -> Tensor | None:
    """What to add to the scores for a mask that is True where a key may be seen.

    mask: bool [B, S], or [B, Q, S] where it depends on the query; None hides nothing.
    Returns fp32 [B, 1, 1 or Q, S], or None.
    """
    if mask is None:
        return None
    mask_B1QS = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return torch.zeros((), device=mask.device).where(mask_B1QS, MASKED)


def position_buckets(distance: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each relative position (key − query), as in Mesh-TF and T5X (Raffel et al. 2020, §2.1).

    Half of a direction's buckets hold one distance each, the others widen logarithmically up to max_distance,
    and everything farther shares the last one. Without `bidirectional`, keys after the query share bucket 0.

    distance: int64, any shape; returns int64 of the same shape in [0, buckets).

    >>> position_buckets(torch.tensor([-200, -9, -1, 0, 1, 9, 200]), True, 32, 128).tolist()
    [15, 8, 1, 0, 17, 24, 31]
    >>> position_buckets(torch.tensor([-200, -9, -1, 0, 1]), False, 32, 128).tolist()
    [31, 9, 1, 0, 0]
    """
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        offset = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    # The clamp keeps log(0) out of the branch that where() throws away.
    scale = torch.log(distance.clamp(min=1).float() / exact) / torch.log(torch.tensor(max_distance / exact))
    far = exact + (scale * (buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
