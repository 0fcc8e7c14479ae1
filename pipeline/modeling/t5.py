"""T5 (Raffel et al. 2020), both variants, with the tensor names of transformers' T5ForConditionalGeneration.

Encoder and decoder are stacks of blocks (blocks.py). For speed, the position bias is computed once per stack and call,
masks are skipped if nothing is padded, and attention uses the fastest implementation (attention.py).

Shapes: B batch, R decoder rows (B, or L·B), S input length, T target length, D d_model, V vocabulary rows.
The ids of padding and of the decoder's first input are those of `shape.special`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.attention import mask_bias
from t5_pipeline.modeling.blocks import Block, Decoder, Encoder, Stack
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.decoder_cache import DecoderCache
from t5_pipeline.modeling.layers import (
    Attention,
    Consecutive,
    Embedding,
    OutputHead,
    RMSNorm,
    SharedDropout,
    fp32_logits,
    product_dtype,
)


class T5(nn.Module):
    """An encoder-decoder of the given sizes, with torch's default weights: see load.py for real ones."""

    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.shape = shape
        self.shared = Embedding(shape.vocab_size, shape.d_model)
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        if not shape.tied:
            self.lm_head = OutputHead(shape.d_model, shape.vocab_size, bias=False)

    @property
    def special(self) -> SpecialTokens:
        return self.shape.special

    def set_dropout(self, rate: float) -> None:
        """Set the dropout rate; `shape.dropout_rate` stays the one the model was published with."""
        for module in self.modules():
            if isinstance(module, SharedDropout):
                module.rate = rate

    def set_execution(
        self,
        reference_ops: Collection[str] = (),
        recompute: bool = False,
        compiled: bool = False,
        flex: bool = False,
    ) -> None:
        """Choose implementations; results agree up to rounding.

        Args:
            reference_ops: "attention", "norm": computed by their definition instead of a faster implementation.
            recompute: activation checkpointing: store only the input of each block for the backward pass.
            compiled: compile blocks (`compilation.use_compiler`). Dropout then draws other masks.
            flex: FlexAttention in self-attention, except where position biases learn and for decoding with a cache.
        """
        for module in self.modules():
            if isinstance(module, Attention):
                module.reference = "attention" in reference_ops
            elif isinstance(module, RMSNorm):
                module.reference = "norm" in reference_ops
            elif isinstance(module, Block):
                module.recompute = recompute
                module.compiled = compiled
            elif isinstance(module, Stack):
                module.flex = flex and "attention" not in reference_ops

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Embedding rows [B, S, D] of token ids."""
        rows_BSD: Tensor = self.shared(ids_BS)
        return rows_BSD

    def _embed_both(self, inputs_BS: Tensor, decoder_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding rows of inputs and decoder inputs.

        Each call of `embed` has a gradient of the size of the whole table. Writing two of them and adding them takes
        several percent of a pass in bf16, so one call embeds both. In fp32 that would save little, and change the last
        bits of recorded results.
        """
        if product_dtype(self.shared.weight) == torch.float32:
            return self.embed(inputs_BS), self.embed(decoder_ids_BT)
        counts = inputs_BS.numel(), decoder_ids_BT.numel()
        in_ND, out_ND = self.embed(torch.cat([inputs_BS.flatten(), decoder_ids_BT.flatten()])).split(counts)
        return in_ND.view(*inputs_BS.shape, -1), out_ND.view(*decoder_ids_BT.shape, -1)

    def encode(self, embedded_BSD: Tensor, mask: Tensor | Consecutive | None) -> Tensor:
        """The encoder's output [B, S, D].

        Args:
            mask: bool [B, S], True at tokens; or [B, S, S], True where a query (row) sees a key (column); or
                consecutive inputs in a single row (B = 1, not compiled); None if every position is a token.
        """
        encoded_BSD: Tensor = self.encoder(embedded_BSD, mask)
        return encoded_BSD

    def decode(
        self,
        embedded_RTD: Tensor,
        encoded_BSD: Tensor,
        mask: Tensor | None,
        cache: DecoderCache | None = None,
        segments_RT: Tensor | None = None,
    ) -> Tensor:
        """The decoder's output [R, T, D] for R = L·B decoder rows; rows i·L … i·L+L−1 attend to input i.

        Args:
            embedded_RTD: embedding rows of the decoder's inputs.
            mask: visible input positions, bool [B, S], or [B, L·T, S] by decoder position; None for all.
            cache: with it, `embedded_RTD` has the positions that follow those of earlier calls with this cache.
            segments_RT: segment of each position of packed rows, which sees only earlier positions of its own segment;
                not together with a cache.
        """
        causal = _causal(embedded_RTD, cache)
        if segments_RT is not None:
            causal = causal & (segments_RT[:, :, None] == segments_RT[:, None, :])
        hidden_RTD: Tensor = self.decoder(embedded_RTD, encoded_BSD, causal, mask_bias(mask), cache)
        return hidden_RTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """fp32 logits [B, T, V] of decoder outputs."""
        if self.shape.tied:
            return fp32_logits(*self.before_logits(hidden_BTD))
        logits_BTV: Tensor = self.lm_head(self._scaled(hidden_BTD))
        return logits_BTV

    def before_logits(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of the logits of decoder outputs: [B, T, D], and the output matrix [V, D]."""
        return self._scaled(hidden_BTD), self.shared.weight if self.shape.tied else self.lm_head.weight

    def _scaled(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD * self.shape.output_scale if self.shape.scales_outputs else hidden_BTD

    def predict(self, inputs_BS: Tensor, targets_BT: Tensor, segments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The decoder's output [B, T, D] that predicts each target token from the inputs and the earlier targets.

        Args:
            segments: for packed rows, the example of each position of inputs [B, S] and targets [B, T] (1, 2, …; 0 for
                padding). Examples do not see one another, and the decoder of each starts with `special.start`.
        """
        in_BS, out_BT = segments or (None, None)
        embedded_BSD, embedded_BTD = self._embed_both(inputs_BS, shift_right(targets_BT, out_BT, self.special.start))
        if in_BS is None or out_BT is None:
            mask = token_mask(inputs_BS, self.special.pad)
            return self.decode(embedded_BTD, self.encode(embedded_BSD, mask), mask)
        encoded_BSD = self.encode(embedded_BSD, in_BS[:, :, None] == in_BS[:, None, :])
        cross_mask_BTS = out_BT[:, :, None] == in_BS[:, None, :]
        return self.decode(embedded_BTD, encoded_BSD, cross_mask_BTS, segments_RT=out_BT)

    def forward(self, inputs_BS: Tensor, targets_BT: Tensor, segments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """fp32 logits [B, T, V] that predict each target token; the arguments are those of `predict`."""
        return self.logits(self.predict(inputs_BS, targets_BT, segments))


def _causal(embedded_RTD: Tensor, cache: DecoderCache | None) -> Tensor:
    """Mask [1 or R, T, past + T]: each position sees itself and earlier ones of its row."""
    T = embedded_RTD.size(1)
    earlier = None if cache is None else cache.layer(0).own
    past = 0 if earlier is None else earlier[0].size(2)
    causal = torch.ones(1, T, past + T, dtype=torch.bool, device=embedded_RTD.device).tril(past)
    if cache is None or cache.real_RT is None:
        return causal
    return causal & F.pad(cache.real_RT, (0, T), value=True)[:, None]


def token_mask(ids_BS: Tensor, pad: int = 0) -> Tensor | None:
    """True at tokens, False at padding; on a CPU, None if nothing is padded.

    On other devices the mask is always returned, because checking it would make the host wait for the device.

    >>> token_mask(torch.tensor([[5, 1, 0]])).tolist(), token_mask(torch.tensor([[5, 1]]))
    ([[True, True, False]], None)
    """
    return unless_full(ids_BS != pad)


def unless_full(mask_BS: Tensor) -> Tensor | None:
    """The mask; on a CPU, None if it hides nothing."""
    if mask_BS.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask_BS.all()):
        return None
    return mask_BS


def shift_right(targets_BT: Tensor, segments_BT: Tensor | None = None, start: int = 0) -> Tensor:
    """The decoder's inputs: the targets one position later, `start` first in each row (and segment).

    >>> shift_right(torch.tensor([[7, 8, 1, 9, 1]]), torch.tensor([[1, 1, 1, 2, 2]])).tolist()
    [[0, 7, 8, 0, 9]]
    """
    shifted_BT = F.pad(targets_BT[:, :-1], (1, 0), value=start)
    if segments_BT is None:
        return shifted_BT
    return shifted_BT.masked_fill(segments_BT != F.pad(segments_BT[:, :-1], (1, 0)), start)
