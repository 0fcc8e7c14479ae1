"""T5X checkpoints, the format in which Google published T5 1.1 and the LM-adapted T5s.

A checkpoint folder contains a msgpack tree, `checkpoint`, with the small arrays, and one zarr (version 2) folder of
chunks for each large array. Kernels are [in, out] in T5X and [out, in] in torch; relative biases are [heads, buckets]
in T5X and [buckets, heads] here. It may also contain Adafactor's second moments and step.

In the "scalable" layout, each array contains all layers of a stack along axis 1 ("scanned": encoder.encoder.…). Heads
may have an axis of their own, and every layer may have its own relative biases, as in umT5.

Shapes: V vocabulary rows, D d_model, H heads, K head width, F d_ff.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from t5_pipeline.core.bounded import open_file
from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config, misfits
from t5_pipeline.modeling.zarr import from_bytes, read_zarr, zarr_layout

TREE = "checkpoint"
WEIGHTS, MOMENTS = "target", "state.param_states"  # parts of the tree, and prefixes of its zarr folders
ARRAYS = (1, 3)  # flax's msgpack extensions for arrays and NumPy scalars: (shape, dtype, bytes)

Stored = np.ndarray | Path  # an array of the tree, or a zarr folder
_SCANNED = re.compile(r"(encoder|decoder)\.\1\.(.+)")
_MAX_LAYERS = 10_000  # of a scanned array; more are damage


@dataclass(frozen=True)
class Leaf:
    """An array of a layer.

    Attributes:
        stored: the array it is in.
        layer: its index along axis 1 of `stored`; None if that is not scanned.
        heads: axis of the heads, which are joined with the next axis; None if they already are.
    """

    stored: Stored
    layer: int | None = None
    heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.stored
        shape = list(zarr_layout(stored)["shape"] if isinstance(stored, Path) else stored.shape)
        if self.layer is not None:
            del shape[1]
        if self.heads is not None:
            shape[self.heads : self.heads + 2] = [shape[self.heads] * shape[self.heads + 1]]
        return tuple(shape)

    def of(self, values: np.ndarray) -> np.ndarray:
        """This array, from the values of `stored`."""
        return (values if self.layer is None else values[:, self.layer]).reshape(self.shape)


def find_t5x(directory: Path) -> Path | None:
    """The T5X checkpoint that a directory is, or the only one in it; None if there is none.

    Raises:
        InputError: if the directory contains several checkpoints.
    """
    if (directory / TREE).is_file():
        return directory
    inside = sorted(path.parent.name for path in directory.glob(f"checkpoint_*/{TREE}"))
    if len(inside) > 1:
        raise InputError(f"{directory}: contains several T5X checkpoints ({', '.join(inside)}); name one of them")
    return directory / inside[0] if inside else None


def t5x_shape(checkpoint: Path, max_distance: int = 128) -> T5Config:
    """Sizes of the model in a T5X checkpoint, from the shapes of its arrays.

    The activation follows from the variant: GELU for a gated feed-forward (T5 1.1), otherwise ReLU (original).

    Args:
        max_distance: of relative positions, which the arrays do not contain; 128 for every published T5.

    Raises:
        InputError: if the arrays are not those of a T5.
    """
    shapes = {name: leaf.shape for name, leaf in _weights(checkpoint).items()}

    def size(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) <= axis:
            raise InputError(
                f"{checkpoint}: is not a checkpoint of a T5 (array {name} is missing or misshapen); check the path"
            )
        return shapes[name][axis]

    gated = "encoder.layers_0.mlp.wi_0.kernel" in shapes
    own_biases = "encoder.layers_0.relpos_bias.rel_embedding"
    bias_per_layer = own_biases in shapes
    biases = own_biases if bias_per_layer else "encoder.relpos_bias.rel_embedding"
    heads = size(biases, 0)
    return T5Config(
        vocab_size=size("token_embedder.embedding", 0),
        d_model=size("token_embedder.embedding", 1),
        d_kv=size("encoder.layers_0.attention.query.kernel", 1) // heads,
        d_ff=size(f"encoder.layers_0.mlp.{'wi_0' if gated else 'wi'}.kernel", 1),
        num_layers=_count_layers(shapes, "encoder"),
        num_decoder_layers=_count_layers(shapes, "decoder"),
        num_heads=heads,
        relative_attention_num_buckets=size(biases, 1),
        relative_attention_max_distance=max_distance,
        gated=gated,
        activation="gelu_new" if gated else "relu",
        tied="decoder.logits_dense.kernel" not in shapes,
        model_type="umt5" if bias_per_layer else "t5",
    )


def t5x_tensors(checkpoint: Path, shape: T5Config) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors in fp32 under our names, each read on demand.

    Raises:
        InputError: if arrays are missing, unexpected or of another shape; names all of them.
    """
    leaves, expected = _weights(checkpoint), _expected(shape)
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
    root = _root(checkpoint)
    leaves, step = _leaves(checkpoint, root, MOMENTS), root.get("state", {}).get("step")
    if any(map(_SCANNED.match, leaves)):
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


def _root(checkpoint: Path) -> Mapping[str, Any]:
    """The tree, with the small arrays as NumPy arrays."""
    path = checkpoint / TREE
    try:
        with open_file(path) as file:
            content = file.read()
        tree = msgpack.unpackb(content, strict_map_key=False, ext_hook=_array_from_ext)
        root = tree.get("optimizer", tree)
        if isinstance(root[WEIGHTS], Mapping):
            return dict(root)
        reason = f"{WEIGHTS} is a {type(root[WEIGHTS]).__name__}"
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path}: is not the msgpack tree of a T5X checkpoint ({reason}); fetch it again")


def _leaves(checkpoint: Path, root: Mapping[str, Any], part: str) -> dict[str, Stored]:
    """Dotted name → array or zarr folder, for all arrays of a part of the tree and all folders beside it."""
    leaves: dict[str, Stored] = {
        folder.name.removeprefix(f"{part}."): folder for folder in checkpoint.glob(f"{part}.*") if folder.is_dir()
    }

    def walk(node: Any, name: str) -> None:
        if isinstance(node, np.ndarray):
            leaves[name] = node
        elif isinstance(node, Mapping) and "kvstore" not in node:
            for key, child in node.items():
                walk(child, f"{name}.{key}" if name else str(key))
        # Other nodes only refer to zarr folders, which are found by their names.

    node: Any = root
    for key in part.split("."):
        node = node.get(key, {}) if isinstance(node, Mapping) else {}
    walk(node, "")
    return leaves


def _weights(checkpoint: Path) -> dict[str, Leaf]:
    """The weights by the names that they have if layers are not scanned."""
    found = {}
    for name, stored in _leaves(checkpoint, _root(checkpoint), WEIGHTS).items():
        match, shape = _SCANNED.fullmatch(name), Leaf(stored).shape
        axes = len(shape) - (match is not None)
        split = re.search(r"\.(query|key|value|out)\.kernel$", name) if axes == 3 else None
        heads = None if split is None else 0 if split[1] == "out" else 1
        if match is None:
            found[name] = Leaf(stored, None, heads)
        elif axes > 0:
            if shape[1] > _MAX_LAYERS:
                raise InputError(f"{checkpoint}: {name} has {shape[1]:,} layers; fetch the checkpoint again")
            for layer in range(shape[1]):
                found[f"{match[1]}.layers_{layer}.{match[2]}"] = Leaf(stored, layer, heads)
    return found


def _read(stored: Stored, where: str) -> np.ndarray:
    return _as_fp32(read_zarr(stored) if isinstance(stored, Path) else stored, where)


def _array_from_ext(code: int, data: bytes) -> object:
    if code not in ARRAYS:
        return msgpack.ExtType(code, data)
    shape, dtype, buffer = msgpack.unpackb(data)
    return from_bytes(buffer, dtype).reshape(shape)


def _as_fp32(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind != "f":
        raise InputError(f"{where}: contains {array.dtype} instead of floating point; fetch the checkpoint again")
    return np.array(array, np.float32)


def _count_layers(names: Mapping[str, object], stack: str) -> int:
    # Not the highest number: a damaged name could have any.
    return len({match[1] for name in names if (match := re.match(rf"{stack}\.layers_(\d+)\.", name))})
