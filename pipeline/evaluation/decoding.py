"""Decoding: greedy, by sampling, and by beam search; with one prompt or with a mixture of prompts.

B inputs, M prompts of a mixture, E = M·B rows of the encoder, K beams, R = K·B texts, Q = M·R rows of the decoder,
S encoder length (prompt included), T decoded length, D d_model, V vocabulary rows, C of them that are sorted,
N = 2·K continuations of an input
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.decoder_cache import DecoderCache

_STREAM = "predict/sampling"

BROKEN = -1
"""In place of a token whose logits are not finite: the text ends without an answer."""


class NoAnswer(InputError):
    """Numbers that the model computed for an input are not finite, so none of the answers is the likeliest."""

    def __init__(self, answering: str) -> None:
        """
        Args:
            answering: the prompt or model, for the message.
        """
        super().__init__(
            f"{answering}: log probabilities are not finite, so there is no answer; check it with"
            " `t5-pipeline doctor`, and train it again"
        )


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

    def __post_init__(self) -> None:
        for name, right, needed in (
            ("beams", self.beams >= 1, "at least 1"),
            ("length_penalty", abs(self.length_penalty) <= 20, "from -20 to 20"),  # its power of a length is finite
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not right:
                raise InputError(f"{name}: must be {needed}, not {getattr(self, name)}; choose another value")
        if self.beams > 1 and self.temperature:
            raise InputError("beams: cannot be combined with temperature; choose beam search or sampling")

    @torch.no_grad()
    def decode(self, texts: Continuations, max_length: int, numbers_B: Sequence[int]) -> Tensor:
        """Decode until every text has its EOS or `max_length` tokens.

        Args:
            numbers_B: number of each input, which its draws depend on; its place in the batch has no influence.

        Returns:
            Ids [B, T], T ≤ max_length: each row up to its EOS (if it was generated) or BROKEN, then padding.
        """
        if self.beams > 1:
            return beam_search(texts, max_length, self.beams, self.length_penalty)[0][:, 0]
        decoded = list(tokens(texts, max_length, self.chooser(numbers_B)))
        return torch.stack(decoded, dim=1) if decoded else torch.zeros(texts.inputs, 0, dtype=torch.long)

    def chooser(self, numbers_B: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
        """The next tokens [B] from logits [B, V] and the number of tokens so far; not for beam search.

        A row whose logits are not finite gets BROKEN.
        """

        def draw(logits_BV: Tensor, position: int) -> Tensor:
            drawn_B = torch.from_numpy(uniform(bits(self.seed, _STREAM, list(numbers_B), position)))
            token_B = sampled(logits_BV, drawn_B.to(logits_BV.device), self.temperature, self.top_p)
            return token_B.where(logits_BV.amax(dim=-1).isfinite(), BROKEN)

        return draw if self.temperature else lambda logits_BV, _: or_broken(logits_BV.argmax(dim=-1), logits_BV)


def or_broken(likeliest_B: Tensor, logits_BV: Tensor) -> Tensor:
    """The likeliest tokens, or BROKEN where logits are not finite: argmax prefers NaN, then infinity.

    >>> logits_BV = torch.tensor([[0.0, 2.0], [torch.nan, 0.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    >>> or_broken(logits_BV.argmax(dim=-1), logits_BV).tolist()
    [1, -1, -1, -1]
    """
    greatest_B = logits_BV.gather(-1, likeliest_B.unsqueeze(-1)).squeeze(-1)
    return likeliest_B.where(greatest_B.isfinite(), BROKEN)


class Continuations:
    """Texts that a model decodes, at first all empty: they grow by a token at each call of `longer`.

    A mixture of prompts decodes like one model, p(y | x) = Σ_m w_m p(y | [P_m; x]).
    """

    def __init__(
        self, model: ReadingModel, encoded_ESD: Tensor, mask_ES: Tensor | None, log_w_M: Tensor | None = None
    ) -> None:
        """
        Args:
            encoded_ESD, mask_ES: output of the model's `encode`; row m·B + b is input b read with prompt m.
            log_w_M: log weights of a mixture; None for a single prompt.
        """
        self.model, self.encoded_ESD, self.mask_ES = model, encoded_ESD, mask_ES
        self.prompts = 1 if log_w_M is None else len(log_w_M)
        self.inputs = encoded_ESD.size(0) // self.prompts
        self.device = encoded_ESD.device
        self.special = model.special
        self._cache = DecoderCache()
        self._log_w_M11 = None if log_w_M is None else log_w_M.view(-1, 1, 1)
        self._log_p_MRV: Tensor | None = None  # log w_m p_m of each text with each next token

    def longer(self, token_R: Tensor) -> Tensor:
        """Append a token to each text.

        Args:
            token_R: R = K·B tokens (at first the decoder's start); texts i·K … i·K+K−1 are those of input i.

        Returns:
            Logits [R, V] of the next token.
        """
        hidden_Q1D = self.model.decode(
            token_R.repeat(self.prompts).unsqueeze(1), self.encoded_ESD, self.mask_ES, self._cache
        )
        logits_QV = self.model.logits(hidden_Q1D).squeeze(1)
        if self._log_w_M11 is None:
            return logits_QV
        log_p_M1 = self._log_w_M11
        if self._log_p_MRV is not None:
            log_p_M1 = self._log_p_MRV.gather(2, token_R.view(1, -1, 1).expand(self.prompts, -1, 1))
        self._log_p_MRV = log_p_M1 + logits_QV.float().log_softmax(dim=-1).view(self.prompts, len(token_R), -1)
        return self._log_p_MRV.logsumexp(dim=0)

    def select(self, rows_R: Tensor) -> None:
        """Continue from these texts, each of the same input as the text that it replaces."""
        begin_M1 = torch.arange(self.prompts, device=rows_R.device).unsqueeze(1) * len(rows_R)
        self._cache.select((begin_M1 + rows_R).flatten())
        if self._log_p_MRV is not None:
            self._log_p_MRV = self._log_p_MRV[:, rows_R]


def tokens(texts: Continuations, max_length: int, choose: Callable[[Tensor, int], Tensor]) -> Iterator[Tensor]:
    """The next tokens [B], by `choose(logits_BV, position)`, until every text has ended or has `max_length` tokens.

    A text ends with EOS or BROKEN.
    """
    special = texts.special
    next_B = torch.full((texts.inputs,), special.start, device=texts.device)
    done_B = torch.zeros(texts.inputs, dtype=torch.bool, device=texts.device)
    for position in range(max_length):
        if bool(done_B.all()):
            return
        next_B = choose(texts.longer(next_B), position).masked_fill(done_B, special.pad)
        broken_B = next_B == BROKEN
        done_B = done_B | (next_B == special.eos) | broken_B
        yield next_B
        next_B = next_B.masked_fill(broken_B, special.pad)


def sampled(logits_BV: Tensor, drawn_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """The token [B] at which the cumulative probability, in the order of ids, exceeds a number in [0, 1).

    Args:
        drawn_B: one number for each row.

    >>> logits_BV = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(3, 1)
    >>> sampled(logits_BV, torch.tensor([0.19, 0.69, 0.71]), temperature=1, top_p=1).tolist()
    [0, 1, 2]
    >>> sampled(logits_BV, torch.tensor([0.19, 0.62, 0.63]), temperature=1, top_p=0.7).tolist()
    [1, 1, 2]
    """
    cumulative_BV = kept(logits_BV, temperature, top_p).cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:]
    place_B1 = torch.searchsorted(cumulative_BV, drawn_B.double().unsqueeze(1) * total_B1, right=True)
    return place_B1.clamp(max=logits_BV.size(-1) - 1).squeeze(1)  # V if the logits are NaN


def kept(logits_BV: Tensor, temperature: float, top_p: float) -> Tensor:
    """The weights [B, V] of the tokens in a sample: their probabilities, and 0 for those that `top_p` drops.

    The rules are those of transformers' `generate(do_sample=True, temperature=…, top_p=…, top_k=0)`.
    """
    # Relative to the highest, so that a tiny temperature does not divide to infinity.
    below_BV = logits_BV.double() - logits_BV.amax(dim=-1, keepdim=True)
    p_BV = (below_BV / temperature).softmax(dim=-1)
    if top_p == 1:
        return p_BV
    # Tokens below this probability have less than 1 - top_p together: they are dropped without being sorted.
    (likely_C,) = (p_BV >= (1 - top_p) / p_BV.size(-1)).any(dim=0).nonzero(as_tuple=True)
    p_BC, order_BC = p_BV[:, likely_C].sort(dim=-1, descending=True, stable=True)
    p_BC = p_BC.masked_fill(p_BC.cumsum(dim=-1) - p_BC >= top_p, 0.0)
    return torch.zeros_like(p_BV).scatter(1, likely_C[order_BC], p_BC)


@torch.no_grad()
def beam_search(texts: Continuations, max_length: int, beams: int, length_penalty: float) -> tuple[Tensor, Tensor]:
    """The best texts that beam search finds, with the rules of transformers' `generate(num_beams=…)`.

    A text's score is its log p divided by its number of tokens (with EOS) to the power of `length_penalty`. An input
    ends when it has `beams` finished texts, and its best unfinished one, scored at its present length, is not better
    than the worst of them.

    Returns:
        Ids [B, K, T] of each input's texts, best first, T = max_length: up to their EOS, then padding; their scores
        [B, K]. All ids of an input are BROKEN if logits of one of its texts are not finite.
    """
    B, K, device, special = texts.inputs, beams, texts.device, texts.special
    first_B1 = torch.arange(B, device=device).unsqueeze(1) * K
    next_BK = torch.full((B, K), special.start, device=device)
    # The beams are equal at first: only one of them counts.
    running_BK = torch.full((B, K), -torch.inf, device=device).index_fill(1, torch.tensor([0], device=device), 0.0)
    texts_BKT = torch.zeros(B, K, 0, dtype=torch.long, device=device)
    best_BK = torch.full((B, K), -torch.inf, device=device)
    finished_BKT = torch.full((B, K, max_length), special.pad, device=device)
    open_B1 = torch.ones(B, 1, dtype=torch.bool, device=device)
    broken_B1 = torch.zeros(B, 1, dtype=torch.bool, device=device)
    for length in range(1, max_length + 1):
        log_p_BKV = texts.longer(next_BK.flatten()).float().log_softmax(dim=-1).view(B, K, -1)
        V = log_p_BKV.size(-1)
        # At most K of these end, so that K can continue.
        total_BN, place_BN = (running_BK.unsqueeze(-1) + log_p_BKV).flatten(1).topk(2 * K)
        broken_B1 = broken_B1 | (total_BN[:, :1].isnan() & open_B1)  # of infinite logits too; topk puts NaN first
        beam_BN, token_BN = place_BN // V, place_BN % V
        longer_BNT = torch.cat([_rows(texts_BKT, beam_BN), token_BN.unsqueeze(-1)], dim=-1)
        ends_BN = (token_BN == special.eos) | (length == max_length)

        counts_BN = ends_BN & open_B1 & (torch.arange(2 * K, device=device) < K)
        score_BN = (total_BN / length**length_penalty).masked_fill(~counts_BN, -torch.inf)
        best_BK, kept_BK = torch.cat([best_BK, score_BN], dim=1).topk(K)
        padded_BNT = F.pad(longer_BNT, (0, max_length - length), value=special.pad)
        finished_BKT = _rows(torch.cat([finished_BKT, padded_BNT], dim=1), kept_BK)

        running_BK, kept_BK = total_BN.masked_fill(ends_BN, -torch.inf).topk(K)
        texts_BKT, next_BK = _rows(longer_BNT, kept_BK), token_BN.gather(1, kept_BK)
        texts.select((first_B1 + beam_BN.gather(1, kept_BK)).flatten())
        worst_B1 = best_BK[:, -1:]  # −∞ until K are finished
        can_win_B1 = (worst_B1 == -torch.inf) | (running_BK[:, :1] / length**length_penalty > worst_B1)
        open_B1 = open_B1 & ~broken_B1 & can_win_B1
        if not open_B1.any():
            break
    return finished_BKT.masked_fill(broken_B1.unsqueeze(-1), BROKEN), best_BK


def _rows(texts_BKT: Tensor, kept_BN: Tensor) -> Tensor:
    """The texts [B, N, T] at these places of each input."""
    return texts_BKT.gather(1, kept_BN.unsqueeze(-1).expand(-1, -1, texts_BKT.size(-1)))
