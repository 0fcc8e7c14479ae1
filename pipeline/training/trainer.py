"""Trainer: train a model to any step, resumable with the same bits.

The batch, the dropout masks and the learning rate are functions of the step. A run that was killed at any moment and
resumed from its newest checkpoint therefore ends, on the same processes, with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from t5_pipeline.config.launch import REPLICATED, LaunchContext
from t5_pipeline.config.training import ExecutionConfig, TrainingConfig
from t5_pipeline.config.tuning import LearningConfig
from t5_pipeline.core.errors import Interrupted
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.best_checkpoint import Measured, Selection
from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.distributed import MakeOptimizer, make_engine
from t5_pipeline.training.distributed.collectives import HostCollectives
from t5_pipeline.training.halving import Halving
from t5_pipeline.training.loop import LossFn, train_step
from t5_pipeline.training.microbatches import BatchSource, StepBatch, prefetch
from t5_pipeline.training.nonfinite import OnNonFinite
from t5_pipeline.training.optimizers import model_optimizer
from t5_pipeline.training.probing import Probing
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.schedules import Schedule, schedule_of
from t5_pipeline.training.state import TrainState
from t5_pipeline.training.trackers import Track

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("t5-pipeline")

# Reported to the other ranks in place of a signal number: this rank's last checkpoint could not be written.
NOT_SAVED = 1 << 10


@dataclass(frozen=True)
class Validation:
    """A measurement on held-out data, before the first step and then every `every` steps.

    Attributes:
        measure: the fields of its row in metrics.jsonl, `loss` among them. Called on every rank.
    """

    measure: Callable[[TrainState], Mapping[str, Any]]
    every: int

    def due(self, step: int) -> bool:
        return step % self.every == 0


class Trainer:
    """Trains a model.

        with trainer.open(directory, fingerprint, stop=stop, progress=progress):
            trainer.resume()
            trainer.run_to(1000)

    To act at a certain step (publish a model), run to it, act, and run on: no bit depends on where a call ends.

    Args:
        config: steps, optimizer, schedule, checkpoints, and how often to log and save.
        model: its parameters that require gradients are trained.
        batches: the global batch of each step.
        loss_fn: losses [C] of (model, microbatch), one for each of `cells` (without cells: [1]), as made by
            `batch_losses`.
        optimizer: makes the optimizer from the trained parameters; default: `model_optimizer` with the settings.
        selection: chooses the published checkpoint by validation metrics; default: the last step is published.
        probing: a score of the weights to log, which may stop the training.
        validation: held-out loss to log; also the score of a checkpoint, unless there is a selection.
        cells: names of the losses in metrics.jsonl.
        schedules: learning rate of each prompt of a bank; default: that of the settings.

    Attributes:
        stop, progress, checkpoints, on_nonfinite, metrics: those of the last call of `open`.
    """

    stop: StopSignal
    progress: Progress
    checkpoints: Checkpoints
    on_nonfinite: OnNonFinite
    metrics: MetricsLog

    def __init__(
        self,
        config: TrainingConfig,
        launch: LaunchContext,
        accelerator: Accelerator,
        model: nn.Module,
        batches: BatchSource,
        loss_fn: LossFn,
        *,
        optimizer: MakeOptimizer | None = None,
        selection: Selection | None = None,
        validation: Validation | None = None,
        probing: Probing | None = None,
        cells: Sequence[str] = (),
        schedules: Sequence[Schedule] = (),
    ) -> None:
        c = self.config = config
        self.batches = batches
        self.loss_fn = loss_fn
        self.validation = validation
        self.cells = cells
        self.unit = "examples" if isinstance(c, LearningConfig) else "tokens"
        make_optimizer = optimizer or partial(
            model_optimizer, c.optimizer, weight_decay=c.weight_decay, step_offset=c.optimizer_step_offset
        )
        self.halving = selection.halving if selection else Halving(())
        graphs = isinstance(c, ExecutionConfig) and self._uses_cuda_graphs(c, launch, accelerator.device.type)
        engine = make_engine(launch, accelerator, model, make_optimizer, c.precision, cuda_graphs=graphs)
        self.state = TrainState(engine, selection, probing)
        self.schedules = list(schedules) or [schedule_of(c)]
        self._control_group = HostCollectives(self.state.group.rank, self.state.group.world)
        self._score: float | None = None  # validation score of exactly this step
        self._resumed: Checkpoint | None = None

    def _uses_cuda_graphs(self, c: ExecutionConfig, launch: LaunchContext, device_type: str) -> bool:
        """Whether microbatches are CUDA graphs; logs one line if they should be and cannot."""
        # A sweep drops prompts, whose gradients then end; other engines run collectives in each microbatch.
        possible = not self.halving.ends and launch.engine in REPLICATED
        uses = possible and c.uses_cuda_graphs(device_type)
        if c.cuda_graphs == "true" and not uses:
            log.warning(
                "cuda_graphs: needs a GPU, one process or DDP, and neither `recompute` nor a sweep; running without"
            )
        return uses

    def checkpoints_in(self, directory: Path, fingerprint: str) -> Checkpoints:
        c = self.config
        return Checkpoints(
            directory / "checkpoints",
            fingerprint,
            keep_last=c.keep_last,
            keep_every=c.keep_every,
            keep_best=c.keep_best,
            control_group=self._control_group,
        )

    @contextmanager
    def open(
        self, directory: Path, fingerprint: str, *, stop: StopSignal, progress: Progress, track: Track | None = None
    ) -> Iterator[None]:
        """Keep checkpoints, metrics.jsonl and nonfinite.jsonl in this directory.

        Args:
            fingerprint: everything that shapes the trajectory; checkpoints with another one are refused.
            stop: asked after every step.
            track: also receives each row of metrics.jsonl.
        """
        self.stop, self.progress = stop, progress
        self.checkpoints = self.checkpoints_in(directory, fingerprint)
        self.on_nonfinite = OnNonFinite(self.config.on_nonfinite, directory if self.state.group.rank == 0 else None)
        with MetricsLog(directory / "metrics.jsonl", track) as metrics:
            self.metrics = metrics
            yield

    def resume(self, at: int | None = None, at_most: int | None = None, others: Checkpoints | None = None) -> None:
        """Load the newest intact checkpoint, or stay at step 0 if there is none.

        Later checkpoints and rows of metrics.jsonl and nonfinite.jsonl are removed; training writes them again.

        Args:
            at: load the checkpoint of exactly this step.
            at_most: load the newest one that is not after this step.
            others: checkpoints of the same trajectory in another directory, which are only read; with `at_most`.

        Raises:
            InputError: if the checkpoint belongs to other settings or another model, or there is none of step `at`.
        """
        state = self.state
        if others is not None and at_most is not None:  # a step that is trained again, if need be from step 0
            intact = filter(None, (others.newest_intact(at_most), self.checkpoints.newest_intact(at_most)))
            found = max(intact, key=lambda checkpoint: checkpoint.step, default=None)
        else:
            found = self.checkpoints.latest(at_most) if at is None else self.checkpoints.at(at)
        self._resumed = found
        step = -1 if found is None else found.step
        if found is not None:
            state.load(step, found, found.scalars)
        state.group.all_reduce_max(0)  # nothing is removed before every process has read
        if state.group.rank == 0:
            self.checkpoints.discard_after(step)
            self.metrics.truncate_after(step)
            self.on_nonfinite.forget_after(step)

    @property
    def exhausted(self) -> bool:
        """True once early stopping has ended the training."""
        return any(by is not None and by.exhausted for by in (self.state.selection, self.state.probing))

    def run_to(self, steps: int) -> None:
        """Train until `steps` steps are done in all (or until early stopping), and save the last one.

        Raises:
            Interrupted: if `stop` was signaled; the current step was finished and saved.
            InputError: if a loss or gradient is not finite, or a checkpoint cannot be written; older ones are intact.
        """
        if self.exhausted:
            return
        state = self.state
        state.engine.set_training(True)
        state.stats.restart_clock()
        if state.step == 0 < steps:
            if state.group.rank == 0:
                self.metrics.truncate_after(-1)  # rows of step 0 of a run that was killed before its next checkpoint
            self._measure_due()
        if steps == 0:
            self.save()
        with closing(self._batches(steps)) as batches, self.checkpoints.finishing():
            for batch in batches:
                self._step(batch)
                self._measure_due()
                ended = state.step == steps or self.exhausted
                signum = state.group.all_reduce_max(NOT_SAVED if self.checkpoints.failed else self.stop.signum)
                if signum == NOT_SAVED:
                    self.checkpoints.wait()
                if state.step % self.config.checkpoint_every == 0 or ended or signum:
                    self.save()
                if signum:
                    self.checkpoints.wait()
                    raise Interrupted(signum, state.step)
                if ended:
                    break

    def _batches(self, steps: int) -> Generator[StepBatch]:
        """The batches of the steps up to `steps`, computed ahead, but not beyond a rung, which changes them."""
        for end in sorted({step for step in self.halving.ends if self.state.step < step < steps} | {steps}):
            with closing(prefetch(self._batch, range(self.state.step, end))) as batches:
                yield from batches

    def _batch(self, step: int) -> StepBatch:
        batch = self.state.step_batch(self.batches, step, self.config.microbatch_size)
        return replace(batch, step=self.halving.turn(step).step)

    def _step(self, batch: StepBatch) -> None:
        c, state, halving = self.config, self.state, self.halving
        self._score = None
        active = halving.turn(state.step).prompts if state.selection else None
        waiting = set(range(len(self.cells))).difference(active or ()) if halving.takes_turns else set()
        rates = [None if index in waiting else schedule(batch.step) for index, schedule in enumerate(self.schedules)]
        train_step(
            state,
            batch,
            self.loss_fn,
            losses=max(1, len(self.cells)),
            learning_rates=rates,
            seed=c.seed,
            skip_nonfinite=self.on_nonfinite.skips,
        )
        row = None
        # A row is about the same prompts in all of its steps.
        if state.step % c.log_every == 0 or (halving.takes_turns and state.step in halving.ends):
            row = self._training_row(active, rates)
            self._log(row)
        self.progress.update(state.step, row)

    def _training_row(self, active: Sequence[int] | None, rates: Sequence[float | None]) -> dict[str, object]:
        """The row of metrics.jsonl about the steps since the last one.

        Args:
            active: indices of the losses and rates that count; None for all.
            rates: learning rate of each schedule in the last step.
        """
        self._synchronize()
        row = self.state.stats.read(self.cells, self.unit, active)
        used = {index: rates[index] for index in (range(len(rates)) if active is None else active)}
        if len(set(used.values())) > 1:
            row["learning_rates"] = {self.cells[index]: rate for index, rate in used.items()}
        else:
            row["learning_rate"] = next(iter(used.values()))
        row["elapsed_s"] = round(self.state.elapsed, 3)
        if self.state.skipped:
            row["skipped"] = self.state.skipped
        return row

    def _measure_due(self) -> None:
        """Validate, probe and select, whichever is due at this step."""
        step, probing, selection = self.state.step, self.state.probing, self.state.selection
        if self.validation is not None and self.validation.due(step):
            self._validate(self.validation)
        if probing is not None and probing.due(step):
            self._measure(probing.update, "probe")
        if selection is not None and selection.due(step):
            self._select(selection)

    def _validate(self, validation: Validation) -> None:
        """Measure and log the held-out loss, which becomes the score of this step's checkpoint."""
        self._score = -float(self._measure(validation.measure)["loss"])

    def _select(self, selection: Selection) -> None:
        """Score every cell on its validation rows, log the scores, and keep what is better than before.

        The score of this step's checkpoint is the mean over the cells of each one's average of metrics.
        """
        measured: dict[str, Measured] = {}

        def measure(state: TrainState) -> Mapping[str, Any]:
            measured.update(selection.update(state.step, state.engine))
            return {
                "scores": {cell: each.scores for cell, each in measured.items()},
                "losses": {cell: each.loss for cell, each in measured.items()},
                **({"dropped": selection.dropped} if selection.dropped else {}),
            }

        self._measure(measure)
        self._score = sum(each.score for each in measured.values()) / len(measured)

    def _measure(
        self, measure: Callable[[TrainState], Mapping[str, Any]], split: str = "validation"
    ) -> Mapping[str, Any]:
        with self.state.stats.paused():
            self._synchronize()
            self.state.engine.set_training(False)
            row = {"split": split, **measure(self.state)}
            self._log(row)
            self.progress.validated(self.state.step, row)
            self.state.engine.set_training(True)
        return row

    def save(self) -> None:
        """Start writing a checkpoint of the current step in the background."""
        state = self.state
        with state.stats.paused():
            self._synchronize()
            self.checkpoints.save(
                state.step, state.shards(), state.scalars(), score=self._score, before=self.metrics.sync
            )

    def _synchronize(self) -> None:
        """Bring the losses since the last call to the host and handle those that are not finite."""
        bad = self.state.stats.synchronize()
        self.state.skipped += len(bad)
        self.on_nonfinite.handle(bad, self.batches)

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.state.group.rank == 0:
            step = self.state.step
            own = {"prompt_step": self.halving.trained(step).step} if self.halving.takes_turns else {}
            self.metrics.write({"step": step, **own, **row})

    def result(self) -> TrainingResult:
        """The result of the last step that was saved or resumed from, in evaluation mode."""
        state, selection = self.state, self.state.selection
        state.engine.set_training(False)
        resumed = self._resumed
        checkpoint = resumed if resumed and resumed.step == state.step else self.checkpoints.at(state.step)
        if selection is None:
            return TrainingResult(checkpoint, [])
        best = selection.finalize(state.step, state.engine)
        return TrainingResult(checkpoint, best, selection.validations(state.step))
