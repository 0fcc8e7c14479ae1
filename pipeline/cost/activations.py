"""Bytes that autograd saves for the backward pass of one microbatch, computed from shapes.

Counts the tensors that each layer of pipeline/modeling saves. tests/cost/test_activations.py compares the sums with
what autograd saves on a CPU, to the byte, so a change of a layer that is not repeated here fails a test. Running the
layers themselves on meta or fake tensors would need torch (seconds per plan), and cannot show what the fused kernels of
a GPU save on a machine without one.

    B  rows of the microbatch                D  d_model         e  bytes of an element in matrix products: 4, in bf16 2
    S  encoder length, prompt included       E  heads · d_kv    4  bytes of norm statistics and the loss, always fp32
    T  decoder length                        F  d_ff
    H  heads                                 V  vocabulary

A trained layer saves its inputs for the gradient of its weights. A frozen one saves only what the gradient of its
inputs needs: nothing for a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.limits import LOSS_ROWS, SCORED_LOGITS_ROWS, attends_without_keys

_FP32 = 4
_INDEX = 8  # bytes of a token id


@dataclass(frozen=True)
class Microbatch:
    """Shapes and settings of one forward pass.

    Attributes:
        rows, inputs, targets: B, S (prompt included) and T, with padding.
        prompt: positions of S that are a prompt before a frozen T5; 0 if the whole T5 trains.
        bf16: whether matrix products are in bf16.
        dropout: whether the dropout rate is above 0.
        padded: whether rows differ in length, so that there are masks.
        packed: whether rows contain several examples, so that masks depend on the query.
        recompute: activation checkpointing: only the inputs of blocks are saved.
        fp32_weights: whether a frozen T5 stays in fp32 though products are in bf16, as in the probes of LM adaptation.
        cpu: device; on a GPU, norms and attention are fused kernels that save less.
        logits: precision of the output product; on a CPU the gradient of the logits is saved (fp32 unless `bf16`);
            "whole" if all logits are computed and saved in fp32 (mixtures of prompts).
    """

    rows: int
    inputs: int
    targets: int
    prompt: int = 0
    bf16: bool = True
    dropout: bool = False
    padded: bool = True
    packed: bool = False
    recompute: bool = False
    fp32_weights: bool = False
    cpu: bool = False
    logits: Literal["bf16", "fp32", "whole"] = "bf16"

    @property
    def frozen(self) -> bool:
        return self.prompt > 0

    @property
    def e(self) -> int:
        return 2 if self.bf16 else _FP32

    @property
    def stored(self) -> int:
        """Bytes of a number of the weights, and of the residual stream, which begins with rows of the embedding."""
        return self.e if self.frozen and not self.fp32_weights else _FP32

    @property
    def logit_bytes(self) -> int:
        """Bytes of a logit, or of the gradient that is saved instead."""
        return self.e if self.logits == "bf16" else _FP32

    @property
    def handwritten(self) -> bool:
        """Whether attention and norms have handwritten gradients: in bf16 on a CPU."""
        return self.cpu and self.bf16

    @property
    def saves_scores(self) -> bool:
        """Whether attention saves its softmax instead of being fused."""
        return self.handwritten or (self.cpu and not self.frozen)


@dataclass(frozen=True)
class SavedActivations:
    """Bytes that the backward pass needs, and frees from the last to the first: logits, decoder, encoder.

    Copies of weights in another dtype count where they are used.

    Attributes:
        logits: the gradient of the logits, which a CPU saves instead of them, and a copy of the output matrix if its
            dtype is another; on a GPU, the target tokens.
        encoder_block, decoder_block: additional bytes while a block is recomputed.
    """

    encoder: int
    decoder: int
    logits: int
    encoder_block: int = 0
    decoder_block: int = 0

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.logits


def saved_activations(shape: T5Config, m: Microbatch) -> SavedActivations:
    """Bytes that autograd saves for a microbatch.

    >>> small = T5Config()
    >>> saved = saved_activations(small, Microbatch(rows=8, inputs=512, targets=512, cpu=True))
    >>> f"{saved.total / 2**30:.2f} GiB, of which logits {saved.logits / 2**30:.2f}"
    '2.19 GiB, of which logits 0.28'
    """
    B, S, T = m.rows, m.inputs, m.targets
    D, H = shape.d_model, shape.num_heads
    L, M = shape.num_layers, shape.num_decoder_layers
    # In a frozen decoder, nothing before the first cross-attention depends on the prompt.
    reached = M - 1 if m.frozen else M
    trains = not m.frozen

    # Inside the blocks (in_encoder, in_decoder), and around them.
    in_encoder = B * S * L * (_self_attention(shape, m, S) + _feed_forward(shape, m))
    in_encoder += _bias(shape, m, S, L, rows=B if m.padded or m.packed else 1)
    encoder = B * S * _norm(shape, m) + B * _INDEX * (m.prompt or S)
    in_decoder = B * T * (reached * _self_attention(shape, m, T) + M * _feed_forward(shape, m))
    in_decoder += B * M * _cross_attention(shape, m) + B * T * reached * _norm(shape, m) + _cross_bias(shape, m)
    in_decoder += _bias(shape, m, T, reached, rows=B if m.packed else 1)
    if m.frozen and attends_without_keys(T, shape.d_kv):  # the encoder states, shared by all layers
        in_decoder += B * S * m.e * D
    # The last norm feeds only the loss, which saves the hidden states of the target tokens and their mask.
    decoder = B * T * (_norm(shape, m, feeds=False) + (_INDEX if trains else 0))
    decoder += 0 if m.logits == "whole" else B * T * (m.logit_bytes * D + 1)
    if trains:  # buckets of the relative positions
        in_encoder += _INDEX * (2 * S - 1) * (L if shape.bias_per_layer else 1)
        in_decoder += _INDEX * (2 * T - 1) * (M if shape.bias_per_layer else 1)
    if m.dropout:  # masks shared along the sequence; those of values are shared along K
        in_encoder += B * m.e * L * (S * H + 2 * D + shape.d_ff)
        in_decoder += B * m.e * (reached * (T * H + D) + M * (S * H + 2 * D + shape.d_ff))
        encoder += B * (m.stored + m.e) * D
        decoder += B * (m.stored * trains + m.e) * D
    copied = _copies(shape, m, reached)
    in_encoder, in_decoder = in_encoder + copied[0], in_decoder + copied[1]
    logits = B * T * (m.logit_bytes * shape.vocab_size + (_FP32 + _INDEX if m.logits == "whole" else 0))
    if m.logits != "whole" and not m.cpu:
        logits = B * T * _INDEX
    elif m.logits != "whole":
        logits += output_copy(shape, m)
    if not m.recompute:
        return SavedActivations(encoder + in_encoder, decoder + in_decoder, logits)
    inputs = _block_inputs(shape, m)
    return SavedActivations(encoder + inputs[0], decoder + inputs[1], logits, in_encoder // L, in_decoder // M)


def _block_inputs(shape: T5Config, m: Microbatch) -> tuple[int, int]:
    """Inputs of all blocks of encoder and decoder: the residual stream, the encoder's output, bias and masks."""
    B, S, T, D, H = m.rows, m.inputs, m.targets, shape.d_model, shape.num_heads
    L, M = shape.num_layers, shape.num_decoder_layers
    masked = S * S if m.packed else S if m.padded else 0
    cross = T * S if m.packed else S if m.padded else 0

    def bias(layers: int, length: int, rows: int) -> int:
        """Bias of positions and masks, which the first block passes to the others; in umT5 each block has its own."""
        return rows * H * length * length * m.e if layers and not shape.bias_per_layer else 0

    own = shape.bias_per_layer  # computed in each block, from its mask
    indices = 0 if m.frozen or own else _INDEX  # buckets of the relative positions
    encoder = L * B * S * D * m.stored + B * masked * _FP32 * (m.handwritten or own) + indices * (2 * S - 1)
    encoder += bias(L, S, 1 if m.handwritten or not masked else B)
    decoder = M * B * T * D * m.stored + B * S * D * m.e * m.frozen + B * cross * _FP32 + indices * (2 * T - 1)
    if own or (m.packed and m.handwritten):
        decoder += (B if m.packed else 1) * T * T * _FP32
    decoder += bias(M, T, B if m.packed and not m.handwritten else 1)
    return encoder, decoder


def _norm(shape: T5Config, m: Microbatch, *, feeds: bool = True) -> int:
    """A position of a norm: its input and 1/RMS; if its weight trains by autograd on a CPU, also x/RMS.

    Args:
        feeds: whether its output is saved too, as the input of trained weights.
    """
    saved = (m.stored if m.handwritten else _FP32) * shape.d_model + _FP32
    if m.frozen:
        return saved
    return saved + ((_FP32 if m.cpu and not m.bf16 else 0) + (m.e if feeds else 0)) * shape.d_model


def _self_attention(shape: T5Config, m: Microbatch, keys: int) -> int:
    """A position of a self-attention layer, norm included."""
    E, H = shape.num_heads * shape.d_kv, shape.num_heads
    to_o = 0 if m.frozen else m.e * E
    if m.saves_scores:  # q, k, v, softmax
        return _norm(shape, m) + 3 * m.e * E + m.e * H * keys + to_o
    return _norm(shape, m) + 4 * m.e * E + _FP32 * H  # q, k, v, output; log Σ exp of the scores


def _cross_attention(shape: T5Config, m: Microbatch) -> int:
    """A row of a cross-attention layer, without its norm: queries of T positions, keys and values of S."""
    E, H = shape.num_heads * shape.d_kv, shape.num_heads
    if attends_without_keys(m.targets, shape.d_kv):  # q K, softmax (with dropout before and after it)
        of_query = m.e * H * (shape.d_model + (2 if m.dropout else 1) * m.inputs)
        of_query += 0 if m.frozen else m.e * (2 * E + H * shape.d_model)  # q, output, the weighted states
        return m.targets * of_query
    of_query = 2 * m.e * E + _FP32 * H  # q, output; log Σ exp of the scores
    if m.handwritten:  # q, softmax
        of_query = m.e * E + m.e * H * m.inputs + (0 if m.frozen else m.e * E)
    return m.targets * of_query + m.inputs * 2 * m.e * E


def _feed_forward(shape: T5Config, m: Microbatch) -> int:
    """A position of a feed-forward layer, norm included: tensors saved by activation, gate and wo."""
    by_activation = 1  # its input; for a ReLU its output
    is_relu = shape.activation == "relu"
    if shape.gated:
        tensors = by_activation + (1 if is_relu else 2) + (0 if m.frozen else 1)  # the two factors; wo's input
    else:
        to_wo = not m.frozen and (m.dropout or not is_relu)  # else a ReLU's output is wo's input
        tensors = by_activation + to_wo
    return _norm(shape, m) + tensors * shape.d_ff * m.e


def _bias(shape: T5Config, m: Microbatch, length: int, layers: int, rows: int) -> int:
    """Position bias and mask that fused attention saves, once per stack or per layer."""
    if m.saves_scores:
        return 0
    return (layers if shape.bias_per_layer else min(layers, 1)) * rows * shape.num_heads * length * length * m.e


def _cross_bias(shape: T5Config, m: Microbatch) -> int:
    """The mask of cross-attention; in bf16 each layer has its own copy of it."""
    if m.handwritten or attends_without_keys(m.targets, shape.d_kv):
        return 0
    per_row = m.targets * m.inputs if m.packed else m.inputs if m.padded else 0
    return (shape.num_decoder_layers if m.bf16 else 1) * m.rows * per_row * m.e


def _copies(shape: T5Config, m: Microbatch, reached: int) -> tuple[int, int]:
    """Copies of weights in encoder and decoder: in bf16 if they are fp32; in fp32 for frozen norms on a GPU."""
    if not m.bf16:
        return 0, 0
    D, L, M = shape.d_model, shape.num_layers, shape.num_decoder_layers
    if m.stored == m.e:
        norms = (0, 0) if m.cpu else (_FP32 * (2 * L + 1) * D, _FP32 * (2 * reached + M + 1) * D)
        return norms[0], norms[1] + (_FP32 * shape.vocab_size * D if m.logits == "whole" else 0)
    attention, feed_forward = 4 * D * shape.num_heads * shape.d_kv, (3 if shape.gated else 2) * D * shape.d_ff
    decoder = M * (2 * attention + feed_forward)
    if m.frozen:  # a gradient needs neither self-attention nor the queries of the first layers
        queries = 2 if attends_without_keys(m.targets, shape.d_kv) else 1
        decoder -= (M - reached) * (attention + queries * attention // 4)
    return m.e * L * (attention + feed_forward), m.e * decoder


def loss_peak(shape: T5Config, m: Microbatch) -> int:
    """Peak memory of the loss, which computes the gradient of the logits, a few rows at a time; on a CPU it keeps it.

    At a time there are the logits of these rows, their softmax in fp32 (from a copy of bf16 logits) and the softmax of
    the previous rows; at the end the gradients of all rows, twice while they are concatenated.
    """
    N, V, h = m.rows * m.targets, shape.vocab_size, m.logit_bytes
    if m.logits == "whole":  # logits and their gradient
        return N * (2 * _FP32 * V + _FP32 + _INDEX)
    copied = 0 if h == _FP32 else _FP32
    n = LOSS_ROWS["cpu" if m.cpu else "cuda"]
    if not m.cpu:  # logits, softmax and their gradient of some rows, in the backward pass
        return output_copy(shape, m) + V * min(n, N) * (2 * h + _FP32 + copied)
    sizes = [min(n, N - begin) for begin in range(0, N, n)]
    peaks = [
        begin * h + size * (h + _FP32 + copied) + (n * copied if begin else 0)
        for begin, size in zip(range(0, N, n), sizes, strict=True)
    ]
    if len(sizes) > 1:
        peaks.append(2 * N * h + sizes[-1] * (h + copied))
    return output_copy(shape, m) + V * max(peaks)


def output_copy(shape: T5Config, m: Microbatch) -> int:
    """Copy of the output matrix in the dtype of the output product, if it is stored in another one."""
    return 0 if m.logit_bytes == m.stored else m.logit_bytes * shape.vocab_size * shape.d_model


def attention_backward(shape: T5Config, m: Microbatch) -> int:
    """Memory of the backward pass of the encoder's last attention, relative to the encoder's saved activations.

    Gradients of softmax and scores are added; what the last feed-forward layer saved has been freed.
    """
    scores = 2 * m.e * m.rows * shape.num_heads * m.inputs**2 if m.saves_scores else 0
    return scores - m.rows * m.inputs * _feed_forward(shape, m)


def inference_peak(shape: T5Config, m: Microbatch, label_tokens: int) -> int:
    """Peak memory of label scoring or greedy decoding, beside the weights.

    Args:
        label_tokens: tokens of all labels of a task; 0 for greedy decoding.
    """
    B, S = m.rows, m.inputs
    D, E, H = shape.d_model, shape.num_heads * shape.d_kv, shape.num_heads
    # Handwritten attention needs no bias per row, but scores, their softmax, and q, k and v by heads.
    bias = m.e * (H * S * S if m.handwritten or not m.padded else B * H * S * S)
    scores = 2 * m.e * B * H * S * S if m.handwritten else 0
    attention = (6 if m.handwritten else 3) * m.e * E + m.e * E + m.e * D
    feed_forward = (3 if shape.gated else 2) * shape.d_ff * m.e + m.e * D
    # The residual stream before and after a layer; callers still reference its first state and the one without prompt.
    streams = B * (3 * S + (S - m.prompt if m.frozen else 0)) * m.stored * D
    encoding = streams + bias + max(scores + B * S * attention, B * S * max(feed_forward, 2 * _FP32 * D))
    head = _FP32 * shape.vocab_size * D if m.stored < _FP32 else 0
    if label_tokens:
        logits = min(B * label_tokens, SCORED_LOGITS_ROWS) * shape.vocab_size * _FP32
        answering = max(head + logits, 2 * logits)
    else:
        answering = shape.num_decoder_layers * 2 * E * m.e * B * S + head + 2 * B * shape.vocab_size * _FP32
    return max(encoding, B * S * m.stored * D + answering)
