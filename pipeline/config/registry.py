"""Every kind of stage and its settings: the one source of the recipe's keys, the flags, `--help` and the docs.

An input field takes the name of another stage of the recipe (`lm_adapt`, or `lm_adapt@10000` for a kept step),
or a path; on the command line always a path.
"""

from __future__ import annotations

from t5_pipeline.config.adaptation import LMAdaptConfig, SentinelConfig, SpanCorruptConfig
from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.tuning import (
    ModelTuneConfig,
    PeftTuneConfig,
    PromptDesignConfig,
    PromptMixtureConfig,
    PromptTuneConfig,
)

STAGES: dict[str, type[StageConfig]] = {
    cls.kind: cls
    for cls in (
        PrepareConfig,
        SpanCorruptConfig,
        LMAdaptConfig,
        SentinelConfig,
        PromptTuneConfig,
        ModelTuneConfig,
        PromptDesignConfig,
        PromptMixtureConfig,
        PeftTuneConfig,
        EvaluateConfig,
    )
}
