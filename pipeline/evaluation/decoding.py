"""Greedy decoding.

B batch, S encoder length (prompt included), T decoded length, D d_model
"""

from __future__ import annotations

import torch
from torch import Tensor

from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.layers import DecoderCache


@torch.no_grad()
def greedy(model: ReadingModel, encoded_BSD: Tensor, mask_BS: Tensor | None, max_length: int) -> Tensor:
    """The likeliest next token, repeatedly, until every row has its EOS or `max_length` tokens.

    Args:
        encoded_BSD, mask_BS: output of the model's `encode`.

    Returns:
        Ids [B, T], T ≤ max_length: each row up to its EOS (if it was generated), then padding.
    """
    cache, special = DecoderCache(), model.special
    batch = encoded_BSD.size(0)
    next_B = torch.full((batch,), special.start, device=encoded_BSD.device)
    done_B = torch.zeros(batch, dtype=torch.bool, device=encoded_BSD.device)
    decoded: list[Tensor] = []
    while len(decoded) < max_length and not done_B.all():
        hidden_B1D = model.decode(next_B.unsqueeze(1), encoded_BSD, mask_BS, cache)
        next_B = model.logits(hidden_B1D).squeeze(1).argmax(dim=-1).masked_fill(done_B, special.pad)
        done_B = done_B | (next_B == special.eos)
        decoded.append(next_B)
    return torch.stack(decoded, dim=1) if decoded else next_B.new_zeros(batch, 0)
