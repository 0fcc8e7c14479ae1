"""Setting groups: declared once, with defaults that stages override."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.command_line import validate_flags
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.soft_prompt import PromptMixtureConfig, PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import OptimizerConfig
from t5_pipeline.config.tuning import PeftTuneConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, defaults, properties, setting

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


@pytest.mark.parametrize("cls", KINDS, ids=list(STAGES))
def test_conditions_name_values_of_other_settings(cls: type[StageConfig]) -> None:
    """`only` is text, so that help and errors can show it: a misspelt one would never hold."""
    for name, field in cls.model_fields.items():
        setting_name, _, values = properties(field)["only"].removeprefix("no ").partition(": ")
        if values and setting_name in cls.model_fields:
            choices = get_args(cls.model_fields[setting_name].annotation)
            assert set(values.split(" or ")) < set(choices), name
    known = {name for kind in KINDS for name in kind.model_fields}
    conditions = {properties(field)["only"] for field in cls.model_fields.values()} - {""}
    assert {condition.removeprefix("no ").partition(":")[0] for condition in conditions} <= known


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rank": 4}, "rank: has no effect without `reparametrization: low_rank`; change one of the two"),
        ({"rank": 10}, ""),  # the default, so nothing was changed
        ({"rank": 4, "reparametrization": "low_rank"}, ""),
        ({"rank": 4, "matrix": {"reparametrization": ["none", "low_rank"]}}, ""),
        ({"rank": 4, "matrix": {"reparametrization": ["none", "residual"]}}, "rank: has no effect without"),
        ({"matrix": {"rank": [4, 8]}}, "matrix.rank: has no effect without"),
        ({"rank": 4, "sweep": {"reparametrization": ["none", "low_rank"]}}, ""),
        ({"sweep": {"rank": [10, 8]}}, "sweep.rank: has no effect without"),
        ({"patience": 2, "select": "last"}, "patience: has no effect without `select: best`"),
        ({"first_rung": 5}, "first_rung: has no effect without `sweep`"),
        (
            {"init_labels": ["x"], "prompt_init": "vocabulary"},
            "init_labels: has no effect without `prompt_init: class_",
        ),
        ({"optimizer_step_offset": 5, "matrix": {"optimizer": ["adafactor", "adamw"]}}, ""),
    ],
)
def test_a_setting_without_effect_in_every_cell_is_an_error(
    recipe: Path, settings: dict[str, Any], problem: str
) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["stages"]["prompt_tune"] = {"model": "lm_adapt", "task": "tone", "steps": 100, **settings}
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    if not problem:
        load_recipe(recipe)
        return
    with pytest.raises(InputError, match=rf"{recipe}:\d+: stages\.prompt_tune\.{problem}"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("peft_tune", {"method": "ia3", "alpha": 8}, "--alpha: has no effect without `--method lora`"),
        ("peft_tune", {"method": "p_tuning", "target_modules": ["q"]}, "--target-modules: .* `--method lora or ia3`"),
        ("prompt_design", {"separator": "\n"}, "--separator: has no effect without `--shots`"),
        ("evaluate", {"prompts": "p", "length_penalty": 0.6}, "--length-penalty: has no effect without `--beams`"),
        ("span_corrupt", {"mixture": "ul2", "noise_density": 0.5}, "--noise-density: has no effect with `--mixture`"),
        ("prepare", {"vocabulary": "v", "vocabulary_size": 99}, "--vocabulary-size: .* with `--vocabulary`"),
        ("lm_adapt", {"probe_rows": 9}, "--probe-rows: has no effect without `--probe`"),
    ],
)
def test_a_flag_without_effect_is_an_error(kind: str, values: dict[str, Any], problem: str) -> None:
    given = {"model": "m", "tokens": "t", "steps": 1, "task": TASK, "corpus": "c"}
    needed = {name: value for name, value in given.items() if name in STAGES[kind].model_fields}
    with pytest.raises(InputError, match=f"^{problem}"):
        validate_flags(STAGES[kind], {**needed, **values}, "x")


def test_patience_stops_only_what_is_measured() -> None:
    tune = PromptTuneConfig(model="m", task=TASK, patience=2)  # type: ignore[arg-type]
    assert tune.may_stop_early()
    assert not tune.model_copy(update={"select": "last"}).may_stop_early()
    adapt = LMAdaptConfig.model_validate({"model": "m", "tokens": "t", "probe_patience": 2})
    assert not adapt.may_stop_early()
    probed = TASK | {"splits": {"train": "train", "validation": "validation"}}
    assert LMAdaptConfig.model_validate({**adapt.model_dump(), "probe": [probed]}).may_stop_early()


def test_mixtures_of_different_seeds_start_from_different_prompts() -> None:
    seeds = [
        seed
        for of_mixture in (0, 1, 2**63 - 1)
        for seed in PromptMixtureConfig(model="m", task=TASK, seed=of_mixture).component_seeds()  # type: ignore[arg-type]
    ]
    assert seeds[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(set(seeds)) == 15
    assert max(seeds) < 2**63  # torch's limit
