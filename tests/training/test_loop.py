"""The random numbers of a training step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from t5_pipeline.training.loop import train_step
from t5_pipeline.training.microbatches import StepBatch, TensorBatch

MICROBATCH = TensorBatch(torch.ones(1, 8).long(), torch.ones(1, 8).long(), torch.ones(1), torch.zeros(1).long())


def drawn(seed: int, step: int, rank: int) -> list[float]:
    """The numbers that two microbatches of a step draw for their dropout."""
    found: list[float] = []

    def loss(model: object, batch: TensorBatch) -> torch.Tensor:
        found.append(float(torch.rand(())))
        return torch.ones(1)

    engine = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{}]),
        accumulate=lambda loss_fn, batch, last: loss_fn(None, batch),
        step=lambda skip_nonfinite: torch.tensor(0.0),
    )
    state: Any = SimpleNamespace(
        engine=engine, group=SimpleNamespace(rank=rank), device=torch.device("cpu"), step=0,
        stats=SimpleNamespace(add=lambda *arguments: None),
    )  # fmt: skip
    train_step(state, StepBatch(step, [MICROBATCH] * 2, 16, 1), loss, learning_rates=[0.1], seed=seed)
    return found


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    settings = [(seed, step, rank) for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)]
    numbers = [number for each in settings for number in drawn(*each)]
    assert len(set(numbers)) == 2 * len(settings)
    assert [number for each in settings for number in drawn(*each)] == numbers
