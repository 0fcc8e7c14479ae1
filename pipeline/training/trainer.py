"""What every training stage does around the loop: optimizer, schedule, checkpoints, log, and publishing on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t5_pipeline.artifacts.run_dir import step_name
from t5_pipeline.config.adaptation import LanguageModelConfig
from t5_pipeline.config.stage import TrainingConfig
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.best_checkpoint import SELECTION, Best, Selection
from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.distributed import MakeOptimizer, make_engine
from t5_pipeline.training.distributed.collectives import HostCollectives
from t5_pipeline.training.distributed.engine import MODEL
from t5_pipeline.training.loop import LossFn, resume, train
from t5_pipeline.training.loss import batch_losses, model_loss
from t5_pipeline.training.microbatches import BatchSource, TensorBatch, rank_part
from t5_pipeline.training.nonfinite import OnNonFinite
from t5_pipeline.training.optimizers import model_optimizer
from t5_pipeline.training.schedules import learning_rate
from t5_pipeline.training.state import TrainState


def train_stage(
    stage: Stage[Any],
    model: nn.Module,
    batches: BatchSource,
    *,
    publish: Callable[[int, Trained], None],
    loss_fn: LossFn,
    validate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    validate_every: int = 500,
    optimizer: MakeOptimizer | None = None,
    selection: Selection | None = None,
    cells: Sequence[str] = (),
    unit: Literal["tokens", "examples"] = "tokens",
) -> None:
    """Train from the newest checkpoint through every step that is still to be published.

    Args:
        publish: called on every process with the step and what training made of it, once the checkpoint of the step is
            on the disk; never twice for a step that is published already.
        loss_fn: losses [C] of (model, microbatch), one for each of `cells` (without cells: [1]).
        validate: what a validation row of metrics.jsonl holds.
        optimizer: where the settings' own will not do (prompts).
        selection: what chooses the checkpoint that is published; none publishes the last one.
    """
    c: TrainingConfig = stage.config
    engine = make_engine(
        stage.launch,
        stage.accelerator,
        model,
        optimizer or (lambda parameters: model_optimizer(c.optimizer, parameters, c.weight_decay)),
        c.precision,
    )
    state = TrainState(engine, selection)
    schedule = learning_rate(
        c.schedule,
        peak=c.learning_rate,
        warmup_steps=c.warmup_steps,
        step_offset=c.step_offset,
        total_steps=c.steps,
    )
    pending = stage.steps_pending()
    control_group = HostCollectives(state.group.rank, state.group.world)

    def checkpoints_in(directory: Path) -> Checkpoints:
        return Checkpoints(
            directory / "checkpoints",
            stage.fingerprint,
            keep_last=c.keep_last,
            keep_every=c.keep_every,
            keep_best=c.keep_best,
            control_group=control_group,
        )

    def follow(directory: Path, steps: Sequence[int], at: int | None = None) -> None:
        """Publish these steps, from the newest checkpoint in a directory or that of step `at`."""
        checkpoints = checkpoints_in(directory)
        on_nonfinite = OnNonFinite(c.on_nonfinite, directory if stage.is_main else None)
        with trackers(stage, directory) as also, MetricsLog(directory / "metrics.jsonl", also) as metrics:
            resume(state, checkpoints, metrics, at=at, at_most=steps[0])
            for step in steps:
                train(
                    state,
                    batches,
                    steps=step,
                    loss_fn=loss_fn,
                    schedule=schedule,
                    seed=c.seed,
                    checkpoints=checkpoints,
                    metrics=metrics,
                    progress=progress,
                    stop=stop,
                    on_nonfinite=on_nonfinite,
                    microbatch_size=c.microbatch_size,
                    log_every=c.log_every,
                    checkpoint_every=c.checkpoint_every,
                    validate=(lambda: validate(state)) if validate else None,
                    validate_every=validate_every,
                    cells=cells,
                    unit=unit,
                )
                engine.set_training(False)
                publish(step, Trained(checkpoints.at(state.step), finalize(state)))

    with StopSignal(stage.launch) as stop, Progress(stage.name, pending[-1], shown=stage.is_main) as progress:
        begin = stage.resume_from
        if begin is None:
            newest = checkpoints_in(stage.directory).latest()
            begin = newest.step if newest else 0
        # Steps that were passed without being kept are made anew aside: what lies ahead of them is not thrown away.
        if passed := [step for step in pending if step < begin]:
            follow(stage.directory / "steps" / step_name(passed[-1]), passed)
        if ahead := [step for step in pending if step >= begin]:
            follow(stage.directory, ahead, at=stage.resume_from)
        stage.stopped_by = stop.signum


@dataclass(frozen=True)
class Trained:
    """What training made: the checkpoint of the step, and where something chooses what is published, the best of each
    cell."""

    checkpoint: Checkpoint
    chosen: list[Best]

    def best(self, index: int = 0) -> Best:
        """What cell `index` publishes: its best, or where nothing chooses, the last step, with no scores."""
        return self.chosen[index] if self.chosen else Best(self.checkpoint.step, {})

    def weights(self, index: int = 0) -> dict[str, Tensor]:
        """Everything that trains, as cell `index` publishes it: whole, whatever engine wrote the checkpoint."""
        last = self.best(index).step == self.checkpoint.step
        return self.checkpoint.tensors(MODEL if last else f"{SELECTION}{index}/")


def finalize(state: TrainState) -> list[Best]:
    return [] if state.selection is None else state.selection.finalize(state.step, state.engine)


@contextlib.contextmanager
def trackers(stage: Stage[Any], directory: Path) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """What also takes every row of metrics.jsonl: TensorBoard and W&B, through Accelerate, where they are asked for."""
    c: TrainingConfig = stage.config
    if not c.trackers:
        yield None
        return
    accelerator = stage.accelerator
    accelerator.project_configuration.logging_dir = str(directory / "trackers")
    accelerator.init_trackers("t5-pipeline", {k: v for k, v in c if isinstance(v, (int, float, str))})

    def track(row: Mapping[str, Any]) -> None:
        split = row.get("split", "train")
        flat = {f"{split}/{name}": value for name, value in row.items() if isinstance(value, (int, float))}
        flat |= {f"{split}/loss/{cell}": value for cell, value in row.get("losses", {}).items()}
        for cell, scores in row.get("scores", {}).items():
            flat |= {f"{split}/{metric}/{cell}".rstrip("/"): value for metric, value in scores.items()}
        accelerator.log(flat, step=row["step"])

    try:
        yield track
    finally:
        # Not end_training(): it would also end the process group, which the stage still needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def target_loss(model: Any, hidden_BTD: Tensor, targets_BT: Tensor, c: TrainingConfig) -> Tensor:
    """Loss [B, T] of each target token, of the decoder's outputs, as the settings want it."""
    return model_loss(model, hidden_BTD, targets_BT, c.z_loss, c.logits_precision, "loss" in c.reference_ops)


def train_language_model(
    stage: Stage[Any],
    model: nn.Module,
    batches: BatchSource,
    validation: BatchSource | None,
    publish: Callable[[int, Trained], None],
) -> None:
    """Train a model on every target token, by its `predict(inputs_BS, targets_BT, segments)` and `before_logits`.

    Args:
        validation: held-out batches, whose mean loss is measured on the first `validation_batches` of them.
    """
    c: LanguageModelConfig = stage.config

    def loss_fn(model: Any, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.inputs_BS, batch.targets_BT, batch.segments)
        return batch_losses(target_loss(model, hidden_BTD, batch.targets_BT, c), batch.weights_B, batch.prompt_B)

    def validate(state: TrainState) -> dict[str, float]:
        assert validation is not None
        held_out = [validation.at(index) for index in range(c.validation_batches)]
        return {"loss": held_out_loss(state, held_out, c.microbatch_size, "loss" in c.reference_ops)}

    train_stage(
        stage,
        model,
        batches,
        publish=publish,
        loss_fn=loss_fn,
        validate=validate if validation is not None else None,
        validate_every=c.validate_every,
    )


def held_out_loss(state: TrainState, batches: Sequence[Any], microbatch_size: int, reference: bool = False) -> float:
    """Mean cross entropy of all target tokens of these batches, in nats, without dropout and z-loss."""

    def sums_of(model: Any, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.inputs_BS, batch.targets_BT, batch.segments)
        loss_BT = model_loss(model, hidden_BTD, batch.targets_BT, 0.0, "fp32", reference)
        counted_BT = (batch.targets_BT != 0) & (batch.weights_B > 0)[:, None]
        return torch.stack([loss_BT[counted_BT].sum(dtype=torch.float64), counted_BT.sum().double()])

    sums = torch.zeros(2, dtype=torch.float64, device=state.device)
    group, lockstep = state.group, state.engine.lockstep
    for batch in batches:
        for micro in rank_part(batch, group.rank, group.world, microbatch_size, state.device.type, lockstep):
            sums += state.evaluate(sums_of, micro.to(state.device))
    group.sum([sums])
    return float(sums[0] / sums[1])
