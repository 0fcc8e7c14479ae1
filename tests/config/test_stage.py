"""Setting groups: declared once, with defaults that stages override."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.soft_prompt import PromptMixtureConfig, PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import OptimizerConfig
from t5_pipeline.config.tuning import PeftTuneConfig
from t5_pipeline.core.schema import Config, defaults, setting

KINDS = list(STAGES.values())
TASK = {"name": "about", "data": "rows", "inputs": "{text}", "targets": "{label}", "labels": ["a", "b"]}


def declared(cls: type) -> set[str]:
    """Names of the settings that a class declares itself."""
    fields = getattr(cls, "model_fields", {})
    return {name for name in inspect.get_annotations(cls) if name in fields}


@pytest.mark.parametrize("cls", KINDS, ids=list(STAGES))
def test_no_stage_declares_a_setting_of_a_base_class(cls: type[StageConfig]) -> None:
    seen: dict[str, type] = {}
    for base in cls.__mro__:
        for name in declared(base):
            assert name not in seen, f"{name}: {base.__name__} and {seen[name].__name__}"
            seen[name] = base
    assert seen.keys() == cls.model_fields.keys()


@pytest.mark.parametrize("cls", KINDS, ids=list(STAGES))
def test_default_overrides_keep_everything_else(cls: type[StageConfig]) -> None:
    for base in cls.__mro__:
        for name in declared(base):
            ours, theirs = cls.model_fields[name], base.model_fields[name]  # type: ignore[attr-defined]
            for kept in ("description", "json_schema_extra", "metadata", "annotation"):
                assert getattr(ours, kept) == getattr(theirs, kept), name


def test_defaults_are_overridden_and_inherited() -> None:
    class Group(Config):
        rate: float = setting(0.1, "rate", gt=0)
        steps: int = setting(..., "steps", ge=0)

    @defaults(rate=0.2, steps=5)
    class Stage(Group):
        pass

    @defaults(rate=0.3)
    class Special(Stage):
        pass

    assert (Stage(), Special(), Group(steps=1)) == (
        Stage(rate=0.2, steps=5),
        Special(rate=0.3, steps=5),
        Group(rate=0.1, steps=1),
    )
    with pytest.raises(ValidationError, match="greater than 0"):
        Special(rate=0)
    with pytest.raises(ValidationError, match="steps"):
        Group()
    with pytest.raises(KeyError):
        defaults(ratte=1)(Stage)


@pytest.mark.parametrize(
    ("cls", "key"),
    [
        (PromptMixtureConfig, "logits_precision"),
        (PeftTuneConfig, "logits_precision"),
        (PeftTuneConfig, "recompute"),
        (PeftTuneConfig, "reference_ops"),
        (PrepareConfig, "steps"),
    ],
)
def test_settings_without_effect_do_not_exist(cls: type[StageConfig], key: str) -> None:
    assert key not in cls.model_fields


@pytest.mark.parametrize(
    ("schedule", "given", "steps"), [("rsqrt", None, 10_000), ("constant", None, 0), ("rsqrt", 7, 7), ("linear", 3, 3)]
)
def test_warmup_depends_on_the_schedule(schedule: str, given: int | None, steps: int) -> None:
    settings = OptimizerConfig(steps=10, schedule=schedule, warmup_steps=given)  # type: ignore[arg-type]
    assert settings.warmup_steps == steps


@pytest.mark.parametrize(
    ("model", "given", "steps"),
    [("google/t5-v1_1-xl", None, 1_000_000), ("google/t5-xl-lm-adapt", None, 1_100_000), ("pretrain", None, 0),
     ("google/t5-v1_1-xl", 0, 0), ("pretrain", 7, 7), ("t5-small", None, 0), ("T5X", None, 1_000_000),
     ("T5X/checkpoint_1000000", None, 1_000_000), ("T5X/checkpoint_1000000/checkpoint", None, 1_000_000),
     ("/models/t5-v1_1-base", None, 1_000_000), ("../google/t5-xl-lm-adapt/", None, 1_100_000),
     ("hub/models--google--t5-v1_1-xxl/snapshots/0a1b", None, 1_000_000), ("models/my-t5-v1_1-base", None, 0),
     ("models/t5-v1_1-base-tuned", None, 0), ("models/t5-german-lm-adapt", None, 0), ("t5-v1_1-base/model", None, 0)],
)  # fmt: skip
def test_step_offset_is_known_of_t5_1_1_and_of_t5x(model: str, given: int | None, steps: int, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1000000").mkdir()
    (tmp_path / "checkpoint_1000000" / "checkpoint").touch()
    model = model.replace("T5X", str(tmp_path))
    settings = LMAdaptConfig(model=model, tokens="tokens", **({} if given is None else {"step_offset": given}))
    assert settings.step_offset == steps
    assert settings.rate_problem() is None


def test_a_step_offset_that_leaves_no_learning_rate() -> None:
    settings = LMAdaptConfig(model="google/t5-v1_1-xl", tokens="tokens", learning_rate=0.03)
    assert settings.rate_problem() == (
        "`step_offset: 1,000,000` makes the learning rate 3.0e-05, below 0.0001; raise `learning_rate`, or set"
        " `step_offset: 0`"
    )
    assert settings.model_copy(update={"schedule": "linear"}).rate_problem() is None


@pytest.mark.parametrize(("model", "rate"), [("google/t5-v1_1-xl", "1.0e-06"), ("my-t5", "1.0e-05")])
def test_a_rate_for_adamw_is_too_small_for_rsqrt(model: str, rate: str) -> None:
    settings = LMAdaptConfig(model=model, tokens="tokens", learning_rate=1e-3, optimizer="adamw")
    assert settings.rate_problem() == (
        f"`schedule: rsqrt` makes the learning rate {rate}, below 0.0001; raise `learning_rate`, or set"
        " `schedule: constant`"
    )
    assert settings.model_copy(update={"schedule": "constant"}).rate_problem() is None


@pytest.mark.parametrize(
    ("schedule", "warmup", "count"), [("constant", 101, 1), ("constant", 100, 0), ("rsqrt", 101, 0)]
)
def test_a_warmup_that_does_not_end(schedule: str, warmup: int, count: int) -> None:
    settings = LMAdaptConfig(model="m", tokens="tokens", steps=100, schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    assert (
        settings.warnings()
        == [
            "`warmup_steps` (101) are more than the 100 `steps`, so the learning rate does not reach `learning_rate`;"
            " lower them"
        ][:count]
    )


def test_steps_to_keep_after_the_last_one() -> None:
    """A recipe whose `steps` are lowered for a trial still runs."""
    settings = LMAdaptConfig(model="m", tokens="tokens", steps=100, keep_steps=[50, 100, 2000, 1000])
    assert settings.warnings() == [
        "`keep_steps` 1,000, 2,000 will not be published, because training ends after 100 `steps`; lower them, or raise"
        " `steps`"
    ]
    assert settings.model_copy(update={"steps": 2000}).warnings() == []
    small = settings.model_copy(update={"learning_rate": 1e-3})
    assert small.warnings() == [small.rate_problem(), *settings.warnings()]


def test_linear_warmup_ends_before_the_last_step() -> None:
    with pytest.raises(ValidationError, match="must be fewer than the 10 `steps`"):
        OptimizerConfig(steps=10, schedule="linear", warmup_steps=10)


def test_prompts_train_together_on_one_t5() -> None:
    one = PromptTuneConfig(model="m", task=TASK, seed=1)  # type: ignore[arg-type]
    same = one.model_copy(update={"seed": 2, "prompt_length": 5})
    assert one.together_with(same)
    assert one.together_with(one.model_copy(update={"learning_rate": 1.0, "reparametrization": "residual"}))
    assert not one.together_with(one.model_copy(update={"dropout": 0.5}))
    mixture = PromptMixtureConfig(model="m", task=TASK)  # type: ignore[arg-type]
    assert not mixture.together_with(mixture)


def test_mixtures_of_different_seeds_start_from_different_prompts() -> None:
    seeds = [
        seed
        for of_mixture in (0, 1, 2**63 - 1)
        for seed in PromptMixtureConfig(model="m", task=TASK, seed=of_mixture).component_seeds()  # type: ignore[arg-type]
    ]
    assert seeds[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(set(seeds)) == 15
    assert max(seeds) < 2**63  # torch's limit
