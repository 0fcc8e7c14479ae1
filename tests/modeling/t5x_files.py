"""T5X checkpoints that tests write: random arrays, as a msgpack tree and zarr folders."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.t5 import T5

Arrays = dict[str, NDArray]  # T5X name → array


def random_arrays(shape: T5Config, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    D, HK = shape.d_model, shape.num_heads * shape.d_kv

    def normal(*size: int) -> NDArray:
        return rng.normal(0, size[0] ** -0.5, size).astype(np.float32)

    arrays: Arrays = {"token_embedder.embedding": normal(shape.vocab_size, D) * 8}
    for stack, depth, attentions in (
        ("encoder", shape.num_layers, ["attention"]),
        ("decoder", shape.num_decoder_layers, ["self_attention", "encoder_decoder_attention"]),
    ):
        for i in range(depth):
            layer = f"{stack}.layers_{i}"
            for name in attentions:
                for part in ("query", "key", "value"):
                    arrays[f"{layer}.{name}.{part}.kernel"] = normal(D, HK)
                arrays[f"{layer}.{name}.out.kernel"] = normal(HK, D)
                norm = name.replace("encoder_decoder", "cross")
                arrays[f"{layer}.pre_{norm}_layer_norm.scale"] = 1 + normal(D)
            for wi in ("wi_0", "wi_1") if shape.gated else ("wi",):
                arrays[f"{layer}.mlp.{wi}.kernel"] = normal(D, shape.d_ff)
            arrays[f"{layer}.mlp.wo.kernel"] = normal(shape.d_ff, D)
            arrays[f"{layer}.pre_mlp_layer_norm.scale"] = 1 + normal(D)
        arrays[f"{stack}.{stack}_norm.scale"] = 1 + normal(D)
        arrays[f"{stack}.relpos_bias.rel_embedding"] = normal(shape.num_heads, shape.relative_attention_num_buckets)
    if not shape.tied:
        arrays["decoder.logits_dense.kernel"] = normal(D, shape.vocab_size)
    return arrays


def pack_array(array: NDArray) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def write_checkpoint(folder: Path, arrays: Arrays, moments: Arrays | None = None, step: object = 7) -> Path:
    """Write matrices except relative biases as zarr, and the rest into the tree, as T5X does.

    Args:
        moments: `NAME.v`, `NAME.v_row`, `NAME.v_col` of the arrays; matrices are zarr folders too.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(part: str, arrays: Arrays) -> dict:
        tree: dict = {}
        for name, array in arrays.items():
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            if last in ("kernel", "embedding") or (last == "v" and array.ndim == 2):
                chunks = (20, 24) if array.ndim == 2 else (12, 2, 3, 7)[: array.ndim]
                write_zarr(folder / f"{part}.{name}", array, chunks, "gzip")
                path = {"driver": "gfile", "path": f"{part}.{name}"}
                node[last] = {"driver": "zarr", "kvstore": path, "metadata": {}}
            else:
                node[last] = pack_array(array)
        return tree

    unread = {"encoder": {"m": pack_array(np.zeros(3, np.float32))}}
    state = {"step": step, "param_states": unread if moments is None else write("state.param_states", moments)}
    content = {"version": 3, "optimizer": {"target": write("target", arrays), "state": state}}
    (folder / "checkpoint").write_bytes(msgpack.packb(content))
    return folder


def scanned_arrays(t5: T5) -> Arrays:
    """A T5 in T5X's scalable layout: all layers along axis 1, heads apart."""
    state, (D, H) = t5.state_dict(), (t5.shape.d_model, t5.shape.num_heads)
    arrays: Arrays = {
        "token_embedder.embedding": state["shared.weight"].numpy(),
        "decoder.logits_dense.kernel": state["lm_head.weight"].T.numpy(),
    }

    def stack(ours: str, depth: int, *shape: int) -> NDArray:
        layers = [state[ours.format(i)] for i in range(depth)]
        return np.stack(
            [np.ascontiguousarray(layer.numpy().T).reshape(shape or layer.numpy().T.shape) for layer in layers], axis=1
        )

    stacks = {
        "encoder": (t5.shape.num_layers, {"attention": "SelfAttention"}),
        "decoder": (
            t5.shape.num_decoder_layers, {"self_attention": "SelfAttention", "encoder_decoder_attention": "EncDecAttention"},
        ),
    }  # fmt: skip
    for name, (depth, attentions) in stacks.items():
        theirs, ours = f"{name}.{name}", f"{name}.block.{{}}.layer"
        for j, (part, attention) in enumerate(attentions.items()):
            for kernel, letter in (("query", "q"), ("key", "k"), ("value", "v")):
                arrays[f"{theirs}.{part}.{kernel}.kernel"] = stack(
                    f"{ours}.{j}.{attention}.{letter}.weight", depth, D, H, -1
                )
            arrays[f"{theirs}.{part}.out.kernel"] = stack(f"{ours}.{j}.{attention}.o.weight", depth, H, -1, D)
            norm = part.replace("encoder_decoder", "cross")
            arrays[f"{theirs}.pre_{norm}_layer_norm.scale"] = stack(f"{ours}.{j}.layer_norm.weight", depth)
        last = f"{ours}.{len(attentions)}"
        for kernel in ("wi_0", "wi_1", "wo"):
            arrays[f"{theirs}.mlp.{kernel}.kernel"] = stack(f"{last}.DenseReluDense.{kernel}.weight", depth)
        arrays[f"{theirs}.pre_mlp_layer_norm.scale"] = stack(f"{last}.layer_norm.weight", depth)
        biases = f"{ours}.0.SelfAttention.relative_attention_bias.weight"
        arrays[f"{theirs}.relpos_bias.rel_embedding"] = stack(biases, depth)
        arrays[f"{name}.{name}_norm.scale"] = state[f"{name}.final_layer_norm.weight"].numpy()
    return arrays


def write_zarr(folder: Path, array: NDArray, chunks: tuple[int, ...], compressor: str | None, order: str = "C") -> None:
    folder.mkdir(parents=True)
    layout = {
        "zarr_format": 2, "shape": array.shape, "chunks": chunks, "dtype": array.dtype.str, "order": order,
        "compressor": compressor and {"id": compressor, "level": 1}, "filters": None, "fill_value": None,
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(layout))
    padded = np.pad(array, [(0, -n % c) for n, c in zip(array.shape, chunks, strict=True)], constant_values=7)
    for index in itertools.product(*(range(n // c) for n, c in zip(padded.shape, chunks, strict=True))):
        part = padded[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
        data = part.tobytes(order=order)  # type: ignore[arg-type]
        pack = {"gzip": gzip.compress, "zlib": zlib.compress, None: bytes}[compressor]
        (folder / ".".join(map(str, index))).write_bytes(pack(data))
