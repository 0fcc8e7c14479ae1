"""Prompts with different settings as one bank: their start, and the optimizer and learning rate of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.methods.prompt_init import initial_rows, sampled_rows
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.prompt_bank import PromptBank
from t5_pipeline.modeling.reparametrization import LowRank, Reparametrization, Residual, SuperPos
from t5_pipeline.training.distributed import MakeOptimizer
from t5_pipeline.training.optimizers import PromptRule, bank_optimizer


def initial_prompt(loaded: LoadedT5, c: PromptTuneConfig, trained: Path | None) -> Tensor | Reparametrization:
    """A prompt as it starts: rows [P, D], or a reparametrization that starts from them.

    With `prompt_init: uniform`, the factors of `low_rank` are drawn, not the rows.

    Args:
        trained: directory of the prompt to start from (`prompt_init: prompt`).
    """
    t5, vocabulary = loaded.t5, loaded.vocabulary
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


def make_bank(prompts: Sequence[Tensor | Reparametrization], configs: Sequence[PromptTuneConfig]) -> PromptBank:
    """A bank in which plain prompts share a parameter if they are trained alike."""
    keys = [(c.learning_rate, c.schedule, c.warmup_steps, c.step_offset, _rule(c)) for c in configs]
    return PromptBank(prompts, [keys.index(key) for key in keys])


def optimizer_of(bank: PromptBank, configs: Sequence[PromptTuneConfig]) -> MakeOptimizer:
    """Makes the optimizer of a bank from its parameters; the learning rate of each prompt is set at every step."""
    rules = [_rule(c) for c in configs]
    return lambda parameters: bank_optimizer(configs[0].optimizer, parameters, bank.parts, rules)


def _rule(c: PromptTuneConfig) -> PromptRule:
    return PromptRule(c.weight_decay, c.update_clipping, c.optimizer_step_offset, c.factor_long_prompts)
