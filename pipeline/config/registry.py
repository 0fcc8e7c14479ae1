"""Every kind of stage and its settings: the one source of recipe keys, flags, `--help` and docs.

An input field takes the name of another stage of the recipe (`lm_adapt`, or `lm_adapt@10000` for a kept step),
or a path; on the command line always a path.
"""

from __future__ import annotations

from t5_pipeline.config.adaptation import LMAdaptConfig, SentinelConfig, SpanCorruptConfig
from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.soft_prompt import PromptMixtureConfig, PromptMultitaskConfig, PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.tuning import ModelTuneConfig, PeftTuneConfig, PromptDesignConfig

# The ways to solve a task, in the order in which evaluate scores them. How their artifacts answer is in
# pipeline/methods/registry.py.
METHOD_STAGES = (
    PromptTuneConfig, PromptMultitaskConfig, ModelTuneConfig, PromptMixtureConfig, PromptDesignConfig, PeftTuneConfig,
)  # fmt: skip


def stage_kinds(*methods: type[StageConfig]) -> dict[str, type[StageConfig]]:
    """The settings of each kind of stage, with evaluate scoring these methods."""
    classes: list[type[StageConfig]] = [PrepareConfig, SpanCorruptConfig, LMAdaptConfig, SentinelConfig, *methods]
    return {cls.kind: cls for cls in (*classes, EvaluateConfig.for_methods(methods))}


STAGES = stage_kinds(*METHOD_STAGES)
