"""Settings of the stages that solve a task, and of the methods that soft prompts are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from t5_pipeline.config.launch import REPLICATED
from t5_pipeline.config.stage import InferenceConfig, Package, ScoringConfig, SplitRead, StageConfig
from t5_pipeline.config.training import ExecutionConfig, LogitsConfig, TrainingConfig, WholeModelConfig
from t5_pipeline.core.schema import Input, defaults, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig, metric_packages
from t5_pipeline.modeling.config import T5Config

FOR_SELECTION = "needed for `select: best`; or set `select: last`"
"""Why a stage that learns a task reads validation rows."""
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


class SeveralTasksConfig(TaskStageConfig):
    """Settings of a stage that solves one or several tasks."""

    tasks: list[TaskConfig] = setting(..., "tasks: names under the recipe's `tasks:`, or YAML files", min_length=1)

    @field_validator("tasks")
    @classmethod
    def each_task_once(cls, value: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names the task {twice[0]} twice; name each once")
        return value

    def made_for(self) -> list[TaskConfig]:
        return self.tasks


@defaults(steps=30_000, dropout=0.1)
class LearningConfig(TrainingConfig, TaskStageConfig):
    """Settings of every stage that learns a task from its training rows."""

    code_version: ClassVar[int] = 3

    select: Literal["best", "last"] = setting(
        "best", "checkpoint to publish: best average of the task's metrics on validation, or last"
    )
    validate_every: int = setting(1000, "steps between validations (select: best)", unit="steps", gt=0)
    patience: int = setting(
        0,
        "early stopping after this many validations without improvement; 0: off",
        unit="validations",
        only="select: best",
        ge=0,
    )

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        found = [SplitRead(task, "train") for task in self.made_for()]
        if self.select == "best":
            found += [SplitRead(task, "validation", reason=FOR_SELECTION) for task in self.made_for()]
        return found

    def selects_by(self) -> dict[str, list[str]]:
        return {task.name: sorted(task.metrics) for task in self.made_for()} if self.select == "best" else {}

    def packages(self) -> list[Package]:
        metrics = [name for names in self.selects_by().values() for name in names]
        setting = "task" if isinstance(self, OneTaskConfig) else "tasks"
        return [*super().packages(), *(Package(name, "metrics", setting) for name in metric_packages(metrics))]

    def may_stop_early(self) -> bool:
        return self.patience > 0 and self.select == "best"

    def example_lengths(self) -> list[tuple[int, int]]:
        return [(self.max_input_length, self.longest_target())]

    def longest_target(self) -> int:
        """Upper bound on target tokens: with labels, the characters of the longest, the space before it and EOS."""
        tasks = self.made_for()
        if not all(task.labels for task in tasks):
            return self.max_target_length
        return min(self.max_target_length, max(len(label) for task in tasks for label in task.labels or []) + 2)


@defaults(batch_size=128)
class ModelTuneConfig(LogitsConfig, ExecutionConfig, WholeModelConfig, LearningConfig, SeveralTasksConfig):
    """Model tuning, the paper's upper baseline: train every weight of the T5 on one or several tasks."""

    kind: ClassVar[str] = "model_tune"
    summary: ClassVar[str] = "fine-tune every weight of a T5 on one or several tasks"
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    scored_as: ClassVar[tuple[str, str] | None] = ("tuned_models", "fine-tuned T5s: a model_tune stage, or a directory")

    mixing: Literal["proportional", "equal"] = setting(
        "proportional", "several tasks: sample in proportion to their training rows (T5), or equally"
    )
    mixing_limit: int = setting(
        2**19, "cap on the training rows counted for one task (T5's K)", unit="rows", only="mixing: proportional", gt=0
    )

    def trained_parameters(self, shape: T5Config) -> int | None:
        return shape.parameters


@defaults(optimizer="adamw")
class PeftTuneConfig(LearningConfig, OneTaskConfig):
    """LoRA (Hu et al. 2021), (IA)³ (Liu et al. 2022), prefix tuning and P-tuning, by transformers and PEFT."""

    kind: ClassVar[str] = "peft_tune"
    engines: ClassVar[tuple[str, ...]] = REPLICATED
    summary: ClassVar[str] = "freeze a T5 and learn a task by PEFT: LoRA, (IA)³, prefix tuning or P-tuning"
    outputs: ClassVar[tuple[str, ...]] = ("adapter",)
    scored_as: ClassVar[tuple[str, str] | None] = ("adapters", "PEFT adapters: a peft_tune stage, or a directory")
    freezes_model: ClassVar[bool] = True

    method: PeftMethod = setting(
        ..., "lora: low-rank updates; ia3: scales; prefix_tuning: keys, values; p_tuning: a network"
    )
    rank: int = setting(8, "rank r of the update of a matrix", only="method: lora", gt=0)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", only="method: lora", gt=0)
    target_modules: list[Projection] = setting(
        [],
        "projections to adapt in every layer; none: q v for lora, k v wo for ia3",
        only="method: lora or ia3",
    )
    virtual_tokens: int = setting(
        100, "length of the prefix or prompt", unit="tokens", only="method: prefix_tuning or p_tuning", gt=0
    )
    hidden_size: int = setting(
        0,
        "width of the reparametrization network; 0: d_model for p_tuning, none for prefix_tuning",
        only="method: prefix_tuning or p_tuning",
        ge=0,
    )

    def packages(self) -> list[Package]:
        return [*super().packages(), Package("peft", "peft", "method")]

    @field_validator("target_modules")
    @classmethod
    def modules_are_adapted(cls, value: list[str], info: ValidationInfo) -> list[str]:
        return list(dict.fromkeys(value or TARGETS.get(str(info.data.get("method")), [])))


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
    demonstration: str = setting(
        "{input} {target}", "format of a demonstration; {input} is the filled template", only="shots"
    )
    separator: str = setting(" ", "text after each demonstration", only="shots")

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

    def runs_model(self) -> bool:
        """A single template is published without being scored."""
        return len(self.templates) > 1

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        needed = {"train": self.shots > 0, "validation": self.runs_model()}
        return [SplitRead(self.task, split) for split, is_needed in needed.items() if is_needed]

    def selects_by(self) -> dict[str, list[str]]:
        return {self.task.name: sorted(self.task.metrics)} if self.runs_model() else {}
