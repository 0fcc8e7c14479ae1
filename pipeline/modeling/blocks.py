"""The blocks of a T5, and the stacks that encoder and decoder are.

    encoder block   x ← x + SelfAttention(norm(x));  x ← x + FeedForward(norm(x))
    decoder block   x ← x + SelfAttention(norm(x));  x ← x + CrossAttention(norm(x), y);  x ← x + FeedForward(norm(x))

with y the encoder's output; scores are unscaled, and self-attention adds a learned bias by relative position.

The first block of a stack owns the table of position biases: it adds them to the bias it is given and passes the sum to
the other blocks. In umT5 every block owns one, and passes on only what it was given. So a block uses only its own
parameters, inside its own forward pass, which sharding engines rely on.

Shapes: B batch, R decoder rows (B, or L·B), S input length, T target length, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t5_pipeline.modeling.attention import block_mask, in_bf16_on_cpu, mask_bias
from t5_pipeline.modeling.compilation import CompiledForward
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.decoder_cache import DecoderCache, LayerCache
from t5_pipeline.modeling.layers import (
    Attention,
    Consecutive,
    CrossAttentionLayer,
    FeedForwardLayer,
    Mask,
    RMSNorm,
    SelfAttentionLayer,
    SharedDropout,
)


class Block(nn.Module):
    """A block of a stack.

    Attributes:
        recompute: store only the input of the layers, and compute them again in the backward pass.
        compiled: run the layers compiled, except with FlexAttention and when they decode with a cache.
    """

    recompute = False
    compiled = False
    layer: nn.ModuleList

    @property
    def self_attention(self) -> Attention:
        return cast(Attention, self.layer[0].SelfAttention)

    def run(
        self, layers: Callable[..., Tensor], x: Tensor, bias: Tensor | None, mask: Mask, *others: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The output of the layers, and the bias for the next block, to which the first has added the position bias.

        Everything happens inside the block's forward pass, where engines have gathered its weights.

        Args:
            layers: `encoder_layers` or `decoder_layers`, whose last argument is the cache.
        """
        attention, cache = self.self_attention, others[-1] if others else None
        # FlexAttention is compiled by itself, for fixed sizes.
        flex = mask is not None and not isinstance(mask, Tensor | Consecutive)
        body = _COMPILED[layers] if self.compiled and cache is None and not flex else layers
        if not attention.bias_per_layer:
            bias = attention.with_positions(x, bias, mask, cache)

        def output(x: Tensor, bias: Tensor | None, mask: Mask, *others: Any) -> Tensor:
            own = attention.with_positions(x, bias, mask, cache) if attention.bias_per_layer else bias
            return body(self, x, own, mask, *others)

        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(output, x, bias, mask, *others, use_reentrant=False)), bias
        return output(x, bias, mask, *others), bias


class EncoderBlock(Block):
    def __init__(self, shape: T5Config, *, first: bool) -> None:
        super().__init__()
        attention = SelfAttentionLayer(shape, owns_bias=first or shape.bias_per_layer, bidirectional=True)
        self.layer = nn.ModuleList([attention, FeedForwardLayer(shape)])

    def forward(self, x_BSD: Tensor, bias: Tensor | None, mask: Mask) -> tuple[Tensor, Tensor | None]:
        return self.run(encoder_layers, x_BSD, bias, mask)


def encoder_layers(block: EncoderBlock, x_BSD: Tensor, bias: Tensor | None, mask: Mask) -> Tensor:
    attention, feed_forward = block.layer
    output_BSD: Tensor = feed_forward(attention(x_BSD, bias, mask))
    return output_BSD


class DecoderBlock(Block):
    def __init__(self, shape: T5Config, *, first: bool) -> None:
        super().__init__()
        attention = SelfAttentionLayer(shape, owns_bias=first or shape.bias_per_layer, bidirectional=False)
        self.layer = nn.ModuleList([attention, CrossAttentionLayer(shape), FeedForwardLayer(shape)])

    def forward(
        self,
        x_RTD: Tensor,
        encoded_BSD: Tensor,
        bias: Tensor | None,
        mask: Mask,
        cross_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return self.run(decoder_layers, x_RTD, bias, mask, encoded_BSD, cross_bias, cache)


def decoder_layers(
    block: DecoderBlock,
    x_RTD: Tensor,
    bias: Tensor | None,
    mask: Mask,
    encoded_BSD: Tensor,
    cross_bias: Tensor | None,
    cache: LayerCache | None,
) -> Tensor:
    attention, cross_attention, feed_forward = block.layer
    x_RTD = cross_attention(attention(x_RTD, bias, mask, cache), encoded_BSD, cross_bias, cache)
    output_RTD: Tensor = feed_forward(x_RTD)
    return output_RTD


_COMPILED = {layers: CompiledForward(layers) for layers in (encoder_layers, decoder_layers)}


class Stack(nn.Module):
    """The blocks of encoder or decoder.

    Attributes:
        flex: use FlexAttention in self-attention while the position biases do not learn.
    """

    block: nn.ModuleList
    flex = False

    def parts(
        self, x: Tensor, mask: Tensor | Consecutive | None, *, cached: bool = False
    ) -> tuple[Tensor | None, Mask]:
        """Bias and mask for the first block.

        A mask shared by all rows is part of the bias. One that differs by row stays separate if attention can add both
        without a copy; otherwise the first block adds it once for all blocks.

        Args:
            mask: True at visible keys, bool [B, S] or [1 or B, Q, S]; or consecutive inputs; None hides nothing.
            cached: whether the blocks decode with a cache.
        """
        if isinstance(mask, Consecutive):
            return None, mask
        attention = cast(Block, self.block[0]).self_attention
        # FlexAttention sums the gradients of biases by atomic additions: slowly, and in another order each time.
        learns = torch.is_grad_enabled() and attention.relative_attention_bias.weight.requires_grad
        if self.flex and not learns and not cached:
            S = x.size(1)
            return None, block_mask(torch.ones(1, S, S, dtype=torch.bool, device=x.device) if mask is None else mask)
        added = mask_bias(mask)
        if added is None or added.size(0) == 1 or not in_bf16_on_cpu(x):
            return added, None
        return None, added


class Encoder(Stack):
    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(EncoderBlock(shape, first=i == 0) for i in range(shape.num_layers))
        self.final_layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(self, embedded_BSD: Tensor, mask: Tensor | Consecutive | None) -> Tensor:
        x_BSD = self.dropout(embedded_BSD)
        bias, blocks_mask = self.parts(x_BSD, mask)
        for block in self.block:
            x_BSD, bias = block(x_BSD, bias, blocks_mask)
        return self.dropout(self.final_layer_norm(x_BSD))


class Decoder(Stack):
    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(DecoderBlock(shape, first=i == 0) for i in range(shape.num_decoder_layers))
        self.final_layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(
        self,
        embedded_RTD: Tensor,
        encoded_BSD: Tensor,
        mask: Tensor | None,
        cross_bias: Tensor | None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        x_RTD = self.dropout(embedded_RTD)
        bias, blocks_mask = self.parts(x_RTD, mask, cached=cache is not None)
        for index, block in enumerate(self.block):
            layer_cache = None if cache is None else cache.layer(index)
            x_RTD, bias = block(x_RTD, encoded_BSD, bias, blocks_mask, cross_bias, layer_cache)
        return self.dropout(self.final_layer_norm(x_RTD))
