"""Greedy decoding.

B inputs, K prompts of a mixture, R = K·B rows, S encoder length (prompt included), T decoded length, D d_model,
V vocabulary rows
"""

from __future__ import annotations

import torch
from torch import Tensor

from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.layers import DecoderCache

START = 0  # T5's decoder begins with the padding id


@torch.no_grad()
def greedy(
    model: ReadingModel,
    encoded_RSD: Tensor,
    mask_RS: Tensor | None,
    max_length: int,
    eos: int = 1,
    log_w_K: Tensor | None = None,
) -> Tensor:
    """The likeliest next token, repeatedly, until every input has its `eos` or `max_length` tokens.

    Args:
        encoded_RSD, mask_RS: output of the model's `encode`; row k·B + b is input b read with prompt k.
        log_w_K: log weights of a mixture of prompts, p(y) = Σ_k w_k p_k(y); None for one prompt.

    Returns:
        Ids [B, T], T ≤ max_length: each row up to its `eos` (if it was generated), then zeros.
    """
    cache = DecoderCache()
    K = 1 if log_w_K is None else len(log_w_K)
    B = encoded_RSD.size(0) // K
    next_B = torch.full((B,), START, device=encoded_RSD.device)
    done_B = torch.zeros(B, dtype=torch.bool, device=encoded_RSD.device)
    log_p_KB1 = None if log_w_K is None else log_w_K.view(K, 1, 1).expand(K, B, 1)
    decoded: list[Tensor] = []
    while len(decoded) < max_length and not done_B.all():
        hidden_R1D = model.decode(next_B.repeat(K).unsqueeze(1), encoded_RSD, mask_RS, cache)
        logits_RV = model.logits(hidden_R1D).squeeze(1)
        if log_p_KB1 is None:
            next_B = logits_RV.argmax(dim=-1)
        else:
            # w_k p_k of the tokens so far and each next one.
            log_p_KBV = log_p_KB1 + logits_RV.view(K, B, -1).log_softmax(dim=-1)
            next_B = log_p_KBV.logsumexp(dim=0).argmax(dim=-1)
            log_p_KB1 = log_p_KBV.gather(2, next_B.view(1, B, 1).expand(K, B, 1))
        next_B = next_B.masked_fill(done_B, 0)
        done_B = done_B | (next_B == eos)
        decoded.append(next_B)
    return torch.stack(decoded, dim=1) if decoded else next_B.new_zeros(B, 0)
