"""The training loop.

    g = Σ over ranks and microbatches of ∇ Σ_rows weight·loss        (weights are normalised over the global batch)
    w ← optimizer(w, g, schedule(step))

It is exact: the batch, the dropout masks and the rate are functions of the step, so a run that was killed at any
moment and goes on from its newest checkpoint ends, on the same processes, with the same bits as one that never was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from t5_pipeline.core.errors import Interrupted
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.microbatches import BatchSource, StepBatch, TensorBatch, prefetch, step_batch
from t5_pipeline.training.nonfinite import OnNonFinite
from t5_pipeline.training.optimizers import set_learning_rate
from t5_pipeline.training.schedules import Schedule
from t5_pipeline.training.state import TrainState

LossFn = Callable[[Any, TensorBatch], Tensor]
# What a process says beside the number of a signal: its last checkpoint could not be written.
NOT_SAVED = 1 << 10


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
    on_nonfinite: OnNonFinite,
    microbatch_size: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    validate: Callable[[], Mapping[str, Any]] | None = None,
    validate_every: int = 500,
    cells: Sequence[str] = (),
    unit: Literal["tokens", "examples"] = "tokens",
) -> None:
    """Trains until `steps` steps are done in all, and leaves a checkpoint of the last one on the disk.

    loss_fn(model, microbatch) gives its losses [C], one for each of `cells` (without cells: [1]), as `batch_losses`
    makes them. `validate` returns what its row holds beside step and split, a loss among it; it runs on every rank,
    every `validate_every` steps and before the first. `unit` is what the rate in the log counts. Where
    `state.selection` is there, it is updated when it is due, and training ends early once its patience has run out.

    To do something at a certain step (publish a model), train up to it, do it, and train on: no bit depends on where
    a call ends.

    Raises:
        Interrupted: `stop` was signalled; the step was finished and saved.
        InputError: a loss or gradient is not finite, or a checkpoint cannot be written; older ones are intact.
    """
    group, engine = state.group, state.engine
    make = partial(
        step_batch,
        batches,
        rank=group.rank,
        world=group.world,
        microbatch_size=microbatch_size,
        device=state.device.type,
        lockstep=engine.lockstep,
    )
    score: float | None = None  # of the validation at this very step

    def log(row: Mapping[str, Any]) -> None:
        if group.rank == 0:
            metrics.write({"step": state.step, **row})

    def synchronize() -> None:
        bad = state.stats.synchronize()
        state.skipped += len(bad)
        on_nonfinite.handle(bad, batches)

    def measure(validate: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        with state.stats.paused():
            synchronize()
            found = validate()
            log({"split": "validation", **found})
            engine.set_training(True)
        return found

    def save() -> None:
        with state.stats.paused():
            synchronize()
            checkpoints.save(state.step, state.shards(), state.scalars(), score=score, before=metrics.sync)

    selection = state.selection
    if selection is not None and selection.exhausted:
        return
    engine.set_training(True)
    state.stats.restart_clock()
    if validate and state.step == 0 < steps:
        measure(validate)
    if steps == 0:
        save()
    with closing(prefetch(make, range(state.step, steps))) as parts, checkpoints.finishing():
        for part in parts:
            score = None
            learning_rate = schedule(part.step)
            set_learning_rate(engine.optimizer, learning_rate)
            torch.manual_seed(dropout_seed(seed, part.step, group.rank))
            losses_C = gradients(state, part, loss_fn, max(1, len(cells)))
            norm = engine.step(skip_nonfinite=on_nonfinite.skips)
            state.step += 1
            state.stats.add(state.step, losses_C, norm, part.tokens, part.examples)

            row = None
            if state.step % log_every == 0:
                synchronize()
                row = state.stats.read(cells, unit)
                row |= {"learning_rate": learning_rate, "elapsed_s": round(state.elapsed, 3)}
                if state.skipped:
                    row["skipped"] = state.skipped
                log(row)
            progress.update(state.step, row)
            if validate and state.step % validate_every == 0:
                score = -float(measure(validate)["loss"])
            if selection is not None and selection.due(state.step):
                score = mean_score(measure(partial(choose, state, selection)))
            over = state.step == steps or (selection is not None and selection.exhausted)
            word = group.all_reduce_max(NOT_SAVED if checkpoints.failed else stop.signum)
            if word == NOT_SAVED:
                checkpoints.wait()
            if state.step % checkpoint_every == 0 or over or word:
                save()
            if word:
                checkpoints.wait()
                raise Interrupted(word, state.step)
            if over:
                break


def choose(state: TrainState, selection: Selection) -> dict[str, Any]:
    """Updates the selection; returns what its row of the log holds."""
    state.engine.set_training(False)
    return {"scores": selection.update(state.step, state.engine)}


def mean_score(row: Mapping[str, Any]) -> float:
    """The mean over the cells of each one's first metric."""
    firsts = [next(iter(scores.values())) for scores in row["scores"].values()]
    return sum(firsts) / len(firsts)


def gradients(state: TrainState, part: StepBatch, loss_fn: LossFn, losses: int) -> Tensor:
    """Leaves this rank's gradient with the engine and returns its losses [C]."""
    total_C = torch.zeros(losses, device=state.device)
    for index, microbatch in enumerate(part.microbatches):
        losses_C = state.engine.call(loss_fn, microbatch.to(state.device))
        state.engine.backward(losses_C.sum(), last=index == len(part.microbatches) - 1)
        total_C += losses_C.detach()
    return total_C


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
    found = checkpoints.latest(at_most) if at is None else checkpoints.at(at)
    step = -1 if found is None else found.step
    if found is not None:
        state.load(step, found, found.scalars)
    state.group.all_reduce_max(0)  # nothing is removed before every process has read
    if state.group.rank == 0:
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
