"""The layers of a T5: norm, dropout, attention and feed-forward, each with its residual connection.

    x ← x + dropout(layer(norm(x)))

Every dropout mask is shared along the sequence, as in the paper's code. Norm statistics and logits are always fp32; the
rest follows autocast, or the dtype of the weights. Module names are those of transformers.

Shapes: B batch, R decoder rows (a multiple of B), S input length, T target length, Q query positions, D d_model,
H heads, K head width, E = H·K, F d_ff, V vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.modeling.attention import (
    attend,
    attend_flex,
    attend_to_states,
    attention_reference,
    compiled_flex,
    in_bf16_on_cpu,
)
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.decoder_cache import Encoded, KeysValues, LayerCache
from t5_pipeline.modeling.limits import attends_without_keys
from t5_pipeline.modeling.position_buckets import bucket_table

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = "Tensor | BlockMask | Consecutive | None"


def gelu_new(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, x·½(1 + tanh(u)) = x·sigmoid(2u).

    The compiler's tanh for CPUs takes more than twice as long as its sigmoid.
    """
    if not torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    wide = x.float()
    doubled = 2 * math.sqrt(2 / math.pi) * wide * (1 + 0.044715 * wide * wide)
    return (wide * doubled.sigmoid()).to(x.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Consecutive:
    """The mask of self-attention in a single row of inputs, one after another, that do not see one another.

    Nothing is padded, and attention computes no scores between inputs. Not for training: the inputs would share their
    dropout masks.
    """

    lengths: tuple[int, ...]


class SharedDropout(nn.Module):
    """Dropout with one mask for all positions of a dimension."""

    def __init__(self, rate: float, shared_dim: int = -2) -> None:
        super().__init__()
        self.rate = rate
        self.shared_dim = shared_dim

    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[self.shared_dim] = 1
        kept = self.kept(x, shape)
        return x if kept is None else x * kept

    def kept(self, like: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The mask: 0 or 1/(1 − rate), of this shape; None if nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        return F.dropout(like.new_ones(shape), self.rate)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with x: that of autocast, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class RMSNorm(nn.Module):
    """x / RMS(x) · weight, computed in fp32 and returned in the dtype of the matrix products that follow.

    Attributes:
        reference: use autograd's gradient everywhere.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon
        self.reference = False

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = product_dtype(x)  # cast once here, instead of by autocast in each of the products that follow
        by_hand = device == "cpu" and dtype == torch.bfloat16 and not torch.compiler.is_compiling()
        if by_hand and not self.reference:
            normed: Tensor = _RMSNorm.apply(x, self.weight, self.epsilon, dtype)
            return normed
        return rms_norm_reference(x, self.weight, self.epsilon, dtype)


def rms_norm_reference(x: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x / √(mean(x²) + ε) · weight along the last dimension, in fp32, returned in `dtype`."""
    return F.rms_norm(x.float(), weight_D.shape, weight_D.float(), epsilon).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """The same with a handwritten gradient, faster than autograd's on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.size(-1)).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (wide * scale).mul_(weight_D.float()).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight_D, scale = ctx.saved_tensors
        gradient, wide = gradients[0].float(), x.float()
        by_row = (gradient * wide).flatten(0, -2)
        along = (by_row @ weight_D.float()).view(scale.shape)
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (scale.flatten()[None] @ by_row).squeeze(0).to(weight_D.dtype)
        # ∂/∂x = s·(w·g) − x·s³·mean(w·g·x)
        x_gradient = (gradient * weight_D.float()).mul_(scale)
        x_gradient.addcmul_(wide, along.mul_(scale.pow(3)), value=-1 / x.size(-1))
        return x_gradient.to(x.dtype), weight_gradient, None, None


class Embedding(nn.Embedding):
    """`nn.Embedding` that draws no values on the meta device, where torch would import its compiler to do nothing."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Linear(nn.Linear):
    """`nn.Linear` without a bias. Compiled, in bf16 on a CPU, the gradient of its weight is computed faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        if learns and torch.compiler.is_compiling() and in_bf16_on_cpu(x):
            product: Tensor = _Product.apply(x, self.weight)
            return product
        return super().forward(x)


class _Product(torch.autograd.Function):
    """x·weightᵀ in bf16, whose gradient is transposed by a copy before it is multiplied by x.

    oneDNN takes about twice as long for a product with a transposed first factor. The compiler makes the copy where it
    computes the gradient, so it costs little; by torch itself, it would take longer than it saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x_ND, weight_ED = x.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x_ND, weight_ED)
        ctx.dtypes = x.dtype, weight.dtype
        return (x_ND @ weight_ED.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_ED = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        out_NE = gradients[0].flatten(0, -2)
        x_gradient = (out_NE @ weight_ED).view(*gradients[0].shape[:-1], -1)
        return x_gradient.to(x_dtype), (out_NE.T.contiguous() @ x_ND).to(weight_dtype)


class OutputHead(nn.Linear):
    """logits = hidden · weightᵀ in fp32, under autocast too."""

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return fp32_logits(hidden_BTD, self.weight)


def fp32_logits(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        return F.linear(hidden_BTD.float(), weight_VD.float())


class Attention(nn.Module):
    """Projections around `attend`, and in the first block of a stack (or in each) the table of position biases.

    Attributes:
        bias_per_layer: whether each block has its own table; if so, the bias is not passed on.
        reference: use `attention_reference` instead of the fastest implementation.
    """

    def __init__(self, shape: T5Config, *, owns_bias: bool = False, bidirectional: bool = False) -> None:
        super().__init__()
        width = shape.num_heads * shape.d_kv
        self.heads = shape.num_heads
        self.bidirectional = bidirectional
        self.bias_per_layer = shape.bias_per_layer
        self.reference = False
        self.max_distance = shape.relative_attention_max_distance
        self.q = Linear(shape.d_model, width)
        self.k = Linear(shape.d_model, width)
        self.v = Linear(shape.d_model, width)
        self.o = Linear(width, shape.d_model)
        # T5X drops a key's weight for all queries at once, which is the same as dropping its value.
        self.dropout = SharedDropout(shape.dropout_rate, shared_dim=-1)
        if owns_bias:
            self.relative_attention_bias = Embedding(shape.relative_attention_num_buckets, shape.num_heads)

    def _split(self, x_BSE: Tensor) -> Tensor:
        return x_BSE.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BSD: Tensor) -> KeysValues:
        """Keys and values of x, each [B, H, S, K]."""
        return self._split(self.k(x_BSD)), self._split(self.v(x_BSD))

    def forward(
        self, x_BQD: Tensor, source: KeysValues | list[Encoded] | Tensor, bias: Tensor | None, mask: Mask = None
    ) -> Tensor:
        """Attend from x to a source; the output is [B, Q, D].

        Args:
            source: keys and values; or parts of them for consecutive rows, with their own biases; or encoder states
                [B, S, D], whose keys and values are skipped for few queries.
            bias: added to the scores; in self-attention from `with_positions`.
            mask: 0 or MASKED; or a BlockMask, for FlexAttention; or consecutive inputs.
        """
        q_BHQK = self._split(self.q(x_BQD))
        way = attention_reference if self.reference else attend
        if isinstance(source, list):
            parts = zip(q_BHQK.split([len(part.keys) for part in source]), source, strict=True)
            return self._join(torch.cat([way(q_bHQK, at.keys, at.values, at.bias) for q_bHQK, at in parts]))
        if isinstance(source, Tensor):
            if self.for_few(x_BQD.size(1)):
                shape = len(source), self.heads, source.size(1), 1
                kept_BHS1 = self.dropout.kept(q_BHQK, shape)
                out_BHQK = attend_to_states(q_BHQK, self.k.weight, self.v.weight, source, bias, kept_BHS1)
                return self._join(out_BHQK)
            source = self.keys_values(source)
        k_BHSK, v_BHSK = source
        if isinstance(mask, Consecutive):
            assert bias is not None
            each = zip(*(x.split(mask.lengths, dim=2) for x in (q_BHQK, k_BHSK, v_BHSK)), mask.lengths, strict=True)
            return self._join(torch.cat([way(q, k, v, bias[..., :n, :n]) for q, k, v, n in each], dim=2))
        if mask is not None and not isinstance(mask, Tensor):
            assert bias is not None
            flex = compiled_flex if q_BHQK.is_cuda else attend_flex
            return self._join(flex(q_BHQK, k_BHSK, self.dropout(v_BHSK), bias, self.max_distance, mask))
        return self._join(way(q_BHQK, k_BHSK, self.dropout(v_BHSK), bias, mask))

    def for_few(self, queries: int) -> bool:
        """Whether so few queries skip the keys and values of encoder states."""
        return not self.reference and attends_without_keys(queries, self.q.out_features // self.heads)

    def _join(self, out_BHQK: Tensor) -> Tensor:
        joined_BQD: Tensor = self.o(out_BHQK.transpose(1, 2).flatten(2))
        return joined_BQD

    def with_positions(self, x_BQD: Tensor, bias: Tensor | None, mask: Mask, cache: LayerCache | None) -> Tensor | None:
        """The bias of the scores for all blocks, if this attention owns the position bias; else the given one.

        Not compiled: all blocks then share a graph, and the table of buckets stays a constant.

        Args:
            mask: if it is a BlockMask, the result is the table [H, 2·far + 1] of `attend_flex`; for consecutive inputs
                it is the bias of the longest one, whose corners belong to the others.
        """
        if not hasattr(self, "relative_attention_bias"):
            return bias
        Q = x_BQD.size(1)
        if isinstance(mask, Consecutive):
            Q = max(mask.lengths)
        elif mask is not None and not isinstance(mask, Tensor):
            return self.bias_by_distance()
        past = 0 if cache is None or cache.own is None else cache.own[0].size(2)
        position_bias = self.position_bias(Q, past + Q)
        return (position_bias if bias is None else position_bias + bias).to(product_dtype(x_BQD))

    def position_bias(self, queries: int, keys: int) -> Tensor:
        """Bias [1, H, queries, keys]; the queries are at the last of the keys' positions."""
        # The bias depends only on key − query: Q+S−1 distances, and query i sees a window of S of them.
        distance = torch.arange(1 - keys, queries, device=self.relative_attention_bias.weight.device)
        by_distance = self._bias_at(distance.clamp(-self.max_distance, self.max_distance))
        # Keys are innermost: the fused kernels of a GPU accept no other layout.
        return by_distance.unfold(-1, keys, 1).flip(1)[None]

    def bias_by_distance(self) -> Tensor:
        """Bias [H, 2·far + 1] of the distances −far … far, far = `max_distance`, fp32."""
        far, device = self.max_distance, self.relative_attention_bias.weight.device
        return self._bias_at(torch.arange(-far, far + 1, device=device)).float()

    def _bias_at(self, distance_N: Tensor) -> Tensor:
        """Bias [H, N] of the distances, from −far to far."""
        table, far = self.relative_attention_bias, self.max_distance
        bucket_of = bucket_table(self.bidirectional, table.num_embeddings, far, distance_N.device)
        by_distance_HN: Tensor = table(bucket_of[distance_N + far]).T.contiguous()
        return by_distance_HN


class SelfAttentionLayer(nn.Module):
    def __init__(self, shape: T5Config, *, owns_bias: bool, bidirectional: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(shape, owns_bias=owns_bias, bidirectional=bidirectional)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(self, x_BQD: Tensor, bias: Tensor | None, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        normed_BQD = self.layer_norm(x_BQD)
        keys_values = self.SelfAttention.keys_values(normed_BQD)
        if cache is not None:
            if cache.own is not None:
                earlier_keys, earlier_values = cache.own
                keys, values = keys_values
                keys_values = torch.cat((earlier_keys, keys), 2), torch.cat((earlier_values, values), 2)
            cache.own = keys_values
        return x_BQD + self.dropout(self.SelfAttention(normed_BQD, keys_values, bias, mask))


class CrossAttentionLayer(nn.Module):
    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.EncDecAttention = Attention(shape)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(
        self, x_RTD: Tensor, encoded_BSD: Tensor, bias: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        # Cross-attention has no positions, so several decoder rows of one input can be concatenated.
        normed_BQD = self.layer_norm(x_RTD).reshape(encoded_BSD.size(0), -1, x_RTD.size(-1))
        source: KeysValues | list[Encoded] | Tensor = encoded_BSD
        if cache is not None:
            if cache.encoded is None:
                cache.encoded = self.EncDecAttention.keys_values(encoded_BSD)
            source = cache.encoded
        out_BQD = self.EncDecAttention(normed_BQD, source, bias)
        return x_RTD + self.dropout(out_BQD.reshape(x_RTD.shape))


class FeedForward(nn.Module):
    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.gated = shape.gated
        if shape.gated:
            self.wi_0 = Linear(shape.d_model, shape.d_ff)
            self.wi_1 = Linear(shape.d_model, shape.d_ff)
        else:
            self.wi = Linear(shape.d_model, shape.d_ff)
        self.wo = Linear(shape.d_ff, shape.d_model)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(self, x_BSD: Tensor) -> Tensor:
        inner_BSF = (
            self.activation(self.wi_0(x_BSD)) * self.wi_1(x_BSD) if self.gated else self.activation(self.wi(x_BSD))
        )
        return self.wo(self.dropout(inner_BSF))


class FeedForwardLayer(nn.Module):
    def __init__(self, shape: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(shape)
        self.layer_norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = SharedDropout(shape.dropout_rate)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return x_BSD + self.dropout(self.DenseReluDense(self.layer_norm(x_BSD)))
