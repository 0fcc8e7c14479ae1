"""Settings of prompt tuning and of the methods it is compared with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from t5_pipeline.config.reparametrization import ReparametrizationConfig
from t5_pipeline.config.stage import (
    ExecutionConfig,
    InferenceConfig,
    LogitsConfig,
    ScoringConfig,
    StageConfig,
    TrainingConfig,
    WholeModelConfig,
)
from t5_pipeline.config.sweep import MAX_TRIALS, SweepConfig, combination_name
from t5_pipeline.core.schema import Input, defaults, message_of, setting
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config

PeftMethod = Literal["lora", "ia3", "prefix_tuning", "p_tuning"]
Projection = Literal["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
TARGETS: dict[str, list[Projection]] = {"lora": ["q", "v"], "ia3": ["k", "v", "wo"]}
"""The projections that their papers adapt: LoRA's q and v; (IA)³'s keys, values and inner feed-forward activations."""


class TaskStageConfig(ScoringConfig, StageConfig):
    """Settings of every stage that solves a task with a T5, trained or not."""

    model: Annotated[str, Input("model")] = setting(..., "base T5: hub name, directory or stage")
    max_input_length: int = setting(
        512, "maximum input tokens, besides a soft prompt; longer inputs are truncated", unit="tokens", gt=0
    )
    max_target_length: int = setting(128, "maximum target tokens; longer targets are truncated", unit="tokens", gt=0)
    validation_limit: int = setting(
        0, "validation rows to score, spread evenly over the split; 0: all", unit="rows", ge=0
    )


class OneTaskConfig(TaskStageConfig):
    """Settings of a stage that solves a single task."""

    task: TaskConfig = setting(..., "task: a name under the recipe's `tasks:`, or a YAML file")

    def made_for(self) -> list[TaskConfig]:
        return [self.task]


@defaults(steps=30_000, dropout=0.1)
class LearningConfig(TrainingConfig, TaskStageConfig):
    """Settings of every stage that learns a task from its training rows."""

    code_version: ClassVar[int] = 3

    select: Literal["best", "last"] = setting(
        "best", "checkpoint to publish: best average of the task's metrics on validation, or last"
    )
    validate_every: int = setting(1000, "steps between validations (select: best)", unit="steps", gt=0)
    patience: int = setting(
        0, "early stopping after this many validations without improvement; 0: off", unit="validations", ge=0
    )

    @model_validator(mode="after")
    def patience_has_scores(self) -> LearningConfig:
        if self.patience and self.select == "last":
            raise ValueError("`patience` needs validation scores; set `select: best`")
        return self

    def selects_by(self) -> dict[str, list[str]]:
        return {task.name: sorted(task.metrics) for task in self.made_for()} if self.select == "best" else {}

    def example_lengths(self) -> list[tuple[int, int]]:
        return [(self.max_input_length, self.longest_target())]

    def longest_target(self) -> int:
        """Upper bound on target tokens: with labels, the characters of the longest, the space before it and EOS."""
        tasks = self.made_for()
        if not all(task.labels for task in tasks):
            return self.max_target_length
        return min(self.max_target_length, max(len(label) for task in tasks for label in task.labels or []) + 2)


@defaults(learning_rate=0.3, weight_decay=1e-5)
class SoftPromptConfig(ExecutionConfig, LearningConfig, OneTaskConfig):
    """Settings of every stage that trains soft prompts on a frozen T5."""

    freezes_model: ClassVar[bool] = True

    prompt_length: int = setting(100, "length of the prompt", unit="tokens", gt=0)
    # uniform: U[−0.5, 0.5]; uniform_code: U[0, 0.5), as in the official code; vocabulary: embeddings of frequent
    # tokens; class_labels: mean embedding of each label, the remaining rows as with vocabulary.
    prompt_init: Literal["uniform", "uniform_code", "vocabulary", "class_labels", "text", "prompt"] = setting(
        "class_labels", "random: uniform, uniform_code; embeddings: vocabulary, class_labels, text; trained: prompt"
    )
    init_text: str | None = setting(None, "text whose token embeddings start the prompt (prompt_init: text)")
    init_prompt: Annotated[str | None, Input("prompt")] = setting(
        None, "trained prompt to start from (prompt_init: prompt): directory or stage"
    )
    init_labels: list[str] = setting([], "words to start from instead of the task's labels (prompt_init: class_labels)")
    init_population: int = setting(
        5000, "number of most frequent tokens to sample from (prompt_init: vocabulary)", unit="tokens", gt=0
    )
    loss: Literal["mean", "sum"] = setting("mean", "mean or sum of the loss over the target tokens of a prompt's batch")

    @model_validator(mode="after")
    def init_is_complete(self) -> SoftPromptConfig:
        for init, field in (("text", "init_text"), ("prompt", "init_prompt")):
            if (self.prompt_init == init) != (getattr(self, field) is not None):
                raise ValueError(f"`prompt_init: {init}` and `{field}` go together; give both or neither")
        if self.init_labels and self.prompt_init != "class_labels":
            raise ValueError("`init_labels` needs `prompt_init: class_labels`; set it, or remove init_labels")
        if self.prompt_init == "class_labels" and not (self.task.labels or self.init_labels):
            raise ValueError(
                f"`prompt_init: class_labels` needs labels, and {self.task.name} has none; give init_labels, or"
                " use vocabulary"
            )
        return self

    def trained_parameters(self, shape: T5Config) -> int | None:
        return self.readings() * self.prompt_length * shape.d_model

    def prompt_rows(self) -> int:
        return self.prompt_length


class PromptTuneConfig(SweepConfig, ReparametrizationConfig, LogitsConfig, SoftPromptConfig):
    """Prompt tuning (Lester et al. 2021, §2)."""

    kind: ClassVar[str] = "prompt_tune"
    summary: ClassVar[str] = "freeze a T5 and learn a task as a soft prompt"
    outputs: ClassVar[tuple[str, ...]] = ("prompt",)
    code_version: ClassVar[int] = 4
    scored_as: ClassVar[tuple[str, str] | None] = ("prompts", "soft prompts: a prompt_tune stage, or a directory")

    factor_long_prompts: bool = setting(
        False, "factor Adafactor's moments of prompts of 128 rows and more (the official code)"
    )
    update_clipping: float = setting(
        1.0, "Adafactor: largest RMS of an update, before the learning rate", neutral=True, gt=0
    )

    # Settings that may differ between prompts trained in one batch on one frozen T5.
    per_prompt: ClassVar[frozenset[str]] = frozenset(
        ("seed", "task", "batch_size", "prompt_length", "prompt_init", "init_text", "init_prompt", "init_labels",
         "init_population", "learning_rate", "schedule", "warmup_steps", "step_offset", "weight_decay",
         "optimizer_step_offset", "factor_long_prompts", "update_clipping", *ReparametrizationConfig.model_fields)
    )  # fmt: skip

    @field_validator("factor_long_prompts", "update_clipping")
    @classmethod
    def adafactor_uses_it(cls, value: Any, info: ValidationInfo) -> Any:
        changed = value != cls.model_fields[info.field_name or ""].default
        if changed and info.data.get("optimizer") != "adafactor":
            raise ValueError("applies to `optimizer: adafactor`; remove one of the two")
        return value

    @model_validator(mode="before")
    @classmethod
    def sweep_begins_with_first_values(cls, given: Any) -> Any:
        """Give the stage itself the first combination of its sweep."""
        sweep = given.get("sweep") if isinstance(given, dict) else None
        known = cls.per_prompt - {"task", "init_prompt"}
        for name, values in sweep.items() if isinstance(sweep, dict) else ():
            if name not in known:
                raise ValueError(f"`sweep.{name}`: prompts of one batch cannot differ in it; {nearest(name, known)}")
            if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
                raise ValueError(f"`sweep.{name}` must be a list of different values; change it")
            if name in given and name != "seed":
                raise ValueError(f"`{name}` is also in `sweep`; keep one of the two")
            given = {**given, name: values[0]}
        return given

    @model_validator(mode="after")
    def sweep_can_be_tried(self) -> PromptTuneConfig:
        if self.sweep and self.select != "best":
            raise ValueError("`sweep` needs validation scores; set `select: best`")
        if self.combination_count > MAX_TRIALS:
            raise ValueError(f"`sweep` has more than {MAX_TRIALS:,} combinations; shorten its lists")
        self.trials()
        return self

    def trials(self) -> dict[str, PromptTuneConfig]:
        """The settings of each prompt that trains, by name: those of the stage, or one for each combination of a sweep.

        Raises:
            ValueError: if a combination is not valid.
        """
        if not self.sweep:
            return {"": self}
        own = {name: getattr(self, name) for name in self.model_fields_set - set(SweepConfig.model_fields)}
        found = {}
        for values in self.combinations():
            name = combination_name(values)
            if name in found:
                raise ValueError(f"`sweep` has two combinations of the name {name}; shorten or change their texts")
            try:
                found[name] = type(self).model_validate({**own, **values})
            except ValidationError as error:
                raise ValueError(f"`sweep`, {name}: {message_of(error.errors(include_url=False)[0])}") from None
        return found

    def trained_together(self) -> list[TrainingConfig]:
        return list(self.trials().values())

    def share_of_steps(self) -> float:
        return self.prompt_steps(self.steps) / max(1, self.steps * self.combination_count)

    def schedule_depends_on_steps(self) -> bool:
        """A sweep's rungs depend on the number of steps, too."""
        return bool(self.sweep) or super().schedule_depends_on_steps()

    def trained_parameters(self, shape: T5Config) -> int | None:
        return sum(c.trained_numbers(c.prompt_length, shape.d_model) for c in self.trials().values())

    def published_parameters(self, shape: T5Config) -> int | None:
        return self.prompt_rows() * shape.d_model

    def prompt_rows(self) -> int:
        return max(c.prompt_length for c in self.trials().values())

    def computed_parameters(self, shape: T5Config) -> int:
        return self.computed_numbers(self.prompt_length, shape.d_model)

    def together_with(self, other: StageConfig) -> bool:
        shared = set(type(self).model_fields) - self.per_prompt
        return type(other) is type(self) and all(getattr(self, f) == getattr(other, f) for f in shared)


class PromptMixtureConfig(SoftPromptConfig):
    """Mixture of soft prompts (Qin and Eisner 2021); its logits are always fp32."""

    kind: ClassVar[str] = "prompt_mixture"
    summary: ClassVar[str] = "freeze a T5 and learn a task as several soft prompts with learned weights"
    outputs: ClassVar[tuple[str, ...]] = ("mixture",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "mixtures",
        "prompt mixtures: a prompt_mixture stage, or a directory",
    )

    components: int = setting(5, "number of prompts, each initialised with its own seed", unit="prompts", gt=1)
    weight_learning_rate: float = setting(
        0.01, "learning rate of the mixture weights' logits; they share the prompts' schedule", gt=0
    )

    def readings(self) -> int:
        return self.components


@defaults(batch_size=128)
class ModelTuneConfig(LogitsConfig, ExecutionConfig, WholeModelConfig, LearningConfig):
    """Model tuning, the paper's upper baseline: train every weight of the T5 on one or several tasks."""

    kind: ClassVar[str] = "model_tune"
    summary: ClassVar[str] = "fine-tune every weight of a T5 on one or several tasks"
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    scored_as: ClassVar[tuple[str, str] | None] = ("tuned_models", "fine-tuned T5s: a model_tune stage, or a directory")

    tasks: list[TaskConfig] = setting(
        ..., "tasks: names under the recipe's `tasks:`, or YAML files; several need a `task_prefix`", min_length=1
    )
    mixing: Literal["proportional", "equal"] = setting(
        "proportional", "several tasks: sample in proportion to their training rows (T5), or equally"
    )
    mixing_limit: int = setting(
        2**19, "proportional: cap on the training rows counted for one task (T5's K)", unit="rows", gt=0
    )

    @field_validator("tasks")
    @classmethod
    def each_task_once(cls, value: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names the task {twice[0]} twice; name each once")
        return value

    def made_for(self) -> list[TaskConfig]:
        return self.tasks

    def trained_parameters(self, shape: T5Config) -> int | None:
        return shape.parameters


@defaults(optimizer="adamw")
class PeftTuneConfig(LearningConfig, OneTaskConfig):
    """LoRA (Hu et al. 2021), (IA)³ (Liu et al. 2022), prefix tuning and P-tuning, by transformers and PEFT."""

    kind: ClassVar[str] = "peft_tune"
    engines: ClassVar[tuple[str, ...]] = ("one", "ddp")
    summary: ClassVar[str] = "freeze a T5 and learn a task by PEFT: LoRA, (IA)³, prefix tuning or P-tuning"
    outputs: ClassVar[tuple[str, ...]] = ("adapter",)
    scored_as: ClassVar[tuple[str, str] | None] = ("adapters", "PEFT adapters: a peft_tune stage, or a directory")
    freezes_model: ClassVar[bool] = True

    method: PeftMethod = setting(
        ..., "lora: low-rank updates; ia3: scales; prefix_tuning: keys, values; p_tuning: a network"
    )
    rank: int = setting(8, "lora: rank r of the update of a matrix", gt=0)
    alpha: float = setting(16.0, "lora: the update is scaled by alpha / rank", gt=0)
    target_modules: list[Projection] = setting(
        [], "lora, ia3: projections to adapt in every layer; none: q v for lora, k v wo for ia3"
    )
    virtual_tokens: int = setting(100, "prefix_tuning, p_tuning: length of the prefix or prompt", unit="tokens", gt=0)
    hidden_size: int = setting(
        0, "width of the reparametrization network; 0: d_model for p_tuning, none for prefix_tuning", ge=0
    )

    @field_validator("target_modules")
    @classmethod
    def modules_are_adapted(cls, value: list[str], info: ValidationInfo) -> list[str]:
        method = info.data.get("method")
        if value and method not in TARGETS:
            raise ValueError(f"applies to `method: {' or '.join(TARGETS)}`; remove one of the two")
        return list(dict.fromkeys(value or TARGETS.get(str(method), [])))


class PromptDesignConfig(InferenceConfig, OneTaskConfig):
    """Prompt design (Brown et al. 2020): a text prompt, zero- or few-shot, for a frozen T5."""

    kind: ClassVar[str] = "prompt_design"
    summary: ClassVar[str] = "choose a text prompt for a frozen T5, zero- or few-shot, without training"
    outputs: ClassVar[tuple[str, ...]] = ("text_prompt",)
    code_version: ClassVar[int] = 3
    scored_as: ClassVar[tuple[str, str] | None] = (
        "text_prompts",
        "text prompts: a prompt_design stage, or a directory",
    )

    templates: list[str] = setting(
        ["{input}"], "candidate wordings, each with {input}; the best on validation is published", min_length=1
    )
    shots: int = setting(
        0, "demonstrations (training rows) before each input, balanced over labels, drawn by `seed`", unit="rows", ge=0
    )
    demonstration: str = setting("{input} {target}", "format of a demonstration; {input} is the filled template")
    separator: str = setting(" ", "text after each demonstration")

    @field_validator("templates", "demonstration")
    @classmethod
    def input_is_named(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if text.count("{input}") != 1:
                raise ValueError(f"{text!r} must contain {{input}} exactly once")
        return value

    @field_validator("demonstration")
    @classmethod
    def target_is_named(cls, value: str) -> str:
        if value.count("{target}") != 1:
            raise ValueError(f"{value!r} must contain {{target}} exactly once")
        return value

    def selects_by(self) -> dict[str, list[str]]:
        return {self.task.name: sorted(self.task.metrics)} if len(self.templates) > 1 else {}
