"""A probe of LM adaptation: prompts tuned on the current weights for a few steps, and their validation scores.

Figure 3(d) of Lester et al. 2021 shows how well a T5 can be prompted after more and more steps of adaptation. A probe
measures one of its points while the adaptation runs.

The training is not changed: the T5 is frozen meanwhile, the probe has its own optimizer and its own random numbers, and
the global generators are restored. Every rank computes the same probe on its own copy of the weights; the numbers of
rank 0 count.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.cost.probes import probe_cost
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.encode import encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.evaluation.held_out import HeldOut, score_prompts, validation_rows
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.methods.prompt_init import initial_rows
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.loop import train_step
from t5_pipeline.training.loss import batch_losses, target_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import prompt_optimizer
from t5_pipeline.training.probing import Probing
from t5_pipeline.training.state import TrainState


def probing_of(stage: Stage[LMAdaptConfig], loaded: LoadedT5) -> Probing | None:
    """The probes of a stage; None if its settings name no tasks.

    Raises:
        InputError: if a task has no usable rows, or the probes cost too much.
    """
    c = stage.config
    cost = probe_cost(c, loaded.t5.shape)
    if cost is None:
        return None
    log.info("%s: %s", stage.name, cost)
    stage.cells[0].facts.update(probe_every=cost.every, probe_share=cost.share)
    return Probing(PromptProbe.of(c, loaded), cost.every, c.probe_patience)


@dataclass(frozen=True)
class PromptProbe:
    """The prompts of a probe, with their training batches and validation rows.

    Attributes:
        loaded: the T5 that is adapted, whose weights change.
        cells: settings of each prompt.
    """

    loaded: LoadedT5
    cells: Sequence[PromptTuneConfig]
    batches: TaskBatches
    splits: Sequence[HeldOut]

    @classmethod
    def of(cls, c: LMAdaptConfig, loaded: LoadedT5) -> PromptProbe:
        cells = c.probe_cells(c.model)
        rows, splits = {}, {}
        for cell in cells[:: c.probe_prompts]:
            reading = loaded.reading(cell.max_input_length, cell.max_target_length)
            rows[cell.task.name] = encode_task(Task.load(cell.task), "train", reading, training=True)
            splits[cell.task.name] = validation_rows(cell.task, loaded, cell)
        batches = TaskBatches(
            [rows[cell.task.name] for cell in cells],
            [cell.batch_size for cell in cells],
            [cell.seed for cell in cells],
        )
        return cls(loaded, cells, batches, [splits[cell.task.name] for cell in cells])

    def __call__(self, state: TrainState) -> Mapping[str, Any]:
        """The row of metrics.jsonl: score and spread over the prompts, and the metrics of each."""
        device = state.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), frozen(self.loaded.t5):
            found = self._measured(device)
        numbers = iter(state.group.broadcast_list([n for each in found for n in (each.score, *each.scores.values())]))
        scores, metrics = list[float](), dict[str, dict[str, float]]()
        for cell, each in zip(self.cells, found, strict=True):
            scores.append(next(numbers))
            metrics[probe_id(cell)] = {name: next(numbers) for name in each.scores}
        return {**summary(scores, len({cell.seed for cell in self.cells})), "scores": metrics}

    def _measured(self, device: torch.device) -> list[Measured]:
        """Tune the prompts from their initial rows, and score them."""
        c, t5 = self.cells[0], self.loaded.t5
        bank = PromptBank([initial_rows(t5, self.loaded.vocabulary, cell, cell.seed).cpu() for cell in self.cells])
        scope = ForwardScope(PromptedT5(t5, bank), c.precision, device.type)

        def loss_fn(model: PromptedT5, batch: TensorBatch) -> Tensor:
            hidden_BTD = model.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
            loss_BT = target_loss(model, hidden_BTD, batch.targets_BT, c)
            return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, len(bank))

        def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
            (rows_RD,) = parameters
            return prompt_optimizer(c.optimizer, rows_RD, bank.row_prompt_R, c.weight_decay, 0, c.factor_long_prompts)

        state = TrainState(Replicated(scope, optimizer, ProcessGroup.alone(), device))
        state.engine.set_training(False)  # no dropout
        for step in range(c.steps):
            train_step(
                state,
                state.step_batch(self.batches, step, c.microbatch_size),
                loss_fn,
                losses=len(bank),
                learning_rates=[c.learning_rate],
                seed=c.seed,
                skip_nonfinite=True,
            )
        with torch.no_grad():
            options = AnswerOptions(device, c.precision)
            measured: list[Measured] = state.engine.call(partial(score_prompts, splits=self.splits, options=options))
        return measured


def probe_id(cell: PromptTuneConfig) -> str:
    """Name of a prompt in metrics.jsonl."""
    return f"{cell.task.name},seed={cell.seed}"


def summary(scores: Sequence[float], prompts: int) -> dict[str, float]:
    """Mean over tasks and prompts, and the sample standard deviation over prompts of the mean over tasks.

    Args:
        scores: score of each prompt, the prompts of a task in a row.
        prompts: prompts for each task.

    >>> summary([0.5, 0.7, 0.9, 0.7], prompts=2)
    {'score': 0.7, 'spread': 0.0}
    """
    means = [statistics.fmean(scores[number::prompts]) for number in range(prompts)]
    return {"score": statistics.fmean(means), "spread": statistics.stdev(means) if prompts > 1 else 0.0}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep gradients away from a model's parameters; afterward the same ones as before are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
