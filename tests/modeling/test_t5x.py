"""T5X checkpoints, compared with a forward pass in NumPy that follows the paper."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from t5_pipeline.artifacts.kinds import locate
from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import assemble, init_t5, load_t5, save_t5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.modeling.t5x import find_t5x, t5x_moments, t5x_shape, t5x_tensors
from t5_pipeline.modeling.zarr import read_zarr
from tests.modeling.conftest import SHAPES, model_digest, token_rows

Arrays = dict[str, NDArray]  # T5X name → array

# ---------------------------------------------------------------- the reference: T5 in NumPy, float64, T5X's layout


def rms_norm(x: NDArray, scale: NDArray) -> NDArray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def bucket(distance: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Bucket of one relative position, key − query."""
    first, n = 0, -distance
    if bidirectional:
        buckets //= 2
        first, n = (buckets, -n) if n < 0 else (0, n)
    n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return first + n
    far = exact + int(np.log(n / exact) / np.log(max_distance / exact) * (buckets - exact) + 1e-9)
    return first + min(far, buckets - 1)


def reference_logits(a: Arrays, inputs: list[int], targets: list[int], max_distance: int) -> NDArray:
    """Logits [T, V] for one example without padding."""
    a = {name: array.astype(np.float64) for name, array in a.items()}
    heads, buckets = a["encoder.relpos_bias.rel_embedding"].shape

    def position_bias(stack: str, length: int) -> NDArray:
        bias = np.zeros((heads, length, length))
        for q, k in itertools.product(range(length), repeat=2):
            which = bucket(k - q, stack == "encoder", buckets, max_distance)
            bias[:, q, k] = a[f"{stack}.relpos_bias.rel_embedding"][:, which]
            if stack == "decoder" and k > q:
                bias[:, q, k] = -np.inf
        return bias

    def attention(name: str, x: NDArray, context: NDArray, bias: NDArray | float) -> NDArray:
        q, k, v = (
            (rows @ a[f"{name}.{part}.kernel"]).reshape(len(rows), heads, -1)
            for part, rows in (("query", x), ("key", context), ("value", context))
        )
        scores = np.einsum("qhk,shk->hqs", q, k) + bias
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqs,shk->qhk", weights, v).reshape(len(x), -1) @ a[f"{name}.out.kernel"]

    def mlp(name: str, x: NDArray) -> NDArray:
        if f"{name}.wi.kernel" in a:
            inner = np.maximum(x @ a[f"{name}.wi.kernel"], 0)
        else:
            g = x @ a[f"{name}.wi_0.kernel"]
            inner = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * (x @ a[f"{name}.wi_1.kernel"])
        return inner @ a[f"{name}.wo.kernel"]

    def layers(stack: str) -> list[str]:
        return sorted({match[0] for name in a if (match := re.match(rf"{stack}\.layers_\d+", name))})

    x, bias = a["token_embedder.embedding"][inputs], position_bias("encoder", len(inputs))
    for layer in layers("encoder"):
        normed = rms_norm(x, a[f"{layer}.pre_attention_layer_norm.scale"])
        x = x + attention(f"{layer}.attention", normed, normed, bias)
        x = x + mlp(f"{layer}.mlp", rms_norm(x, a[f"{layer}.pre_mlp_layer_norm.scale"]))
    encoded = rms_norm(x, a["encoder.encoder_norm.scale"])

    y, bias = a["token_embedder.embedding"][[0, *targets[:-1]]], position_bias("decoder", len(targets))
    for layer in layers("decoder"):
        normed = rms_norm(y, a[f"{layer}.pre_self_attention_layer_norm.scale"])
        y = y + attention(f"{layer}.self_attention", normed, normed, bias)
        normed = rms_norm(y, a[f"{layer}.pre_cross_attention_layer_norm.scale"])
        y = y + attention(f"{layer}.encoder_decoder_attention", normed, encoded, 0.0)
        y = y + mlp(f"{layer}.mlp", rms_norm(y, a[f"{layer}.pre_mlp_layer_norm.scale"]))
    y = rms_norm(y, a["decoder.decoder_norm.scale"])
    if "decoder.logits_dense.kernel" in a:
        return y @ a["decoder.logits_dense.kernel"]
    return y / np.sqrt(y.shape[-1]) @ a["token_embedder.embedding"].T


# -------------------------------------------------------------------------------------------------- synthetic checkpoints


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


def assert_equals_reference(checkpoint: Path, arrays: Arrays, max_distance: int) -> None:
    shape = t5x_shape(checkpoint, max_distance)
    model = assemble(shape, dict(t5x_tensors(checkpoint, shape)), where=str(checkpoint)).eval()
    lengths = [(9, 5), (30, 40), (1, 1)]
    inputs, targets = (token_rows([pair[side] for pair in lengths], 3 + side, vocabulary=90) for side in (0, 1))
    with torch.no_grad():
        logits = model(inputs, targets)
    for row, (S, T) in enumerate(lengths):
        expected = reference_logits(arrays, inputs[row, :S].tolist(), targets[row, :T].tolist(), max_distance)
        np.testing.assert_allclose(logits[row, :T].double().numpy(), expected, atol=2e-5, rtol=1e-4)


def test_forward_equals_numpy(shape: T5Config, tmp_path: Path) -> None:
    arrays = random_arrays(shape)
    checkpoint = write_checkpoint(tmp_path / "checkpoint_7", arrays)
    assert t5x_shape(checkpoint, max_distance=12) == shape
    assert_equals_reference(checkpoint, arrays, max_distance=12)


def test_googles_checkpoint_equals_numpy(shared: Path) -> None:
    checkpoint = shared / "data/t5/t5x_tiny_v1_1/checkpoint_3"
    shape = t5x_shape(checkpoint, max_distance=8)
    assert shape == T5Config(
        vocab_size=32128, d_model=4, d_kv=2, d_ff=8, num_layers=2, num_decoder_layers=2, num_heads=2,
        relative_attention_num_buckets=4, relative_attention_max_distance=8,
    )  # fmt: skip
    # Read without the code under test: the tree's arrays, and gzipped zarr chunks.
    tree = msgpack.unpackb((checkpoint / "checkpoint").read_bytes(), strict_map_key=False)["optimizer"]["target"]
    arrays: Arrays = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, msgpack.ExtType):
            size, dtype, buffer = msgpack.unpackb(node.data)
            arrays[name] = np.frombuffer(buffer, dtype).reshape(size)
        elif isinstance(node, dict) and "kvstore" in node:
            meta = node["metadata"]
            along = 0 if meta["chunks"][0] < meta["shape"][0] else 1
            chunks = []
            for i in range(-(-meta["shape"][along] // meta["chunks"][along])):
                data = gzip.decompress(
                    (checkpoint / f"target.{name}" / (f"{i}.0" if along == 0 else f"0.{i}")).read_bytes()
                )
                chunks.append(np.frombuffer(data, "<f4").reshape(meta["chunks"]))
            rows, columns = meta["shape"]
            arrays[name] = np.concatenate(chunks, along)[:rows, :columns]
        elif isinstance(node, dict):
            for key, child in node.items():
                walk(child, f"{name}.{key}" if name else key)

    walk(tree, "")
    assert sum(array.size for array in arrays.values()) == shape.parameters
    assert_equals_reference(checkpoint, arrays, max_distance=8)


def test_googles_checkpoint_loads_as_a_t5_and_publishes(shared: Path, tmp_path: Path) -> None:
    model = load_t5(shared / "data/t5/t5x_tiny_v1_1")
    assert model.shared.weight.shape == model.lm_head.weight.shape == (32128, 4)
    assert not torch.equal(model.shared.weight, model.lm_head.weight)
    save_t5(model, tmp_path)
    assert model_digest(tmp_path) == model_digest(shared / "data/t5/t5x_tiny_v1_1")


def test_googles_checkpoint_contains_the_moments_of_its_three_steps(shared: Path) -> None:
    """All of them unfactored, because no side has 128 elements."""
    checkpoint = shared / "data/t5/t5x_tiny_v1_1/checkpoint_3"
    shape = t5x_shape(checkpoint)
    step, moments = t5x_moments(checkpoint, shape)
    assert step == 3
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in T5(shape).state_dict().items()}
    assert {name: found.whole.shape for name, found in moments.items() if found.whole is not None} == expected
    assert all(torch.all(found.whole >= 0) for found in moments.values() if found.whole is not None)


def test_folder_with_one_checkpoint(tmp_path: Path) -> None:
    arrays = random_arrays(SHAPES["gated_untied"])
    write_checkpoint(tmp_path / "checkpoint_7", arrays)
    assert find_t5x(tmp_path) == find_t5x(tmp_path / "checkpoint_7") == tmp_path / "checkpoint_7"
    assert find_t5x(tmp_path / "checkpoint_7/target.token_embedder.embedding") is None
    load_t5(tmp_path)
    shutil.copytree(tmp_path / "checkpoint_7", tmp_path / "checkpoint_8")
    with pytest.raises(InputError, match="several T5X checkpoints"):
        load_t5(tmp_path)


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


def test_scanned_layers(tmp_path: Path) -> None:
    """The layout of umT5 and Pile-T5, by its folder and by its file; its state of Adafactor is refused."""
    model = init_t5(replace(SHAPES["gated_untied"], model_type="umt5", relative_attention_max_distance=128), seed=3)
    for i, parameter in enumerate(model.parameters()):  # norms too
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    arrays = scanned_arrays(model)
    moments = {f"{name}.v": np.abs(array) for name, array in arrays.items() if array.ndim == 2}
    checkpoint = write_checkpoint(tmp_path / "checkpoint_9", arrays, moments)
    for place in (tmp_path, checkpoint, checkpoint / "checkpoint"):
        loaded = load_t5(place)
        assert loaded.shape == model.shape
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(InputError, match="the state of Adafactor is that of scanned layers, which is not read; set"):
        t5x_moments(checkpoint, model.shape)
    assert locate("model", str(checkpoint / "checkpoint"), "--model") == [checkpoint]


def test_a_config_beside_the_checkpoint_decides(tmp_path: Path) -> None:
    """The arrays do not say that UL2 has SiLU."""
    checkpoint = write_checkpoint(tmp_path, random_arrays(SHAPES["gated_untied"]))
    shape = replace(SHAPES["gated_untied"], activation="silu")
    (checkpoint / "config.json").write_text(json.dumps(shape.to_config()))
    assert load_t5(checkpoint).shape == shape


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressor", ["gzip", "zlib", None])
@pytest.mark.parametrize(
    ("shape", "chunks"), [((7, 5), (3, 5)), ((7, 5), (4, 2)), ((6,), (4,)), ((2, 3, 4), (1, 2, 3))]
)
def test_zarr_chunks(tmp_path: Path, shape: tuple, chunks: tuple, compressor: str | None, order: str) -> None:
    array = np.arange(np.prod(shape), dtype="<f4").reshape(shape)
    write_zarr(tmp_path / "a", array, chunks, compressor, order)
    np.testing.assert_array_equal(read_zarr(tmp_path / "a"), array)


def test_bfloat16_arrays(tmp_path: Path) -> None:
    values = torch.randn(4, 6).bfloat16()
    write_zarr(tmp_path / "a", values.view(torch.int16).numpy(), (4, 6), "gzip")
    path = tmp_path / "a/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    np.testing.assert_array_equal(read_zarr(tmp_path / "a"), values.float().numpy())


Change = Callable[[Arrays], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("decoder.layers_1.mlp.wo.kernel"), "missing: decoder.layers_1.mlp.wo.kernel"),
        (lambda a: a.pop("encoder.encoder_norm.scale"), "missing: encoder.encoder_norm.scale"),
        (lambda a: a.update({"encoder.prompt.prompt": np.ones(3)}), "unexpected: encoder.prompt.prompt"),
        (
            lambda a: a.update({"decoder.layers_0.self_attention.key.kernel": np.ones((4, 4), "<f4")}),
            "of another shape: decoder.layers_0.self_attention.key.kernel [4, 4] instead of [32, 64]",
        ),
        (
            lambda a: a.update({"decoder.layers_99999999999.mlp.wo.kernel": np.ones((4, 4), "<f4")}),
            "unexpected: decoder.layers_99999999999.mlp.wo.kernel",
        ),
        (
            lambda a: a.update({"decoder.decoder.mlp.wo.kernel": np.ones((1, 10_001), "<f4")}),
            "decoder.decoder.mlp.wo.kernel has 10,001 layers",
        ),
        (lambda a: a.pop("token_embedder.embedding"), "array token_embedder.embedding is missing"),
        (
            lambda a: a.update({"encoder.encoder_norm.scale": np.ones(32, int)}),
            "encoder.encoder_norm.scale: contains int64",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: Change, message: str, tmp_path: Path) -> None:
    arrays = random_arrays(SHAPES["gated_untied"])
    change(arrays)
    write_checkpoint(tmp_path, arrays)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load_t5(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def _zarray(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "target.decoder.logits_dense.kernel/.zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checkpoint").write_bytes(b"\x81"), "is not the msgpack tree"),
        (lambda f: (f / "checkpoint").write_bytes(msgpack.packb({"version": 3})), "is not the msgpack tree"),
        (lambda f: (f / "target.decoder.logits_dense.kernel/0.1").unlink(), "kernel/0.1: is missing"),
        (
            lambda f: (f / "target.decoder.logits_dense.kernel/0.1").write_bytes(b"x" * 99),
            "kernel/0.1: is missing or damaged",
        ),
        (
            lambda f: (f / "target.decoder.logits_dense.kernel/0.1").write_bytes(gzip.compress(b"1234")),
            "kernel/0.1: does not contain 1,920 bytes",
        ),
        (
            lambda f: (f / "target.decoder.logits_dense.kernel/0.1").write_bytes(gzip.compress(bytes(10**7))),
            "kernel/0.1: does not contain 1,920 bytes",
        ),
        (lambda f: (f / "target.decoder.logits_dense.kernel/.zarray").unlink(), ".zarray: is not the metadata"),
        (_zarray(compressor={"id": "blosc"}), "is not supported; use floats in zarr version 2"),
        (_zarray(filters=[{"id": "delta"}]), "is not supported; use floats in zarr version 2"),
        (_zarray(dtype="|O"), "is not supported; use floats in zarr version 2"),
        (_zarray(zarr_format=3), "is not supported; use floats in zarr version 2"),
    ],
)
def test_damaged_checkpoints(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_arrays(SHAPES["gated_untied"]))
    damage(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load_t5(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_comparison_detects_another_max_distance(tmp_path: Path) -> None:
    arrays = random_arrays(replace(SHAPES["gated_untied"], relative_attention_max_distance=64))
    checkpoint = write_checkpoint(tmp_path, arrays)
    assert_equals_reference(checkpoint, arrays, max_distance=64)
    shape = t5x_shape(checkpoint, max_distance=12)
    model = assemble(shape, dict(t5x_tensors(checkpoint, shape)), where="").eval()
    inputs, targets = token_rows([30], 3, vocabulary=90), token_rows([40], 4, vocabulary=90)
    expected = reference_logits(arrays, inputs[0].tolist(), targets[0].tolist(), 64)
    assert np.abs(model(inputs, targets)[0].detach().numpy() - expected).max() > 0.01
