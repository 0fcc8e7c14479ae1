"""Continuous decoding: texts join and leave a running batch at any token.

All texts of the batch advance by one token per step, whatever their lengths so far, so a long answer does not delay the
short ones that arrive after it. This is exact, because T5's positions are relative: the cached keys and values of a
text that joins late are padded on the left, and the padding is masked.

Keys and values of the inputs are computed without padding when texts join, and kept in parts of similar length. So a
long input costs the others nothing, and a text that joins or leaves moves only the keys and values of its own part.

R texts in the batch, b texts of a part, S input length (prompt included), N tokens of all inputs that join, T decoded
length, D d_model, V vocabulary rows, H heads, K head width, E = H·K
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.evaluation.decoding import BROKEN, or_broken
from t5_pipeline.modeling.attention import mask_bias
from t5_pipeline.modeling.blocks import DecoderBlock
from t5_pipeline.modeling.decoder_cache import DecoderCache, Encoded
from t5_pipeline.modeling.layers import Attention, CrossAttentionLayer
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
        ids: tokens so far, with EOS if it was generated; BROKEN ends a text whose logits are not finite.
    """

    owner: Owner
    max_length: int
    choose: Choose | None = None
    ids: list[int] = field(default_factory=list)


class RunningBatch(Generic[Owner]):
    """The texts that a T5 is decoding.

    Args:
        logits: fp32 logits [R, V] of decoder outputs [R, D]; default: those of the T5.

    >>> from t5_pipeline.modeling.config import T5Config
    >>> batch: RunningBatch[str] = RunningBatch(T5(T5Config(vocab_size=128)))
    >>> len(batch)
    0
    """

    def __init__(self, t5: T5, logits: Callable[[Tensor], Tensor] | None = None) -> None:
        self.t5, self.eos, self._logits = t5, t5.special.eos, logits or t5.logits
        self.texts: list[Text[Owner]] = []
        self._lengths: list[int] = []  # of their inputs
        self._parts: list[int] = []  # texts of each part
        self._cache = DecoderCache()
        self._next_R = torch.empty(0)

    def __len__(self) -> int:
        return len(self.texts)

    @torch.no_grad()
    def join(self, texts: Sequence[Text[Owner]], encoded: Sequence[Tensor]) -> None:
        """Add texts, which start with the next step.

        Args:
            encoded: the encoder's output [S, D] for the input of each.
        """
        lengths = [len(encoded_SD) for encoded_SD in encoded]
        parts = by_length(lengths)
        encoded_ND = torch.cat(list(encoded))
        # Nothing changes before the new cache is complete, in case memory does not suffice.
        before, joined = (self._cache if self.texts else DecoderCache()), DecoderCache()
        for index, attention in enumerate(self._cross_attentions()):
            old, new = before.layer(index), joined.layer(index)
            new.encoded = [*_parts(old.encoded), *self._encoded(attention, encoded_ND, lengths, parts)]
            if old.own is not None:  # padding for the tokens decoded so far
                keys, values = old.own
                padding = (0, 0, 0, 0, 0, 0, 0, len(texts))
                new.own = F.pad(keys, padding), F.pad(values, padding)
        if before.real_RT is not None:
            joined.real_RT = F.pad(before.real_RT, (0, 0, 0, len(texts)))  # False
        next_b = torch.full((len(texts),), self.t5.special.start, device=encoded_ND.device)
        self._next_R = torch.cat([self._next_R, next_b]) if self.texts else next_b
        self._cache = joined
        order = [i for part in parts for i in part]
        self.texts += [texts[i] for i in order]
        self._lengths += [lengths[i] for i in order]
        self._parts += [len(part) for part in parts]

    def _cross_attentions(self) -> Iterator[Attention]:
        for block in self.t5.decoder.block:
            _, cross_attention, _ = cast(DecoderBlock, block).layer
            yield cast(CrossAttentionLayer, cross_attention).EncDecAttention

    def _encoded(
        self, attention: Attention, encoded_ND: Tensor, lengths: Sequence[int], parts: Sequence[Sequence[int]]
    ) -> list[Encoded]:
        """Keys and values of a layer, computed without padding and then padded in each part."""
        keys_NHK, values_NHK = (x_1HNK[0].transpose(0, 1) for x_1HNK in attention.keys_values(encoded_ND[None]))
        begins = [0, *accumulate(lengths)]
        found = []
        for part in parts:
            begin_b, length_b = (
                torch.tensor([of[i] for i in part], device=encoded_ND.device) for of in (begins, lengths)
            )
            place_S = torch.arange(max(lengths[i] for i in part), device=encoded_ND.device)
            mask_bS = place_S < length_b[:, None]
            # Padding repeats the text's own first token: a mask would not hide NaN from another text.
            index_bS = begin_b[:, None] + place_S.where(mask_bS, 0)
            keys_bHSK, values_bHSK = (x_NHK[index_bS].transpose(1, 2).contiguous() for x_NHK in (keys_NHK, values_NHK))
            padded = min(lengths[i] for i in part) < len(place_S)
            found.append(Encoded(keys_bHSK, values_bHSK, mask_bias(mask_bS) if padded else None))
        return found

    @torch.no_grad()
    def step(self) -> list[Text[Owner]]:
        """Decode one token of every text.

        Returns:
            The texts that ended with it, which leave the batch.
        """
        R = len(self.texts)
        if R == 0:
            return []
        nothing_R0D = torch.empty(R, 0, self.t5.shape.d_model, device=self._next_R.device)  # all of it is cached
        hidden_R1D = self.t5.decode(self.t5.embed(self._next_R.unsqueeze(1)), nothing_R0D, None, self._cache)
        logits_RV = self._logits(hidden_R1D.squeeze(1))
        # On a CPU, torch's argmax takes many times as long as NumPy's.
        on_cpu = logits_RV.device.type == "cpu"
        best_R = torch.from_numpy(logits_RV.numpy().argmax(axis=-1)) if on_cpu else logits_RV.argmax(dim=-1)
        tokens = or_broken(best_R, logits_RV).tolist()
        own = self._cache.real_RT
        here_R1 = torch.ones(R, 1, dtype=torch.bool, device=hidden_R1D.device)
        self._cache.real_RT = here_R1 if own is None else torch.cat([own, here_R1], dim=1)
        ended = []
        for row, text in enumerate(self.texts):
            token = tokens[row] if text.choose is None else text.choose(logits_RV[row], len(text.ids))
            tokens[row] = token
            text.ids.append(token)
            if token in (self.eos, BROKEN) or len(text.ids) >= text.max_length:
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
        self.texts, self._lengths = [self.texts[row] for row in rows], [self._lengths[row] for row in rows]
        if not rows:
            self._cache, self._parts = DecoderCache(), []
            return
        rows_r = torch.tensor(list(rows), device=self._next_R.device)
        self._next_R = self._next_R[rows_r]
        self._keep_encoded(rows)
        real_RT = self._cache.real_RT
        if real_RT is None:  # nothing was decoded yet
            return
        T = max(len(text.ids) for text in self.texts)
        self._cache.real_RT = real_RT[rows_r, real_RT.size(1) - T :]
        for layer in self._cache.layers.values():
            assert layer.own is not None
            layer.own = tuple(x[rows_r, :, x.size(2) - T :] for x in layer.own)  # type: ignore[assignment]

    def _keep_encoded(self, rows: Sequence[int]) -> None:
        """Shrink the parts that lose texts."""
        ends = list(accumulate(self._parts))
        kept = [
            [row - end + count for row in rows if end - count <= row < end]
            for end, count in zip(ends, self._parts, strict=True)
        ]
        lengths = iter(self._lengths)
        longest = [max((next(lengths) for _ in part), default=0) for part in kept]
        for layer in self._cache.layers.values():
            layer.encoded = [
                _shrunk(encoded, part, S)
                for encoded, part, S in zip(_parts(layer.encoded), kept, longest, strict=True)
                if part
            ]
        self._parts = [len(part) for part in kept if part]


def _parts(encoded: object) -> list[Encoded]:
    return encoded if isinstance(encoded, list) else []


def _shrunk(encoded: Encoded, rows: Sequence[int], length: int) -> Encoded:
    """These rows of a part, up to a length."""
    if len(rows) == len(encoded.keys):
        return encoded
    rows_b = torch.tensor(list(rows), device=encoded.keys.device)
    bias = None if encoded.bias is None else encoded.bias[rows_b, ..., :length]
    return Encoded(encoded.keys[rows_b, :, :length], encoded.values[rows_b, :, :length], bias)


def by_length(lengths: Sequence[int], waste: float = 0.25) -> list[list[int]]:
    """Indices in groups of similar length, longest first: at most `waste` of a group's positions are padding.

    >>> by_length([5, 40, 6, 38])
    [[1, 3], [2, 0]]
    """
    groups: list[list[int]] = []
    taken = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and taken + lengths[i] >= (1 - waste) * longest * (len(groups[-1]) + 1):
            groups[-1].append(i)
            taken += lengths[i]
        else:
            groups.append([i])
            taken = lengths[i]
    return groups
