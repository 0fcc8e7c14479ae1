"""The layout of T5X checkpoints, the format in which Google published T5 1.1 and the LM-adapted T5s. No torch.

A checkpoint folder contains a msgpack tree, `checkpoint`, with the small arrays, and one zarr (version 2) folder of
chunks for each large array. It may also contain Adafactor's second moments and step.

In the "scalable" layout, each array contains all layers of a stack along axis 1 ("scanned": encoder.encoder.…). Heads
may have an axis of their own, and every layer may have its own relative biases, as in umT5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from t5_pipeline.core.bounded import open_file
from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.zarr import from_bytes, zarr_layout

TREE = "checkpoint"
WEIGHTS, MOMENTS = "target", "state.param_states"  # parts of the tree, and prefixes of its zarr folders
ARRAYS = (1, 3)  # flax's msgpack extensions for arrays and NumPy scalars: (shape, dtype, bytes)

Stored = np.ndarray | Path  # an array of the tree, or a zarr folder
SCANNED = re.compile(r"(encoder|decoder)\.\1\.(.+)")
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
    shapes = {name: leaf.shape for name, leaf in weights_of(checkpoint).items()}

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


def read_tree(checkpoint: Path) -> Mapping[str, Any]:
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


def leaves_of(checkpoint: Path, root: Mapping[str, Any], part: str) -> dict[str, Stored]:
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


def weights_of(checkpoint: Path) -> dict[str, Leaf]:
    """The weights by the names that they have if layers are not scanned."""
    found = {}
    for name, stored in leaves_of(checkpoint, read_tree(checkpoint), WEIGHTS).items():
        match, shape = SCANNED.fullmatch(name), Leaf(stored).shape
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


def _array_from_ext(code: int, data: bytes) -> object:
    if code not in ARRAYS:
        return msgpack.ExtType(code, data)
    shape, dtype, buffer = msgpack.unpackb(data)
    return from_bytes(buffer, dtype).reshape(shape)


def _count_layers(names: Mapping[str, object], stack: str) -> int:
    # Not the highest number: a damaged name could have any.
    return len({match[1] for name in names if (match := re.match(rf"{stack}\.layers_(\d+)\.", name))})
