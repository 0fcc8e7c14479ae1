"""The tensors of T5X checkpoints (t5x_layout.py), and Adafactor's second moments.

Kernels are [in, out] in T5X and [out, in] in torch; relative biases are [heads, buckets] in T5X and [buckets, heads]
here.

Shapes: V vocabulary rows, D d_model, H heads, K head width, F d_ff.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config, misfits
from t5_pipeline.modeling.t5x_layout import MOMENTS, SCANNED, Leaf, Stored, leaves_of, read_tree, weights_of
from t5_pipeline.modeling.zarr import read_zarr


def t5x_tensors(checkpoint: Path, shape: T5Config) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors in fp32 under our names, each read on demand.

    Raises:
        InputError: if arrays are missing, unexpected or of another shape; names all of them.
    """
    leaves, expected = weights_of(checkpoint), _expected(shape)
    shapes = {name: array.shape for name, array in expected.items()}
    if problems := misfits(shapes, {name: leaf.shape for name, leaf in leaves.items()}):
        named = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items())
        raise InputError(f"{checkpoint}: arrays do not fit a T5 of these sizes ({named}); fetch the checkpoint again")
    together: dict[object, list[str]] = {}  # a scanned array is read once for all layers
    for name in expected:
        stored = leaves[name].stored
        together.setdefault(stored if isinstance(stored, Path) else id(stored), []).append(name)
    for names in together.values():
        whole = _read(leaves[names[0]].stored, f"{checkpoint}: {names[0]}")
        for name in names:
            values, array = torch.from_numpy(leaves[name].of(whole)), expected[name]
            yield array.ours, (values.T if array.transposed else values).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class SecondMoments:
    """Adafactor's running means of squared gradients for one parameter, in fp32 and with our axes.

    Attributes:
        whole: one for each element; None if they are factored.
        by_axis: if they are factored, axis → means over the other axis.
    """

    whole: Tensor | None
    by_axis: dict[int, Tensor]


def t5x_moments(checkpoint: Path, shape: T5Config) -> tuple[int, dict[str, SecondMoments]]:
    """Adafactor's step and second moments in a T5X checkpoint, by our names. Momentum is not read.

    T5X factors a matrix if its shorter side is at least 128: `v_row` are the means over the longer axis (of equal ones
    the last), `v_col` those over the shorter.

    Raises:
        InputError: if the checkpoint contains none, or some of another shape.
    """
    root = read_tree(checkpoint)
    leaves, step = leaves_of(checkpoint, root, MOMENTS), root.get("state", {}).get("step")
    if any(map(SCANNED.match, leaves)):
        raise InputError(
            f"{checkpoint}: the state of Adafactor is that of scanned layers, which is not read; set `optimizer_state:"
            " fresh` to start without"
        )

    def read(name: str, wanted: tuple[int, ...]) -> Tensor:
        leaf = leaves.get(name)
        if leaf is None or Leaf(leaf).shape != wanted:
            found = "no" if leaf is None else f"{list(Leaf(leaf).shape)} instead of {list(wanted)} as"
            raise InputError(
                f"{checkpoint}: contains {found} Adafactor state {name}; set `optimizer_state: fresh` to start without"
            )
        return torch.from_numpy(_read(leaf, f"{checkpoint}: {name}"))

    def moments(name: str, array: _Array) -> SecondMoments:
        v = leaves.get(f"{name}.v")
        if v is None or Leaf(v).shape == array.shape or len(array.shape) < 2:
            whole = read(f"{name}.v", array.shape)
            return SecondMoments(whole.T.contiguous() if array.transposed else whole, {})
        shorter = 0 if array.shape[0] <= array.shape[1] else 1
        return SecondMoments(
            None,
            {
                1 - axis if array.transposed else axis: read(f"{name}.{statistic}", (array.shape[axis],))
                for statistic, axis in (("v_row", shorter), ("v_col", 1 - shorter))
            },
        )

    if not leaves or step is None:
        raise InputError(f"{checkpoint}: contains no state of Adafactor; set `optimizer_state: fresh` to start without")
    return int(np.asarray(step)), {array.ours: moments(name, array) for name, array in _expected(shape).items()}


@dataclass(frozen=True)
class _Array:
    ours: str
    shape: tuple[int, ...]  # in T5X
    transposed: bool


def _expected(s: T5Config) -> dict[str, _Array]:
    """Every array of a T5X checkpoint of these sizes, by its T5X name."""
    D, HK = s.d_model, s.num_heads * s.d_kv
    arrays = {"token_embedder.embedding": _Array("shared.weight", (s.vocab_size, D), False)}

    def kernel(theirs: str, ours: str, rows: int, columns: int) -> None:
        arrays[f"{theirs}.kernel"] = _Array(f"{ours}.weight", (rows, columns), True)

    def norm(theirs: str, ours: str) -> None:
        arrays[f"{theirs}.scale"] = _Array(f"{ours}.weight", (D,), False)

    def attention(theirs: str, ours: str) -> None:
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            kernel(f"{theirs}.{name}", f"{ours}.{letter}", D, HK)
        kernel(f"{theirs}.out", f"{ours}.o", HK, D)

    stacks = {
        "encoder": (s.num_layers, {"attention": "SelfAttention"}),
        "decoder": (
            s.num_decoder_layers,
            {"self_attention": "SelfAttention", "encoder_decoder_attention": "EncDecAttention"},
        ),
    }
    norms = {
        "attention": "pre_attention_layer_norm",
        "self_attention": "pre_self_attention_layer_norm",
        "encoder_decoder_attention": "pre_cross_attention_layer_norm",
    }
    for stack, (layers, attentions) in stacks.items():
        for i in range(layers):
            block, layer = f"{stack}.block.{i}.layer", f"{stack}.layers_{i}"
            for j, (theirs, ours) in enumerate(attentions.items()):
                attention(f"{layer}.{theirs}", f"{block}.{j}.{ours}")
                norm(f"{layer}.{norms[theirs]}", f"{block}.{j}.layer_norm")
            last = f"{block}.{len(attentions)}"
            for wi in ("wi_0", "wi_1") if s.gated else ("wi",):
                kernel(f"{layer}.mlp.{wi}", f"{last}.DenseReluDense.{wi}", D, s.d_ff)
            kernel(f"{layer}.mlp.wo", f"{last}.DenseReluDense.wo", s.d_ff, D)
            norm(f"{layer}.pre_mlp_layer_norm", f"{last}.layer_norm")
        norm(f"{stack}.{stack}_norm", f"{stack}.final_layer_norm")
        for i in range(layers if s.bias_per_layer else 1):
            theirs = f"{stack}.layers_{i}" if s.bias_per_layer else stack
            arrays[f"{theirs}.relpos_bias.rel_embedding"] = _Array(
                f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
                (s.num_heads, s.relative_attention_num_buckets),
                True,
            )
    if not s.tied:
        kernel("decoder.logits_dense", "lm_head", D, s.vocab_size)
    return arrays


def _read(stored: Stored, where: str) -> np.ndarray:
    return _as_fp32(read_zarr(stored) if isinstance(stored, Path) else stored, where)


def _as_fp32(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind != "f":
        raise InputError(f"{where}: contains {array.dtype} instead of floating point; fetch the checkpoint again")
    return np.array(array, np.float32)
