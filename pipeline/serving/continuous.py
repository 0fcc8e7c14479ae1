"""Continuous decoding: texts join and leave a running batch at any token.

All texts of the batch advance by one token per step, whatever their lengths so far, so a long answer does not delay the
short ones that arrive after it. This is exact, because T5's positions are relative: the cached keys and values of a
text that joins late are padded on the left, and the padding is masked.

R texts in the batch, B texts that join, S encoder length (prompt included), T decoded length, D d_model, V vocabulary
rows, H heads, K head width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.modeling.blocks import DecoderBlock
from t5_pipeline.modeling.layers import CrossAttentionLayer, DecoderCache, KeysValues
from t5_pipeline.modeling.t5 import T5

Owner = TypeVar("Owner")
Choose = Callable[[Tensor, int], int]
"""Next token of a text, from its logits [V] and its number of tokens so far."""


@dataclass
class Text(Generic[Owner]):
    """A text that is being decoded.

    Attributes:
        owner: passed back with the text.
        max_length: maximum number of tokens.
        choose: next token; None for the likeliest one.
        ids: tokens so far, with EOS if it was generated.
    """

    owner: Owner
    max_length: int
    choose: Choose | None = None
    ids: list[int] = field(default_factory=list)


class RunningBatch(Generic[Owner]):
    """The texts that a T5 is decoding.

    >>> from t5_pipeline.modeling.config import T5Config
    >>> batch: RunningBatch[str] = RunningBatch(T5(T5Config(vocab_size=128)))
    >>> len(batch)
    0
    """

    def __init__(self, t5: T5) -> None:
        self.t5, self.eos = t5, t5.special.eos
        self.texts: list[Text[Owner]] = []
        self._cache = DecoderCache()
        self._encoded_RSD = torch.empty(0)
        self._mask_RS = torch.empty(0)
        self._next_R = torch.empty(0)

    def __len__(self) -> int:
        return len(self.texts)

    @torch.no_grad()
    def join(self, texts: Sequence[Text[Owner]], encoded_BSD: Tensor, mask_BS: Tensor | None) -> None:
        """Add texts, which start with the next step.

        Args:
            encoded_BSD, mask_BS: the encoder's output for their inputs; True at tokens, None if nothing is padded.
        """
        B, S, _ = encoded_BSD.shape
        mask_BS = encoded_BSD.new_ones(B, S, dtype=torch.bool) if mask_BS is None else mask_BS
        next_B = torch.full((B,), self.t5.special.start, device=encoded_BSD.device)
        if not self.texts:
            self._cache = DecoderCache()
            self._encoded_RSD, self._mask_RS, self._next_R = encoded_BSD, mask_BS, next_B
        else:
            longest = max(S, self._encoded_RSD.size(1))
            self._encoded_RSD = torch.cat([_padded(x, longest, dim=1) for x in (self._encoded_RSD, encoded_BSD)])
            self._mask_RS = torch.cat([_padded(x, longest, dim=1) for x in (self._mask_RS, mask_BS)])
            self._next_R = torch.cat([self._next_R, next_B])
            if self._cache.real_RT is not None:
                self._extend_cache(encoded_BSD, longest)
        self.texts += texts

    def _extend_cache(self, encoded_BSD: Tensor, longest: int) -> None:
        """Add B rows: padding for the tokens decoded so far, and keys and values of the encoder's output."""
        assert self._cache.real_RT is not None
        B = encoded_BSD.size(0)
        self._cache.real_RT = F.pad(self._cache.real_RT, (0, 0, 0, B))  # False
        for index, block in enumerate(self.t5.decoder.block):
            layer = self._cache.layer(index)
            assert layer.own is not None
            assert layer.encoded is not None
            keys, values = layer.own
            layer.own = F.pad(keys, (0, 0, 0, 0, 0, 0, 0, B)), F.pad(values, (0, 0, 0, 0, 0, 0, 0, B))
            _, cross_attention, _ = cast(DecoderBlock, block).layer
            added = cast(CrossAttentionLayer, cross_attention).EncDecAttention.keys_values(encoded_BSD)
            layer.encoded = _joined(layer.encoded, added, longest)

    @torch.no_grad()
    def step(self) -> list[Text[Owner]]:
        """Decode one token of every text.

        Returns:
            The texts that ended with it, which leave the batch.
        """
        R = len(self.texts)
        if R == 0:
            return []
        hidden_R1D = self.t5.decode(self._next_R.unsqueeze(1), self._encoded_RSD, self._mask_RS, self._cache)
        logits_RV = self.t5.logits(hidden_R1D).squeeze(1)
        tokens = logits_RV.argmax(dim=-1).tolist()
        own = self._cache.real_RT
        here_R1 = torch.ones(R, 1, dtype=torch.bool, device=hidden_R1D.device)
        self._cache.real_RT = here_R1 if own is None else torch.cat([own, here_R1], dim=1)
        ended = []
        for row, text in enumerate(self.texts):
            token = tokens[row] if text.choose is None else text.choose(logits_RV[row], len(text.ids))
            tokens[row] = token
            text.ids.append(token)
            if token == self.eos or len(text.ids) >= text.max_length:
                ended.append(text)
        self._next_R = torch.tensor(tokens, device=self._next_R.device)
        if ended:
            left = {id(text) for text in ended}
            self.keep([row for row, text in enumerate(self.texts) if id(text) not in left])
        return ended

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the texts of other rows, and the columns that no remaining text needs."""
        if len(rows) == len(self.texts):
            return
        self.texts = [self.texts[row] for row in rows]
        if not rows:
            self._cache = DecoderCache()
            return
        rows_r = torch.tensor(list(rows), device=self._next_R.device)
        self._next_R, mask_RS = self._next_R[rows_r], self._mask_RS[rows_r]
        S = int(mask_RS.any(0).nonzero().max()) + 1
        self._mask_RS, self._encoded_RSD = mask_RS[:, :S], self._encoded_RSD[rows_r, :S]
        real_RT = self._cache.real_RT
        if real_RT is None:  # nothing was decoded yet
            return
        T = max(len(text.ids) for text in self.texts)
        self._cache.real_RT = real_RT[rows_r, real_RT.size(1) - T :]
        for layer in self._cache.layers.values():
            assert layer.own is not None
            assert layer.encoded is not None
            layer.own = tuple(x[rows_r, :, x.size(2) - T :] for x in layer.own)  # type: ignore[assignment]
            layer.encoded = tuple(x[rows_r, :, :S] for x in layer.encoded)  # type: ignore[assignment]


def _padded(x: Tensor, length: int, dim: int) -> Tensor:
    """`x` with zeros (False) up to `length` along a dimension."""
    missing = length - x.size(dim)
    return F.pad(x, (0, 0) * (x.dim() - dim - 1) + (0, missing)) if missing else x


def _joined(present: KeysValues, added: KeysValues, length: int) -> KeysValues:
    keys, values = (
        torch.cat([_padded(old, length, dim=2), _padded(new.to(old.dtype), length, dim=2)])
        for old, new in zip(present, added, strict=True)
    )
    return keys, values
