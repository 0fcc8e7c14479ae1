"""One training step.

g = Σ over ranks and microbatches of ∇ Σ_rows weight·loss        (weights are normalized over the global batch)
w ← optimizer(w, g, learning rate of the step)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.training.microbatches import StepBatch, TensorBatch
from t5_pipeline.training.optimizers import set_learning_rate
from t5_pipeline.training.state import TrainState

log = logging.getLogger("t5-pipeline")

LossFn = Callable[[Any, TensorBatch], Tensor]


def train_step(
    state: TrainState,
    batch: StepBatch,
    loss_fn: LossFn,
    *,
    losses: int = 1,
    learning_rates: Sequence[float | None],
    seed: int,
    skip_nonfinite: bool = False,
) -> None:
    """Take one optimizer step; its losses and gradient norm go to `state.stats`.

    Args:
        loss_fn: losses [C] of (model, microbatch).
        losses: C.
        learning_rates: one for all parameters, or one for each prompt of a bank, None if it waits.
        seed: seed of the run, from which the dropout masks of this step and rank follow.
        skip_nonfinite: leave the weights unchanged if the gradient is not finite.
    """
    set_learning_rate(state.engine.optimizer, *learning_rates)
    losses_C = _gradients_in_memory(state, batch, loss_fn, losses, seed)
    norm = state.engine.step(skip_nonfinite=skip_nonfinite)
    state.step += 1
    state.stats.add(state.step, losses_C, norm, batch.tokens, batch.examples)


def _gradients_in_memory(state: TrainState, batch: StepBatch, loss_fn: LossFn, losses: int, seed: int) -> Tensor:
    """`gradients`; if memory lacks beside that of CUDA graphs, which each keep some, once more without graphs."""

    def attempt() -> Tensor:
        torch.manual_seed(dropout_seed(seed, batch.step, state.group.rank))
        return gradients(state, batch, loss_fn, losses)

    try:
        return attempt()
    except torch.OutOfMemoryError as error:
        if not state.engine.release_graphs():
            raise
        log.warning("cuda graphs: %s; running without them", str(error).partition(". GPU")[0])
    # Outside the handler, whose traceback would keep the memory of the failed attempt.
    return attempt()


def gradients(state: TrainState, batch: StepBatch, loss_fn: LossFn, losses: int) -> Tensor:
    """Accumulate the gradient over this rank's microbatches and return the summed losses [C]."""
    total_C = torch.zeros(losses, device=state.device)
    for index, microbatch in enumerate(batch.microbatches):
        last = index == len(batch.microbatches) - 1
        total_C += state.engine.accumulate(loss_fn, microbatch.to(state.device), last=last)
    return total_C


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """63-bit seed for the dropout of one step on one rank (the finalizer of SplitMix64, applied to each number).

    >>> dropout_seed(0, 0, 0) != dropout_seed(0, 1, 0) != dropout_seed(0, 0, 1)
    True
    """
    mixed = 0
    for number in (seed, step, rank):
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
