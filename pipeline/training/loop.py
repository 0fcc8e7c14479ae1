"""The training loop.

    g = Σ over ranks and microbatches of ∇ Σ_rows weight·loss        (weights are normalised over the global batch)
    w ← optimizer(w, g, schedule(step))

It is exact: the batch, the dropout masks and the rate are functions of the step, so a run that was killed at any
moment and goes on from its newest checkpoint ends, on one CPU process, with the same bits as one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import Interrupted
from pipeline.training.batch import BatchSource, TensorBatch, prefetch, step_batch
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.optimizers import set_learning_rate
from pipeline.training.progress import Progress
from pipeline.training.schedules import Schedule
from pipeline.training.selection import Selection
from pipeline.training.state import TrainState
from pipeline.training.stop import StopSignal

LossFn = Callable[[TensorBatch], Tensor]


def train(
    state: TrainState,
    batches: BatchSource,
    *,
    steps: int,
    loss_fn: LossFn,
    schedule: Schedule,
    seed: int,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    progress: Progress,
    stop: StopSignal,
    microbatch_size: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    validate: Callable[[], Mapping[str, Any]] | None = None,
    validate_every: int = 500,
    cells: Sequence[str] = (),
    unit: Literal["tokens", "examples"] = "tokens",
) -> None:
    """Trains until `steps` steps are done in all, and leaves a checkpoint of the last one.

    loss_fn gives a microbatch's losses [C], one for each of `cells` (without cells: [1]), as `batch_losses` makes
    them. `validate` returns what its row holds beside step and split; it runs on every rank, every `validate_every`
    steps and before the first. `unit` is what the rate in the log counts. Where `state.selection` is there, it is
    updated when it is due, and training ends early once its patience has run out.

    To do something at a certain step (publish a model), train up to it, do it, and train on: no bit depends on where
    a call ends.

    Raises:
        Interrupted: `stop` was signalled; the step was finished and saved.
        InputError: a loss or gradient is not finite, or a checkpoint cannot be written; older ones are intact.
    """
    ranks, optimizer = state.ranks, state.optimizer
    make = partial(step_batch, batches, rank=ranks.rank, world=ranks.world, microbatch_size=microbatch_size)

    def log(row: Mapping[str, Any]) -> None:
        if ranks.rank == 0:
            metrics.write({"step": state.step, **row})

    def measure(validate: Callable[[], Mapping[str, Any]]) -> None:
        with state.meter.paused():
            log({"split": "validation", **validate()})
            state.model.train()

    selection = state.selection
    if selection is not None and selection.exhausted:
        return
    state.model.train()
    state.meter.restart_clock()
    if validate and state.step == 0 < steps:
        measure(validate)
    with closing(prefetch(make, range(state.step, steps))) as parts:
        for part in parts:
            learning_rate = schedule(part.step)
            set_learning_rate(optimizer, learning_rate)
            torch.manual_seed(dropout_seed(seed, part.step, ranks.rank))
            losses_C = gradients(state, part.microbatches, loss_fn, max(1, len(cells)))
            norm = state.sum_gradients()
            optimizer.step()
            state.step += 1
            state.meter.add(state.step, losses_C, norm, part.tokens, part.examples)

            row = None
            if state.step % log_every == 0:
                row = state.meter.read(cells, unit)
                row |= {"learning_rate": learning_rate, "elapsed_s": round(state.elapsed, 3)}
                log(row)
            progress.update(state.step, row)
            if validate and state.step % validate_every == 0:
                measure(validate)
            if selection is not None and selection.due(state.step):
                measure(partial(choose, state, selection))
            over = state.step == steps or (selection is not None and selection.exhausted)
            signum = ranks.largest(stop.signum)
            if state.step % checkpoint_every == 0 or over or signum:
                save(state, checkpoints, metrics)
            if signum:
                raise Interrupted(signum, state.step)
            if over:
                break


def choose(state: TrainState, selection: Selection) -> dict[str, Any]:
    """Updates the selection; returns what its row of the log holds."""
    state.model.eval()
    return {"scores": selection.update(state.step)}


def gradients(state: TrainState, microbatches: Sequence[TensorBatch], loss_fn: LossFn, losses: int) -> Tensor:
    """Leaves this rank's gradient in the parameters and returns its losses [C]."""
    state.optimizer.zero_grad(set_to_none=True)
    total_C = torch.zeros(losses, device=state.device)
    for microbatch in microbatches:
        with state.autocast():
            losses_C = loss_fn(microbatch.to(state.device))
        losses_C.sum().backward()
        total_C += losses_C.detach()
    return total_C


def save(state: TrainState, checkpoints: Checkpoints, metrics: MetricsLog) -> None:
    """Writes a checkpoint, unless a number is not finite; metrics reach the disk first, so none is missing after it."""
    with state.meter.paused():
        state.meter.settle()
        if state.ranks.rank == 0:
            metrics.sync()
            checkpoints.save(state.step, state.tensors(), state.scalars())


def resume(
    state: TrainState,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    *,
    at: int | None = None,
    at_most: int | None = None,
) -> None:
    """Takes up the newest intact checkpoint (of no later step than `at_most`), or that of step `at`; none means step 0.

    Later checkpoints, and what was logged after it, are removed: training writes them again.

    Raises:
        InputError: the checkpoint belongs to other settings or another model, or `at` is not there.
    """
    first = state.ranks.rank == 0
    chosen = (checkpoints.latest(at_most) if at is None else checkpoints.at(at)) if first else None
    step = state.ranks.from_first(chosen.step if chosen else -1)
    if step >= 0:
        found = chosen or checkpoints.at(step)
        state.load(step, found.tensors(), found.scalars)
    if first:
        checkpoints.discard_after(step)
        metrics.truncate_after(step)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed of 63 bits for the dropout of one step on one rank (the finaliser of SplitMix64, applied in turn).

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
