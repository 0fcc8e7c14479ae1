"""T5X checkpoints, compared with a forward pass in NumPy that follows the paper."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
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
from t5_pipeline.modeling.t5x import t5x_moments, t5x_tensors
from t5_pipeline.modeling.t5x_layout import find_t5x, t5x_shape
from tests.modeling.conftest import SHAPES, model_digest, token_rows
from tests.modeling.t5x_files import Arrays, random_arrays, scanned_arrays, write_checkpoint

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


# -------------------------------------------------------------------------------------------------- tests


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
