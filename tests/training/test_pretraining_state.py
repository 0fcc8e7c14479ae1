"""Adafactor continued from a T5X checkpoint, compared with one step of T5X's formulas in NumPy on T5X's arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.t5x import t5x_tensors
from t5_pipeline.training.optimizers import set_learning_rate
from t5_pipeline.training.pretraining_state import pretraining_optimizer
from tests.modeling.t5x_files import Arrays, pack_array, random_arrays, write_checkpoint

# Kernels are square, wider or taller; position biases and norms are not factored.
SHAPE = T5Config(
    vocab_size=200, d_model=128, d_kv=32, d_ff=160, num_layers=1, num_decoder_layers=1, num_heads=4,
    relative_attention_num_buckets=8,
)  # fmt: skip
STEP = 1_000_000


def factored(array: NDArray) -> tuple[int, int] | None:
    """T5X's (second largest, largest) axis."""
    order = np.argsort(array.shape, kind="stable")
    return (int(order[-2]), int(order[-1])) if array.ndim == 2 and array.shape[order[-2]] >= 128 else None


def random_moments(arrays: Arrays) -> Arrays:
    rng = np.random.default_rng(1)
    moments = {}
    for name, array in arrays.items():
        squares = (rng.normal(size=array.shape) * 10.0 ** rng.uniform(-2, 2, array.shape)) ** 2
        dims = factored(array)
        of_row, of_column, whole = [np.zeros(1)] * 2 + [squares]
        if dims is not None:
            of_row, of_column, whole = squares.mean(axis=dims[1]), squares.mean(axis=dims[0]), np.zeros(1)
        for statistic, value in (("v_row", of_row), ("v_col", of_column), ("v", whole), ("m", np.zeros(1))):
            moments[f"{name}.{statistic}"] = value.astype(np.float32)
    return moments


def reference_step(w: NDArray, g: NDArray, moments: Arrays, name: str, lr: float) -> NDArray:
    """T5X's apply_param_gradient with parameter scaling, float64."""
    beta2 = 1 - (STEP + 1.0) ** -0.8
    w, g = w.astype(np.float64), g.astype(np.float64)
    square = g**2 + 1e-30
    dims = factored(w)
    if dims is None:
        v = beta2 * moments[f"{name}.v"] + (1 - beta2) * square
    else:
        second, largest = dims
        row = beta2 * moments[f"{name}.v_row"] + (1 - beta2) * square.mean(axis=largest)
        column = beta2 * moments[f"{name}.v_col"] + (1 - beta2) * square.mean(axis=second)
        v = np.expand_dims(row / row.mean(), largest) * np.expand_dims(column, second)
    update = g / np.sqrt(v)
    update /= max(1.0, np.sqrt(np.mean(update**2)))
    return w - lr * max(1e-3, np.sqrt(np.mean(w**2))) * update


def stage_of(directory: Path, **settings: Any) -> Any:
    config = LMAdaptConfig(model="m", tokens="t", optimizer_state="checkpoint", **settings)
    return SimpleNamespace(config=config, input=lambda _: SimpleNamespace(path=directory), is_main=True)


@pytest.mark.parametrize("step", [STEP, pack_array(np.array(STEP, np.int32))])
def test_a_step_from_a_checkpoint_equals_t5x(tmp_path: Path, step: object) -> None:
    arrays = random_arrays(SHAPE)
    moments = random_moments(arrays)
    checkpoint = write_checkpoint(tmp_path / "checkpoint_7", arrays, moments, step)
    model = load_t5(tmp_path)
    make = pretraining_optimizer(stage_of(tmp_path), model)
    assert make is not None
    optimizer = make(list(model.parameters()))
    set_learning_rate(optimizer, 0.5)

    rng = np.random.default_rng(2)
    gradients = {name: (rng.normal(size=array.shape) * 3).astype(np.float32) for name, array in arrays.items()}
    expected = {n: reference_step(array, gradients[n], moments, n, 0.5) for n, array in arrays.items()}

    def as_ours(folder: str, values: Arrays) -> dict[str, torch.Tensor]:
        return dict(t5x_tensors(write_checkpoint(tmp_path / folder, values), model.shape))

    for name, gradient in as_ours("gradients", gradients).items():
        model.get_parameter(name).grad = gradient
    optimizer.step()
    # The update itself, because a weight moves by a small part of its size.
    start = dict(t5x_tensors(checkpoint, model.shape))
    moved = as_ours("expected", {n: (w - arrays[n]).astype(np.float32) for n, w in expected.items()})
    for name, update in moved.items():
        found = model.get_parameter(name).detach() - start[name]
        assert (found - update).norm() <= 1e-4 * update.norm(), name
    assert all(state["step"] == STEP + 1 for state in optimizer.state.values())


def _without(ending: str) -> Callable[[Arrays], object]:
    return lambda moments: [moments.pop(name) for name in list(moments) if name.endswith(ending)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "contains no state of Adafactor; set `optimizer_state: fresh`"),
        (_without("mlp.wo.kernel.v_col"), "contains no Adafactor state encoder.layers_0.mlp.wo.kernel.v_col; set"),
        (_without("encoder_norm.scale.v"), "contains no Adafactor state encoder.encoder_norm.scale.v; set"),
        (
            lambda moments: moments.update({"token_embedder.embedding.v_row": np.ones(3, np.float32)}),
            "contains [3] instead of [128] as Adafactor state token_embedder.embedding.v_row; set",
        ),
    ],
)
def test_moments_that_are_missing_are_named(change: Callable[[Arrays], object], message: str, tmp_path: Path) -> None:
    arrays = random_arrays(SHAPE)
    moments = random_moments(arrays)
    change(moments)
    write_checkpoint(tmp_path, arrays, moments)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        pretraining_optimizer(stage_of(tmp_path), load_t5(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_a_model_that_is_not_of_t5x(tmp_path: Path) -> None:
    model = load_t5(write_checkpoint(tmp_path / "t5x", random_arrays(SHAPE)))
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="contains no state of Adafactor, only T5X checkpoints do"):
        pretraining_optimizer(stage_of(tmp_path / "other"), model)


def test_settings_that_contradict_the_checkpoints_state() -> None:
    for settings in ({"optimizer": "adamw"}, {"optimizer_step_offset": 5}):
        with pytest.raises(ValueError, match="optimizer_state"):
            stage_of(Path(), **settings)
