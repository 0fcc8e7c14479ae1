"""Settings of the stages that learn or word a task: prompt tuning and the methods that it is compared with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from t5_pipeline.config.stage import StageConfig, TrainingConfig
from t5_pipeline.core.schema import Input, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config

_MODEL = "the T5 to freeze: hub name, directory or stage"
_TASK = "the task: its name under the recipe's `tasks:`, or a YAML file with its settings"
_INPUT_LENGTH = "input tokens beside the prompt; longer inputs are cut"
_TARGET_LENGTH = "target tokens; longer targets are cut"
_DROPOUT = "dropout rate, shared along the sequence as in the official code"


class LearningConfig(TrainingConfig):
    """What every stage that learns a task from its training rows has."""

    model: Annotated[str, Input("model")] = setting(..., _MODEL)
    max_input_length: int = setting(512, _INPUT_LENGTH, unit="tokens", gt=0)
    max_target_length: int = setting(128, _TARGET_LENGTH, unit="tokens", gt=0)
    dropout: float = setting(0.1, _DROPOUT, ge=0, lt=1)
    select: Literal["best", "last"] = setting(
        "best",
        "what is published: best, what scored highest on the validation split by the task's first metric (the paper);"
        " last, what the last step left",
    )
    validate_every: int = setting(
        1000, "steps between scores on the validation split (select: best)", unit="steps", gt=0
    )
    validation_limit: int = setting(
        0, "validation rows that are scored, spread evenly over the split; 0 takes all", unit="rows", ge=0
    )
    patience: int = setting(
        0, "early stopping: validations in a row without a better score after which training ends; 0 never does", ge=0
    )

    @model_validator(mode="after")
    def patience_has_scores(self) -> LearningConfig:
        if self.patience and self.select == "last":
            raise ValueError("`patience` needs validation scores: `select: best`")
        return self

    def selects_by(self) -> dict[str, str]:
        return {task.name: task.metrics[0] for task in self.made_for()} if self.select == "best" else {}

    def example_lengths(self) -> list[tuple[int, int]]:
        return [(self.max_input_length, self.longest_target())]

    def longest_target(self) -> int:
        """Upper bound on target tokens: with labels, the characters of the longest, the space before it and EOS."""
        tasks = self.made_for()
        if not all(task.labels for task in tasks):
            return self.max_target_length
        return min(self.max_target_length, max(len(label) for task in tasks for label in task.labels or []) + 2)


class PromptTuneConfig(LearningConfig):
    """Prompt tuning (Lester et al. 2021, §2)."""

    kind: ClassVar[str] = "prompt_tune"
    summary: ClassVar[str] = "freeze a T5 and learn a task as a soft prompt"
    outputs: ClassVar[tuple[str, ...]] = ("prompt",)
    scored_as: ClassVar[tuple[str, str] | None] = ("prompts", "prompts to score: a prompt_tune stage, or a directory")
    freezes_model: ClassVar[bool] = True

    task: TaskConfig = setting(..., _TASK)
    prompt_length: int = setting(100, "rows of the prompt", unit="tokens", gt=0)
    prompt_init: Literal["uniform", "uniform_code", "vocabulary", "class_labels", "text", "prompt"] = setting(
        "class_labels",
        "uniform: U[−0.5, 0.5]; uniform_code: U[0, 0.5), as the official code does; vocabulary: rows of the likeliest"
        " pieces; class_labels: the labels' mean rows, the rest from vocabulary; text: the rows of init_text;"
        " prompt: the rows of init_prompt",
    )
    init_text: str | None = setting(None, "text whose embedded pieces start the prompt (prompt_init: text)")
    init_prompt: Annotated[str | None, Input("prompt")] = setting(
        None, "trained prompt to start from (prompt_init: prompt)"
    )
    init_labels: list[str] = setting(
        [], "class_labels: words to start from instead of the task's labels (ReCoRD: commonsense, reasoning, …)"
    )
    init_population: int = setting(
        5000, "how many of the likeliest pieces vocabulary rows are drawn from", unit="pieces", gt=0
    )
    steps: int = setting(30_000, "optimizer steps in all", unit="steps", role="extent", ge=0)
    learning_rate: float = setting(0.3, "learning rate", gt=0)
    weight_decay: float = setting(1e-5, "share of each weight that a step takes away, not multiplied by the rate", ge=0)
    loss: Literal["mean", "sum"] = setting("mean", "mean or sum over the target tokens of a prompt's batch")

    # What may differ between prompts that train in one batch on one frozen T5.
    per_prompt: ClassVar[frozenset[str]] = frozenset(
        ("seed", "task", "prompt_length", "prompt_init", "init_text", "init_prompt", "init_labels", "init_population")
    ) | {"batch_size"}

    def made_for(self) -> list[TaskConfig]:
        return [self.task]

    def trained_parameters(self, shape: T5Config) -> int | None:
        return self.readings() * self.prompt_length * shape.d_model

    def prompt_rows(self) -> int:
        return self.prompt_length

    def together_with(self, other: StageConfig) -> bool:
        shared = set(type(self).model_fields) - self.per_prompt
        return type(other) is type(self) and all(getattr(self, f) == getattr(other, f) for f in shared)

    @model_validator(mode="after")
    def init_is_complete(self) -> PromptTuneConfig:
        for init, field in (("text", "init_text"), ("prompt", "init_prompt")):
            if (self.prompt_init == init) != (getattr(self, field) is not None):
                raise ValueError(f"`prompt_init: {init}` and `{field}` go together: give both or neither")
        if self.init_labels and self.prompt_init != "class_labels":
            raise ValueError("`init_labels` goes with `prompt_init: class_labels`")
        if self.prompt_init == "class_labels" and not (self.task.labels or self.init_labels):
            raise ValueError(
                f"`prompt_init: class_labels` needs the task's labels; {self.task.name} has none: give init_labels,"
                " or use vocabulary"
            )
        return self


class PromptMixtureConfig(PromptTuneConfig):
    """A mixture of soft prompts (Qin and Eisner 2021)."""

    kind: ClassVar[str] = "prompt_mixture"
    summary: ClassVar[str] = "freeze a T5 and learn a task as several soft prompts with learnt weights"
    outputs: ClassVar[tuple[str, ...]] = ("mixture",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "mixtures",
        "prompt mixtures to score: a prompt_mixture stage, or a directory",
    )

    components: int = setting(5, "prompts of the mixture, each started with a seed of its own", unit="prompts", gt=1)
    weight_learning_rate: float = setting(
        0.01, "learning rate of the logits of the mixture's weights; the schedule is the prompts'", gt=0
    )

    @field_validator("logits_precision")
    @classmethod
    def whole_logits(cls, value: str) -> str:
        if value != "bf16":
            raise ValueError("has no effect here: a mixture's logits are always fp32; leave it out")
        return value

    def together_with(self, other: StageConfig) -> bool:
        return False

    def readings(self) -> int:
        return self.components

    def kept_logits(self) -> Literal["fp32", "bf16", "whole"]:
        return "whole"


class ModelTuneConfig(LearningConfig):
    """Model tuning, the paper's upper baseline: every weight of the T5, on one task or on several at once."""

    kind: ClassVar[str] = "model_tune"
    summary: ClassVar[str] = "tune every weight of a T5 on a task, or on several at once"
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "tuned_models",
        "fine-tuned models to score on their own tasks: a model_tune stage, or a directory",
    )

    model: Annotated[str, Input("model")] = setting(..., "the T5 to tune: hub name, directory or stage")
    tasks: list[TaskConfig] = setting(
        ...,
        "one task or several, as names under the recipe's `tasks:` or YAML files; several need inputs that tell them"
        " apart (task_prefix)",
        min_length=1,
    )
    mixing: Literal["proportional", "equal"] = setting(
        "proportional", "several tasks: examples in proportion to their training rows (T5), or as many of each"
    )
    mixing_limit: int = setting(
        2**19, "proportional: training rows that a task counts for at most (T5's K)", unit="rows", gt=0
    )
    steps: int = setting(30_000, "optimizer steps in all", unit="steps", role="extent", ge=0)
    batch_size: int = setting(128, "examples of one optimizer step, over all processes", unit="examples", gt=0)
    learning_rate: float = setting(1e-3, "learning rate", gt=0)
    max_input_length: int = setting(512, "input tokens; longer inputs are cut", unit="tokens", gt=0)

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


class PeftTuneConfig(LearningConfig):
    """Prefix tuning (Li and Liang 2021) and P-tuning (Liu et al. 2021), by the PEFT library."""

    kind: ClassVar[str] = "peft_tune"
    engines: ClassVar[tuple[str, ...]] = ("one", "ddp")
    summary: ClassVar[str] = "freeze a T5 and learn a task by PEFT's prefix tuning or P-tuning"
    outputs: ClassVar[tuple[str, ...]] = ("adapter",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "adapters",
        "PEFT adapters (prefixes, P-tuned prompts) to score: a peft_tune stage, or a directory",
    )
    freezes_model: ClassVar[bool] = True

    task: TaskConfig = setting(..., _TASK)
    method: Literal["prefix_tuning", "p_tuning"] = setting(
        ...,
        "prefix_tuning: keys and values before those of each decoder layer; p_tuning: a soft prompt that a small"
        " network writes",
    )
    virtual_tokens: int = setting(100, "length of the prefix or prompt", unit="tokens", gt=0)
    hidden_size: int = setting(
        0,
        "inner width of the network that writes them; 0: the T5's own for p_tuning, no network for prefix_tuning",
        ge=0,
    )
    steps: int = setting(30_000, "optimizer steps in all", unit="steps", role="extent", ge=0)
    optimizer: Literal["adafactor", "adamw"] = setting("adamw", "adafactor as in T5X, or AdamW")

    @field_validator("reference_ops", "recompute", "logits_precision")
    @classmethod
    def by_transformers(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[info.field_name or ""].get_default(call_default_factory=True):
            raise ValueError("has no effect here, where transformers and PEFT compute; leave it out")
        return value

    def made_for(self) -> list[TaskConfig]:
        return [self.task]


class PromptDesignConfig(StageConfig):
    """Prompt design (Brown et al. 2020): the task in words, with examples of it or without, for a frozen T5."""

    kind: ClassVar[str] = "prompt_design"
    summary: ClassVar[str] = "word a task for a frozen T5, zero- or few-shot; nothing is trained"
    outputs: ClassVar[tuple[str, ...]] = ("text_prompt",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "text_prompts",
        "text prompts to score: a prompt_design stage, or a directory",
    )

    model: Annotated[str, Input("model")] = setting(..., "the frozen T5: hub name, directory or stage")
    task: TaskConfig = setting(..., _TASK)
    templates: list[str] = setting(
        ["{input}"],
        "wordings, each with {input} for the task's own input; of several the best on the validation split is taken",
        min_length=1,
    )
    shots: int = setting(
        0, "training rows shown before each input, drawn by the seed, labels in turn", unit="rows", ge=0
    )
    demonstration: str = setting("{input} {target}", "how a row that is shown reads; {input} is worded by the template")
    separator: str = setting(" ", "text between rows that are shown, and before the input")
    max_input_length: int = setting(
        512, "input tokens; rows that are shown give way, first ones first, before an input is cut", unit="tokens", gt=0
    )
    max_target_length: int = setting(128, _TARGET_LENGTH, unit="tokens", gt=0)
    validation_limit: int = setting(
        0, "validation rows that templates are compared on, spread evenly; 0 takes all", unit="rows", ge=0
    )
    batch_size: int = setting(64, "examples at a time", unit="examples", role="runtime", gt=0)
    precision: Literal["fp32", "bf16"] = setting("bf16", "precision of matrix products")

    @field_validator("templates", "demonstration")
    @classmethod
    def input_is_named(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if text.count("{input}") != 1:
                raise ValueError(f"{text!r} must hold {{input}} once")
        return value

    @field_validator("demonstration")
    @classmethod
    def target_is_named(cls, value: str) -> str:
        if value.count("{target}") != 1:
            raise ValueError(f"{value!r} must hold {{target}} once")
        return value

    def made_for(self) -> list[TaskConfig]:
        return [self.task]

    def selects_by(self) -> dict[str, str]:
        return {self.task.name: self.task.metrics[0]} if len(self.templates) > 1 else {}
