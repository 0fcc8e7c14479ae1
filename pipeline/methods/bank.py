"""Prompts with different settings as one bank: their start, the optimizer of each, and the winners of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.execution.context import CellRun
from t5_pipeline.methods.multitask import SharedPrompt
from t5_pipeline.methods.prompt_init import initial_rows, sampled_rows
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.prompt_bank import PromptBank
from t5_pipeline.modeling.reparametrization import LowRank, RankOne, Reparametrization, Residual, SuperPos
from t5_pipeline.training.distributed import MakeOptimizer
from t5_pipeline.training.halving import Halving
from t5_pipeline.training.optimizers import PromptRule, bank_optimizer
from t5_pipeline.training.result import TrainingResult


@dataclass(frozen=True)
class Trial:
    """One prompt of a bank: the prompt of a cell, or one of its sweep.

    Attributes:
        number: index of the cell in its job.
        name: as in metrics.jsonl: the cell's id, then the combination of the sweep.
    """

    cell: CellRun[PromptTuneConfig]
    number: int
    config: PromptTuneConfig
    name: str


def trials_of(cells: Sequence[CellRun[PromptTuneConfig]]) -> list[Trial]:
    return [
        Trial(cell, number, config, ",".join(filter(None, (cell.id, name))))
        for number, cell in enumerate(cells)
        for name, config in cell.config.trials().items()
    ]


def halving_of(trials: Sequence[Trial]) -> Halving:
    """The stretches of the sweeps of a job, whose cells all have the same ones."""
    c = trials[0].cell.config
    return Halving([trial.number for trial in trials], c.stretches(c.steps))


def winners(trials: Sequence[Trial], result: TrainingResult) -> list[int]:
    """Index of the trial that each cell publishes: that of the best validation.

    Of equal scores the lowest loss wins, then the first trial.
    """

    def rank(index: int) -> tuple[float, float, int]:
        measured = result.best(index).measured
        return -measured.score, measured.loss, index

    groups: dict[int, list[int]] = {}
    for index, trial in enumerate(trials):
        groups.setdefault(trial.number, []).append(index)
    return [min(group, key=rank) for group in groups.values()]


def sweep_facts(trials: Sequence[Trial], winner: int, result: TrainingResult, halving: Halving) -> dict[str, Any]:
    """The entry of a manifest about a sweep: its winner, and the best of each prompt; nothing without a sweep."""
    trial = trials[winner]
    if not trial.cell.config.sweep:
        return {}
    prompts = {}
    for index, each in enumerate(trials):
        if each.number == trial.number:
            best = result.best(index)
            found = {"step": best.step, "score": best.measured.score, "loss": best.measured.loss}
            prompts[each.name] = {**found, "dropped": halving.dropped_at[index]}
    settings = {name: getattr(trial.config, name) for name in trial.cell.config.sweep}
    slots = {"slots": trial.cell.config.sweep_slots} if halving.takes_turns else {}
    return {"sweep": {"winner": trial.name, "settings": settings, "prompts": prompts, **slots}}


def initial_prompt(loaded: LoadedT5, trial: Trial) -> Tensor | Reparametrization:
    """A prompt as it starts: rows [P, D], or a reparametrization that starts from them.

    With `prompt_init: uniform`, the factors of `low_rank` are drawn, not the rows.
    """
    c, t5, vocabulary = trial.config, loaded.t5, loaded.vocabulary
    trained = trial.cell.input(c.init_input).path if c.init_input else None
    if c.reparametrization == "low_rank" and c.prompt_init == "uniform":
        return LowRank.uniform(c.prompt_length, t5.shape.d_model, c.rank, c.seed)
    start_PD = initial_rows(t5, vocabulary, c, c.seed, trained)
    match c.reparametrization:
        case "none":
            return start_PD
        case "residual":
            return Residual(start_PD, c.residual_width, c.seed)
        case "low_rank":
            return LowRank.nearest(start_PD, c.rank)
        case "superpos":
            # The first rows are those that `prompt_init: vocabulary` draws, so it starts there exactly.
            return SuperPos(start_PD, sampled_rows(t5, vocabulary, c, c.superpos_tokens))
        case "rank_one" if c.prompt_init == "shared":
            assert trained is not None
            return RankOne(*SharedPrompt.load(trained))
        case "rank_one":
            return RankOne(start_PD)


def make_bank(
    prompts: Sequence[Tensor | Reparametrization], configs: Sequence[PromptTuneConfig], *, apart: bool
) -> PromptBank:
    """A bank in which plain prompts share a parameter if they are trained alike; with `apart`, none do."""
    if apart:
        return PromptBank(prompts, range(len(prompts)))
    keys = [(c.learning_rate, c.schedule, c.warmup_steps, c.step_offset, _rule(c)) for c in configs]
    first: dict[object, int] = {}
    return PromptBank(prompts, [first.setdefault(key, index) for index, key in enumerate(keys)])


def optimizer_of(bank: PromptBank, configs: Sequence[PromptTuneConfig]) -> MakeOptimizer:
    """Makes the optimizer of a bank from its parameters; the learning rate of each prompt is set at every step."""
    rules = [_rule(c) for c in configs]
    return lambda parameters: bank_optimizer(configs[0].optimizer, parameters, bank.parts, rules)


def _rule(c: PromptTuneConfig) -> PromptRule:
    factor_rate = c.factor_learning_rate / c.learning_rate if c.reparametrization == "rank_one" else 1.0
    return PromptRule(c.weight_decay, c.update_clipping, c.optimizer_step_offset, c.factor_long_prompts, factor_rate)
