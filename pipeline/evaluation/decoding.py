"""Greedy decoding.

B batch, R decoder rows (B, or L·B), S encoder length (prompt included), T decoded length, D d_model, V vocabulary rows
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from t5_pipeline.modeling.layers import DecoderCache

START = 0  # T5's decoder begins with the padding id


class AnsweringModel(Protocol):
    """The half of a T5 that answers: `T5` and `BareT5` alike, in eval mode."""

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """Output [R, T, D]; decoder rows i·L … i·L+L−1 read input i."""

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        """fp32 logits [R, T, V]."""


@torch.no_grad()
def greedy(model: AnsweringModel, encoded_BSD: Tensor, mask_BS: Tensor | None, max_length: int, eos: int = 1) -> Tensor:
    """The likeliest next token again and again, until every row has its `eos` or `max_length` tokens.

    encoded_BSD and mask_BS are what the model's `encode` gave. Returns ids [B, T], T ≤ max_length: each row with its
    `eos` (if it came), then zeros.
    """
    cache = DecoderCache()
    batch = encoded_BSD.size(0)
    next_B = torch.full((batch,), START, device=encoded_BSD.device)
    done_B = torch.zeros(batch, dtype=torch.bool, device=encoded_BSD.device)
    decoded: list[Tensor] = []
    while len(decoded) < max_length and not done_B.all():
        hidden_B1D = model.decode(next_B.unsqueeze(1), encoded_BSD, mask_BS, cache)
        next_B = model.logits(hidden_B1D).squeeze(1).argmax(dim=-1).masked_fill(done_B, 0)
        done_B = done_B | (next_B == eos)
        decoded.append(next_B)
    return torch.stack(decoded, dim=1) if decoded else next_B.new_zeros(batch, 0)
