"""Decoding of free text: greedy, by sampling, and by beam search.

B batch, K beams, S encoder length (prompt included), T decoded length, D d_model, V vocabulary rows, N = 2·K
continuations of an input
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.layers import DecoderCache

START = 0  # T5's decoder begins with the padding id
_STREAM = "predict/sampling"


@dataclass(frozen=True)
class Decoding:
    """The way to decode free text; by default greedily.

    Attributes:
        beams: number of beams; 1 for none.
        length_penalty: beam search: a text's log p is divided by its number of tokens to this power.
        temperature: above 0, tokens are sampled from softmax(logits / temperature).
        top_p: sampling: only from the likeliest tokens that together have at least this probability.
        seed: sampling: with an input's number, it decides the draws of that input.
    """

    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def decode(
        self,
        model: ReadingModel,
        encoded_BSD: Tensor,
        mask_BS: Tensor | None,
        max_length: int,
        numbers_B: Sequence[int],
    ) -> Tensor:
        """Ids [B, T], T ≤ max_length, as `greedy` returns them.

        Args:
            encoded_BSD, mask_BS: output of the model's `encode`.
            numbers_B: number of each input, which its draws depend on; its place in the batch has no influence.
        """
        if self.beams > 1:
            return beam_search(model, encoded_BSD, mask_BS, max_length, self.beams, self.length_penalty)
        if not self.temperature:
            return greedy(model, encoded_BSD, mask_BS, max_length)

        def draw(logits_BV: Tensor, position: int) -> Tensor:
            drawn_B = torch.from_numpy(uniform(bits(self.seed, _STREAM, list(numbers_B), position)))
            return sampled(logits_BV, drawn_B.to(logits_BV.device), self.temperature, self.top_p)

        return token_by_token(model, encoded_BSD, mask_BS, max_length, draw)


def greedy(model: ReadingModel, encoded_BSD: Tensor, mask_BS: Tensor | None, max_length: int, eos: int = 1) -> Tensor:
    """The likeliest next token, repeatedly, until every row has its `eos` or `max_length` tokens.

    Args:
        encoded_BSD, mask_BS: output of the model's `encode`.

    Returns:
        Ids [B, T], T ≤ max_length: each row up to its `eos` (if it was generated), then zeros.
    """
    return token_by_token(model, encoded_BSD, mask_BS, max_length, lambda logits_BV, _: logits_BV.argmax(dim=-1), eos)


@torch.no_grad()
def token_by_token(
    model: ReadingModel,
    encoded_BSD: Tensor,
    mask_BS: Tensor | None,
    max_length: int,
    choose: Callable[[Tensor, int], Tensor],
    eos: int = 1,
) -> Tensor:
    """Like `greedy`, with the next tokens [B] given by `choose(logits_BV, position)`."""
    cache = DecoderCache()
    batch = encoded_BSD.size(0)
    next_B = torch.full((batch,), START, device=encoded_BSD.device)
    done_B = torch.zeros(batch, dtype=torch.bool, device=encoded_BSD.device)
    decoded: list[Tensor] = []
    while len(decoded) < max_length and not done_B.all():
        hidden_B1D = model.decode(next_B.unsqueeze(1), encoded_BSD, mask_BS, cache)
        next_B = choose(model.logits(hidden_B1D).squeeze(1), len(decoded)).masked_fill(done_B, 0)
        done_B = done_B | (next_B == eos)
        decoded.append(next_B)
    return torch.stack(decoded, dim=1) if decoded else next_B.new_zeros(batch, 0)


def sampled(logits_BV: Tensor, drawn_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """The token [B] at which the cumulative probability, from the likeliest token down, exceeds a number in [0, 1).

    Args:
        drawn_B: one number for each row.

    >>> logits_BV = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(3, 1)
    >>> sampled(logits_BV, torch.tensor([0.49, 0.79, 0.81]), temperature=1, top_p=1).tolist()
    [0, 1, 2]
    >>> sampled(logits_BV, torch.tensor([0.49, 0.79, 0.81]), temperature=1, top_p=0.7).tolist()
    [0, 1, 1]
    """
    p_BV, token_BV = (logits_BV.double() / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    until_BV = p_BV.cumsum(dim=-1)
    kept_B1 = (until_BV - p_BV < top_p).sum(dim=-1, keepdim=True)
    of_kept_B1 = until_BV.gather(1, kept_B1 - 1)
    place_B1 = (until_BV <= drawn_B.double().unsqueeze(1) * of_kept_B1).sum(dim=-1, keepdim=True)
    return token_BV.gather(1, place_B1.minimum(kept_B1 - 1)).squeeze(1)


@torch.no_grad()
def beam_search(
    model: ReadingModel,
    encoded_BSD: Tensor,
    mask_BS: Tensor | None,
    max_length: int,
    beams: int,
    length_penalty: float = 1.0,
    eos: int = 1,
) -> Tensor:
    """The best text that beam search finds, with the rules of transformers' `generate(num_beams=…)`.

    A text's score is its log p divided by its number of tokens (with `eos`) to the power of `length_penalty`. An input
    ends when it has `beams` finished texts, and its best unfinished one, scored at its present length, is not better
    than the worst of them.

    Args:
        encoded_BSD, mask_BS: output of the model's `encode`.

    Returns:
        Ids [B, T] of each input's best text, T = max_length, as `greedy` returns them.
    """
    B, K, device = encoded_BSD.size(0), beams, encoded_BSD.device
    cache = DecoderCache()
    first_B1 = torch.arange(B, device=device).unsqueeze(1) * K
    next_BK = torch.full((B, K), START, device=device)
    # The beams are equal at first: only one of them counts.
    running_BK = torch.full((B, K), -torch.inf, device=device).index_fill(1, torch.tensor([0], device=device), 0.0)
    texts_BKT = torch.zeros(B, K, 0, dtype=torch.long, device=device)
    best_BK = torch.full((B, K), -torch.inf, device=device)
    finished_BKT = torch.zeros(B, K, max_length, dtype=torch.long, device=device)
    open_B1 = torch.ones(B, 1, dtype=torch.bool, device=device)
    for length in range(1, max_length + 1):
        hidden_R1D = model.decode(next_BK.view(B * K, 1), encoded_BSD, mask_BS, cache)
        log_p_BKV = model.logits(hidden_R1D).squeeze(1).float().log_softmax(dim=-1).view(B, K, -1)
        V = log_p_BKV.size(-1)
        # At most K of these end, so that K can continue.
        total_BN, place_BN = (running_BK.unsqueeze(-1) + log_p_BKV).flatten(1).topk(2 * K)
        beam_BN, token_BN = place_BN // V, place_BN % V
        longer_BNT = torch.cat([_rows(texts_BKT, beam_BN), token_BN.unsqueeze(-1)], dim=-1)
        ends_BN = (token_BN == eos) | (length == max_length)

        counts_BN = ends_BN & open_B1 & (torch.arange(2 * K, device=device) < K)
        score_BN = (total_BN / length**length_penalty).masked_fill(~counts_BN, -torch.inf)
        best_BK, kept_BK = torch.cat([best_BK, score_BN], dim=1).topk(K)
        padded_BNT = F.pad(longer_BNT, (0, max_length - length))
        finished_BKT = _rows(torch.cat([finished_BKT, padded_BNT], dim=1), kept_BK)

        running_BK, kept_BK = total_BN.masked_fill(ends_BN, -torch.inf).topk(K)
        texts_BKT, next_BK = _rows(longer_BNT, kept_BK), token_BN.gather(1, kept_BK)
        cache.select((first_B1 + beam_BN.gather(1, kept_BK)).flatten())
        worst_B1 = best_BK[:, -1:]  # −∞ until K are finished
        open_B1 = open_B1 & ((worst_B1 == -torch.inf) | (running_BK[:, :1] / length**length_penalty > worst_B1))
        if not open_B1.any():
            break
    return finished_BKT[:, 0]


def _rows(texts_BKT: Tensor, kept_BN: Tensor) -> Tensor:
    """The texts [B, N, T] at these places of each input."""
    return texts_BKT.gather(1, kept_BN.unsqueeze(-1).expand(-1, -1, texts_BKT.size(-1)))
