"""Adafactor against float64 NumPy, and against transformers where the definitions agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.optimization import Adafactor as TransformersAdafactor

from t5_pipeline.training.adafactor import Adafactor, factored_dims
from t5_pipeline.training.optimizers import model_optimizer, prompt_optimizer, set_learning_rate
from tests.training.gradient_streams import LENGTHS, Array, gradients, rate


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


class Reference:
    """Adafactor for one tensor in float64, from the formulas of T5X."""

    def __init__(self, weight: Array, *, scaled: bool, decay: float, min_dim: float, clipping: float = 1.0) -> None:
        self.w = weight.astype(np.float64)
        self.scaled, self.decay, self.min_dim, self.clipping = scaled, decay, min_dim, clipping
        self.t = 0
        self.v: Any = 0.0
        self.row: Any = 0.0
        self.column: Any = 0.0

    def step(self, g: Array, lr: float) -> None:
        self.t += 1
        beta2 = 1 - self.t**-0.8
        g2 = g**2 + 1e-30
        order = np.argsort(g.shape, kind="stable")
        if g.ndim >= 2 and g.shape[order[-2]] >= self.min_dim:
            second, largest = int(order[-2]), int(order[-1])
            self.row = beta2 * self.row + (1 - beta2) * g2.mean(axis=largest, keepdims=True)
            self.column = beta2 * self.column + (1 - beta2) * g2.mean(axis=second, keepdims=True)
            v = self.row * self.column / self.row.mean(axis=second, keepdims=True)
        else:
            self.v = beta2 * self.v + (1 - beta2) * g2
            v = self.v
        u = g / np.sqrt(v)
        u = u / max(1.0, rms(u) / self.clipping)
        scale = max(1e-3, rms(self.w)) if self.scaled else 1.0
        self.w = self.w * (1 - self.decay) - lr * scale * u


SHAPES = [(7,), (1,), (130, 200), (200, 130), (128, 128), (127, 300), (8, 4), (130, 3, 140), (4, 160, 131)]


@pytest.mark.parametrize(("dtype", "tolerance", "steps"), [(torch.float64, 1e-11, 60), (torch.float32, 2e-5, 60)])
@pytest.mark.parametrize(("scaled", "decay"), [(True, 0.0), (False, 1e-5), (True, 0.01)])
def test_adafactor_equals_the_formulas_step_by_step(
    dtype: torch.dtype, tolerance: float, steps: int, scaled: bool, decay: float
) -> None:
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape) * 10.0 ** rng.uniform(-5, 1) for shape in SHAPES]
    references = [Reference(start, scaled=scaled, decay=decay, min_dim=128) for start in starts]
    params = [nn.Parameter(torch.tensor(start, dtype=dtype)) for start in starts]
    optimizer = Adafactor(params, weight_decay=decay, parameter_scaling=scaled)
    streams = [gradients(shape, steps, seed) for seed, shape in enumerate(SHAPES)]
    for step, round_of_gradients in enumerate(zip(*streams, strict=True)):
        set_learning_rate(optimizer, rate(step))
        for p, reference, g in zip(params, references, round_of_gradients, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
            reference.step(g, rate(step))
        optimizer.step()
        for p, reference in zip(params, references, strict=True):
            np.testing.assert_allclose(
                p.detach().numpy(), reference.w, rtol=0, atol=tolerance * max(1, abs(reference.w).max())
            )


def test_updates_in_chunks_are_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        params = [nn.Parameter(torch.ones(shape)) for shape in SHAPES]
        optimizer = model_optimizer("adafactor", params)
        streams = [gradients(shape, 3, seed) for seed, shape in enumerate(SHAPES)]
        for round_of_gradients in zip(*streams, strict=True):
            set_learning_rate(optimizer, 0.1)
            for p, g in zip(params, round_of_gradients, strict=True):
                p.grad = torch.tensor(g, dtype=torch.float32)
            optimizer.step()
        return [p.detach() for p in params]

    together = run()
    monkeypatch.setattr("t5_pipeline.training.adafactor.UPDATED_ELEMENTS", 1000)
    for one, other in zip(together, run(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scaled", [True, False])
def test_beta2_counts_from_the_step_offset(scaled: bool) -> None:
    start = np.random.default_rng(0).normal(size=(130, 140))
    reference = Reference(start, scaled=scaled, decay=0.0, min_dim=128)
    reference.t = 1_100_000
    p = nn.Parameter(torch.tensor(start))
    optimizer = Adafactor([p], parameter_scaling=scaled, step_offset=1_100_000)
    for step, g in enumerate(gradients((130, 140), 20, 0)):
        set_learning_rate(optimizer, rate(step))
        p.grad = torch.tensor(g)
        optimizer.step()
        reference.step(g, rate(step))
    np.testing.assert_allclose(p.detach().numpy(), reference.w, rtol=0, atol=1e-9)


def test_updates_have_the_rms_of_the_rate_at_the_official_offset() -> None:
    """Prompt tuning in T5X starts at step 1,100,000 with v = 0: every update is clipped to RMS lr."""

    def update_rms(step_offset: int) -> Array:
        rng = np.random.default_rng(0)
        rows_RD = nn.Parameter(torch.zeros(100, 64))
        optimizer = prompt_optimizer("adafactor", rows_RD, torch.zeros(100, dtype=torch.long), step_offset=step_offset)
        set_learning_rate(optimizer, 0.3)
        found = []
        for _ in range(300):
            before = rows_RD.detach().clone()
            scale = 10.0 ** rng.uniform(-1, 1)  # the gradient's norm varies from step to step, as in training
            rows_RD.grad = torch.tensor(rng.normal(size=(100, 64)) * scale, dtype=torch.float32)
            optimizer.step()
            found.append(float((rows_RD.detach() - before).square().mean().sqrt()) / 0.3)
        return np.array(found)

    # A step above this RMS would not be clipped; float32 rows lose a few digits of each difference.
    np.testing.assert_allclose(update_rms(1_100_000)[:50], 1.0, rtol=1e-4)
    assert np.mean(np.abs(update_rms(1_100_000) - 1) < 1e-3) > 0.9
    assert 0.3 < update_rms(0)[20:].mean() < 0.8


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_every_prompt_of_a_bank_moves_as_if_it_were_alone(
    dtype: torch.dtype, tolerance: float, scaled: bool, factored: bool
) -> None:
    """T5X's rule factors 150×130 and 128×130; without `factored` no prompt is."""
    min_dim = 128 if factored else None
    d_model, decay = 130, 1e-5
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=(length, d_model)) * 10.0 ** (i - 4) for i, length in enumerate(LENGTHS)]
    references = [Reference(start, scaled=scaled, decay=decay, min_dim=min_dim or np.inf) for start in starts]
    rows_RD = nn.Parameter(torch.tensor(np.concatenate(starts), dtype=dtype))
    row_prompt_R = torch.tensor(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    group = {"params": [rows_RD], "segments": row_prompt_R, "min_dim_to_factor": min_dim}
    optimizer = Adafactor([group], weight_decay=decay, parameter_scaling=scaled)
    streams = [gradients(start.shape, 80, seed) for seed, start in enumerate(starts)]
    for step, gs in enumerate(zip(*streams, strict=True)):
        set_learning_rate(optimizer, rate(step))
        rows_RD.grad = torch.tensor(np.concatenate(gs), dtype=dtype)
        optimizer.step()
        for reference, g in zip(references, gs, strict=True):
            reference.step(g, rate(step))
    prompts = np.split(rows_RD.detach().numpy(), np.cumsum(LENGTHS)[:-1])
    for reference, found in zip(references, prompts, strict=True):
        np.testing.assert_allclose(found, reference.w, rtol=0, atol=tolerance * max(1, abs(reference.w).max()))


@pytest.mark.parametrize(("d_model", "factored"), [(16, False), (128, True)])
def test_a_prompt_in_a_bank_is_bit_identical_to_the_prompt_alone(d_model: int, factored: bool) -> None:
    def run(lengths: list[int], streams: list[list[Array]]) -> list[torch.Tensor]:
        rows_RD = nn.Parameter(torch.ones(sum(lengths), d_model))
        row_prompt_R = torch.repeat_interleave(torch.tensor(lengths))
        optimizer = prompt_optimizer("adafactor", rows_RD, row_prompt_R, weight_decay=1e-5, factored=factored)
        for gs in zip(*streams, strict=True):
            set_learning_rate(optimizer, 0.3)
            rows_RD.grad = torch.tensor(np.concatenate(gs), dtype=torch.float32)
            optimizer.step()
        return list(rows_RD.detach().split(lengths))

    streams = [list(gradients((length, d_model), 30, seed)) for seed, length in enumerate(LENGTHS)]
    for prompt, in_bank in enumerate(run(LENGTHS, streams)):
        assert torch.equal(in_bank, run([LENGTHS[prompt]], [streams[prompt]])[0])


def test_a_long_prompt_is_factored_on_request() -> None:
    rows_RD = nn.Parameter(torch.ones(sum(LENGTHS), 128))
    optimizer = prompt_optimizer("adafactor", rows_RD, torch.repeat_interleave(torch.tensor(LENGTHS)), factored=True)
    rows_RD.grad = torch.ones_like(rows_RD)
    optimizer.step()
    others = sum(length for length in LENGTHS if length < 128)
    sizes = {key: value.numel() for key, value in optimizer.state[rows_RD].items()}
    assert sizes == {"step": 1, "mean_square": others * 128, "row": 150 + 128, "column": 2 * 128}


class MaskIndices(TorchDispatchMode):
    """Counts the indexing by boolean masks, which synchronizes with a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "index" in func.__name__:
            self.count += sum(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("factored", [False, True])
def test_a_step_of_a_bank_indexes_by_no_mask(factored: bool) -> None:
    rows_RD = nn.Parameter(torch.ones(sum(LENGTHS), 128))
    optimizer = prompt_optimizer(
        "adafactor", rows_RD, torch.repeat_interleave(torch.tensor(LENGTHS)), factored=factored
    )
    rows_RD.grad = torch.ones_like(rows_RD)
    with MaskIndices() as masks:
        optimizer.step()
    assert masks.count == 0


def test_a_matrix_of_a_model_is_factored() -> None:
    weight = nn.Parameter(torch.ones(256, 512))
    optimizer = model_optimizer("adafactor", [weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[weight].values()) == 256 + 512 + 1
    assert factored_dims((127, 512), 128) is None
    assert factored_dims((512,), 128) is None
    assert factored_dims((512, 512), None) is None


def test_clipping_does_not_cap_a_rate_of_0_3() -> None:
    """torch's Adafactor caps the rate at 1/√t: after 100 steps of one sign a weight would have moved by less than 20."""
    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = prompt_optimizer("adafactor", weight, torch.zeros(3, dtype=torch.long))
    for _ in range(100):
        set_learning_rate(optimizer, 0.3)
        weight.grad = torch.full_like(weight, 1e-4)
        optimizer.step()
    assert torch.allclose(weight, torch.full_like(weight, -30.0), rtol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
def test_adafactor_equals_transformers_with_all_matrices_factored_and_no_decay(scaled: bool) -> None:
    shapes = [(9,), (6, 5), (5, 6), (3, 4, 5)]
    ours, theirs = ([nn.Parameter(torch.full(shape, 0.7)) for shape in shapes] for _ in range(2))
    mine = Adafactor(ours, parameter_scaling=scaled, min_dim_to_factor=1)
    other = TransformersAdafactor(theirs, lr=0.1, scale_parameter=scaled, relative_step=False, warmup_init=False)
    streams = [gradients(shape, 40, seed) for seed, shape in enumerate(shapes)]
    for gs in zip(*streams, strict=True):
        set_learning_rate(mine, 0.1)
        for p, q, g in zip(ours, theirs, gs, strict=True):
            p.grad, q.grad = torch.tensor(g, dtype=torch.float32), torch.tensor(g, dtype=torch.float32)
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-6)


def test_a_bank_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt of each row"):
        prompt_optimizer("adafactor", nn.Parameter(torch.ones(4, 2)), torch.zeros(3, dtype=torch.long))
