"""Bytes that autograd keeps of one microbatch between the forward and the backward pass. Arithmetic on shapes.

It follows pipeline/modeling line by line, and
tests/cost/test_activations.py compares it with what autograd really saves
on a CPU, to the byte: whoever changes what a layer keeps changes it here.

    B  rows of the microbatch         D  d_model         e  bytes of an element in matrix products: 4, in bf16 2
    S  encoder length, prompt too     E  heads · d_kv    4  of what is always fp32: norm statistics, the loss
    T  decoder length                 F  d_ff
    H  heads                          V  vocabulary

A layer that trains keeps its inputs for the gradient of its weights; a frozen one keeps only what the gradient with
respect to its inputs needs: a linear layer nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t5_pipeline.modeling.config import T5Config

_FP32 = 4
_INDEX = 8  # bytes of a token id
LOGITS_AT_ONCE = 2048  # rows: pipeline/evaluation/label_scoring.py
LOSSES_AT_ONCE = {True: 512, False: 4096}  # rows, on a CPU or not: LOGITS_AT_ONCE of pipeline/training/loss.py


@dataclass(frozen=True)
class Microbatch:
    """What one forward pass reads, and how.

    rows, inputs, targets: B, S (a prompt counted) and T, padding included.
    prompt: how many of the S positions are a prompt before a frozen T5; 0 where the whole T5 trains.
    padded: rows differ in length, so that there are masks.
    packed: rows hold several examples, so that masks depend on the query.
    recompute: of a block only its input is kept; its backward pass makes the rest once more.
    cpu: where it runs; on a GPU norms and attention are fused kernels that keep less.
    logits: dtype of the product that makes them, of which `output_loss` keeps the gradient instead of the logits (fp32
        where `bf16` is off); "whole" where all logits are made, in fp32, and kept (mixtures of prompts).
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
    cpu: bool = False
    logits: Literal["bf16", "fp32", "whole"] = "bf16"

    @property
    def frozen(self) -> bool:
        return self.prompt > 0

    @property
    def e(self) -> int:
        return 2 if self.bf16 else _FP32

    @property
    def of_logits(self) -> int:
        """Bytes of a logit, or of what is kept in its place."""
        return self.e if self.logits == "bf16" else _FP32

    @property
    def by_products(self) -> bool:
        """Whether attention and norms are the functions with gradients of their own (bf16 on a CPU)."""
        return self.cpu and self.bf16


@dataclass(frozen=True)
class Kept:
    """Bytes that the backward pass needs, and frees from the last to the first: logits, decoder, encoder.

    Of the logits what is kept is their gradient. Copies of weights, in the dtype that they are multiplied in, count
    where they are used. encoder_block, decoder_block: what comes on top while a block is recomputed.
    """

    encoder: int
    decoder: int
    logits: int
    encoder_block: int = 0
    decoder_block: int = 0

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.logits


def kept(shape: T5Config, m: Microbatch) -> Kept:
    """What autograd keeps of a microbatch of this shape.

    >>> small = T5Config()
    >>> whole = kept(small, Microbatch(rows=8, inputs=512, targets=512, cpu=True))
    >>> f"{whole.total / 2**30:.2f} GiB, of which logits {whole.logits / 2**30:.2f}"
    '2.16 GiB, of which logits 0.25'
    """
    B, S, T = m.rows, m.inputs, m.targets
    D, H = shape.d_model, shape.num_heads
    L, M = shape.num_layers, shape.num_decoder_layers
    # Of a frozen decoder nothing before the first cross-attention leads back to the prompt.
    reached = M - 1 if m.frozen else M
    trains = not m.frozen

    # What the blocks keep inside, and what is kept around them.
    in_encoder = B * S * L * (_self_attention(shape, m, S) + _feed_forward(shape, m))
    in_encoder += _bias(shape, m, S, L, rows=B if m.padded or m.packed else 1)
    encoder = B * S * _norm(shape, m) + B * _INDEX * (m.prompt or S)
    in_decoder = B * T * (reached * _self_attention(shape, m, T) + M * _feed_forward(shape, m))
    in_decoder += B * M * _cross_attention(shape, m) + B * T * reached * _norm(shape, m) + _cross_bias(shape, m)
    in_decoder += _bias(shape, m, T, reached, rows=B if m.packed else 1)
    if m.frozen and few(shape, T):  # the states, for all of cross-attention
        in_decoder += B * S * m.e * D
    # The last norm feeds the loss alone, which keeps the hidden states of the target tokens, and which ones they are.
    decoder = B * T * (_norm(shape, m, feeds=False) + (_INDEX if trains else 0))
    decoder += 0 if m.logits == "whole" else B * T * (m.of_logits * D + 1)
    if trains:  # buckets of the relative positions
        in_encoder += _INDEX * (2 * S - 1)
        in_decoder += _INDEX * (2 * T - 1)
    if m.dropout:  # masks that are shared along the sequence, but for those of values, which are shared along K
        embedded = _FP32 if trains else m.e
        in_encoder += B * m.e * L * (S * H + 2 * D + shape.d_ff)
        in_decoder += B * m.e * (reached * (T * H + D) + M * (S * H + 2 * D + shape.d_ff))
        encoder += B * (embedded + m.e) * D
        decoder += B * (embedded * trains + m.e) * D
    copied = _copies(shape, m, reached)
    in_encoder, in_decoder = in_encoder + copied[0], in_decoder + copied[1]
    logits = B * T * (m.of_logits * shape.vocab_size + (_FP32 + _INDEX if m.logits == "whole" else 0))
    if not m.recompute:
        return Kept(encoder + in_encoder, decoder + in_decoder, logits)
    inputs_of_encoder, inputs_of_decoder = _inputs_of_blocks(shape, m)
    return Kept(encoder + inputs_of_encoder, decoder + inputs_of_decoder, logits, in_encoder // L, in_decoder // M)


def _inputs_of_blocks(shape: T5Config, m: Microbatch) -> tuple[int, int]:
    """What blocks of encoder and decoder are given: the residual stream, the encoder's output, bias and masks."""
    B, S, T, D, H = m.rows, m.inputs, m.targets, shape.d_model, shape.num_heads
    L, M = shape.num_layers, shape.num_decoder_layers
    stream = m.e if m.frozen else _FP32
    masked = S * S if m.packed else S if m.padded else 0
    cross = T * S if m.packed else S if m.padded else 0

    def bias(layers: int, length: int, rows: int) -> int:
        """The first block's, which it gives to those behind it."""
        return rows * H * length * length * m.e if layers > 1 else 0

    encoder = L * B * S * D * stream + B * masked * _FP32
    encoder += bias(L, S, 1 if m.by_products or not masked else B)
    decoder = M * B * T * D * stream + B * S * D * m.e * m.frozen + B * cross * _FP32
    decoder += (B if m.packed else 1) * T * T * _FP32 + bias(M, T, B if m.packed and not m.by_products else 1)
    return encoder, decoder


def _norm(shape: T5Config, m: Microbatch, *, feeds: bool = True) -> int:
    """A position of a norm: its input and 1/RMS; autograd's own on a CPU, to train its weight, also x/RMS.

    feeds: its output too, for the weights that it feeds, where they train.
    """
    kept = (m.e if m.by_products and m.frozen else _FP32) * shape.d_model + _FP32
    if m.frozen:
        return kept
    return kept + ((_FP32 if m.cpu and not m.bf16 else 0) + (m.e if feeds else 0)) * shape.d_model


def _self_attention(shape: T5Config, m: Microbatch, keys: int) -> int:
    """A position of a self-attention layer, its norm included."""
    E, H = shape.num_heads * shape.d_kv, shape.num_heads
    to_o = 0 if m.frozen else m.e * E
    if m.by_products or (m.cpu and not m.frozen):  # q, k, v, softmax
        return _norm(shape, m) + 3 * m.e * E + m.e * H * keys + to_o
    return _norm(shape, m) + 4 * m.e * E + _FP32 * H  # q, k, v, output; log Σ exp of the scores


def _cross_attention(shape: T5Config, m: Microbatch) -> int:
    """A row of a cross-attention layer, without its norm: queries of T positions, keys and values of S."""
    E, H = shape.num_heads * shape.d_kv, shape.num_heads
    if few(shape, m.targets):  # what q asks of the states, softmax; with dropout before and after it
        of_query = m.e * H * (shape.d_model + (2 if m.dropout else 1) * m.inputs)
        of_query += 0 if m.frozen else m.e * (2 * E + H * shape.d_model)  # q, output, what it saw of the states
        return m.targets * of_query
    of_query = 2 * m.e * E + _FP32 * H  # q, output; log Σ exp of the scores
    if m.by_products:  # q, softmax
        of_query = m.e * E + m.e * H * m.inputs + (0 if m.frozen else m.e * E)
    return m.targets * of_query + m.inputs * 2 * m.e * E


def few(shape: T5Config, targets: int) -> bool:
    """Whether cross-attention does without keys and values (Attention.for_few)."""
    return 2 * targets <= shape.d_kv


def _feed_forward(shape: T5Config, m: Microbatch) -> int:
    """A position of a feed-forward layer, its norm included: what its activation, its product and wo keep."""
    by_activation = 1  # its input; of a ReLU its output
    is_relu = shape.activation == "relu"
    if shape.gated:
        tensors = by_activation + (1 if is_relu else 2) + (0 if m.frozen else 1)  # the two factors; wo's input
    else:
        to_wo = not m.frozen and (m.dropout or not is_relu)  # else a ReLU's output is wo's input
        tensors = by_activation + to_wo
    return _norm(shape, m) + tensors * shape.d_ff * m.e


def _bias(shape: T5Config, m: Microbatch, length: int, layers: int, rows: int) -> int:
    """Position bias and mask as fused attention keeps them, one for a stack."""
    if m.by_products or (m.cpu and not m.frozen):
        return 0
    return min(layers, 1) * rows * shape.num_heads * length * length * m.e


def _cross_bias(shape: T5Config, m: Microbatch) -> int:
    """The mask of cross-attention, made in fp32: in another dtype each layer has its own."""
    if m.by_products or few(shape, m.targets):
        return 0
    per_row = m.targets * m.inputs if m.packed else m.inputs if m.padded else 0
    return (shape.num_decoder_layers if m.bf16 else 1) * m.rows * per_row * m.e


def _copies(shape: T5Config, m: Microbatch, reached: int) -> tuple[int, int]:
    """Weights in another dtype, of encoder and decoder: bf16 of what trains; fp32 of a frozen one's norms on a GPU."""
    if not m.bf16:
        return 0, 0
    D, L, M = shape.d_model, shape.num_layers, shape.num_decoder_layers
    if m.frozen:
        norms = (0, 0) if m.cpu else (_FP32 * (2 * L + 1) * D, _FP32 * (2 * reached + M + 1) * D)
        return norms[0], norms[1] + (_FP32 * shape.vocab_size * D if m.logits == "whole" else 0)
    attention, feed_forward = 4 * D * shape.num_heads * shape.d_kv, (3 if shape.gated else 2) * D * shape.d_ff
    return m.e * L * (attention + feed_forward), m.e * M * (2 * attention + feed_forward)


def of_loss(shape: T5Config, m: Microbatch) -> int:
    """The most that a loss holds at one time until it keeps the gradient of the logits, that gradient included.

    Some rows of logits at a time: they, their softmax in fp32 (of bf16 logits made from a copy), and the softmax of the
    rows before; then the gradients of all rows, which are joined.
    """
    N, V, h = m.rows * m.targets, shape.vocab_size, m.of_logits
    if m.logits == "whole":  # logits and their gradient
        return N * (2 * _FP32 * V + _FP32 + _INDEX)
    copied = 0 if h == _FP32 else _FP32
    n = LOSSES_AT_ONCE[m.cpu]
    sizes = [min(n, N - begin) for begin in range(0, N, n)]
    numbers = [
        begin * h + size * (h + _FP32 + copied) + (n * copied if begin else 0)
        for begin, size in zip(range(0, N, n), sizes, strict=True)
    ]
    if len(sizes) > 1:
        numbers.append(2 * N * h + sizes[-1] * (h + copied))
    return weight_copy(shape, m) + V * max(numbers)


def weight_copy(shape: T5Config, m: Microbatch) -> int:
    """The output matrix in the dtype of the product that makes logits, where it has another one."""
    stored = m.e if m.frozen else _FP32
    return 0 if m.of_logits == stored else m.of_logits * shape.vocab_size * shape.d_model


def at_attention(shape: T5Config, m: Microbatch) -> int:
    """What the backward pass of the encoder's last attention holds beyond what the encoder keeps.

    Its feed-forward layer has let go of what it kept. Where scores are there, so are gradients of softmax and scores.
    """
    scores = 2 * m.e * m.rows * shape.num_heads * m.inputs**2 if m.by_products or (m.cpu and not m.frozen) else 0
    return scores - m.rows * m.inputs * _feed_forward(shape, m)


def without_gradient(shape: T5Config, m: Microbatch, label_tokens: int = 0) -> int:
    """The most that a forward pass holds at one time where nothing is kept: to score labels, or to decode greedily.

    label_tokens: tokens of all labels of a task; 0 decodes.
    """
    B, S = m.rows, m.inputs
    D, E, H = shape.d_model, shape.num_heads * shape.d_kv, shape.num_heads
    stream = m.e if m.frozen else _FP32
    # Products need no bias of their own for each row, but scores, their softmax, and q, k and v by heads.
    bias = m.e * (H * S * S if m.by_products or not m.padded else B * H * S * S)
    scores = 2 * m.e * B * H * S * S if m.by_products else 0
    attention = (6 if m.by_products else 3) * m.e * E + m.e * E + m.e * D
    feed_forward = (3 if shape.gated else 2) * shape.d_ff * m.e + m.e * D
    # The residual stream before and after a layer; its first state, and that without the prompt, are with the callers.
    streams = B * (3 * S + (S - m.prompt if m.frozen else 0)) * stream * D
    encoding = streams + bias + max(scores + B * S * attention, B * S * max(feed_forward, 2 * _FP32 * D))
    head = _FP32 * shape.vocab_size * D if m.frozen and m.bf16 else 0
    if label_tokens:
        logits = min(B * label_tokens, LOGITS_AT_ONCE) * shape.vocab_size * _FP32
        answering = max(head + logits, 2 * logits)
    else:
        answering = shape.num_decoder_layers * 2 * E * m.e * B * S + head + 2 * B * shape.vocab_size * _FP32
    return max(encoding, B * S * stream * D + answering)
