"""Settings of evaluate, which scores what the stages of a task made."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import field_validator, model_validator

from t5_pipeline.config.stage import InferenceConfig, StageConfig
from t5_pipeline.core.schema import Input, setting, validate
from t5_pipeline.data_prep.tasks.config import TaskConfig, check_metric_names


class EvaluateConfig(InferenceConfig, StageConfig):
    """Scores on held-out rows, beside what they must beat."""

    kind: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "score prompts and what they are compared with on held-out rows"
    outputs: ClassVar[tuple[str, ...]] = ("scores",)

    prompts: Annotated[str | None, Input("prompt", many=True)] = setting(
        None, "prompts to score: a prompt_tune stage, or a directory"
    )
    tuned_models: Annotated[str | None, Input("model", many=True)] = setting(
        None, "models to score on the tasks that they were tuned on: a model_tune stage, or a directory"
    )
    mixtures: Annotated[str | None, Input("mixture", many=True)] = setting(
        None, "prompt mixtures to score: a prompt_mixture stage, or a directory"
    )
    text_prompts: Annotated[str | None, Input("text_prompt", many=True)] = setting(
        None, "worded prompts to score: a prompt_design stage, or a directory"
    )
    adapters: Annotated[str | None, Input("adapter", many=True)] = setting(
        None, "prefixes and P-tuned prompts to score: a peft_tune stage, or a directory"
    )
    model: Annotated[str | None, Input("model")] = setting(
        None, "the frozen T5, where it does not lie where the prompts say; it must be the very same"
    )
    split: str = setting("test", "split of the task to score on")
    also_on: list[TaskConfig] = setting(
        [], "domain shift: score everything on these tasks too, if their labels are those of the task it was made for"
    )
    limit: int = setting(0, "score the first N rows only; 0 takes all", unit="rows", ge=0)
    metrics: dict[str, list[str]] = setting(
        {}, "metrics by task, as TASK=A,B; for other tasks those of the recipe, else of the prompts"
    )
    max_output_length: int = setting(64, "longest greedy output", unit="tokens", gt=0)
    baselines: bool = setting(True, "also score the majority class and the frozen T5 with no prompt")
    ensembles: bool = setting(True, "also score the majority vote of prompts that differ in nothing but their seed")
    neighbours: int = setting(
        5, "vocabulary pieces nearest to each row of a prompt that are written down", unit="pieces", ge=0
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def by_task(cls, value: Any) -> Any:
        """A command line gives `sst2=accuracy,f1 rte=accuracy`."""
        if isinstance(value, list) and all(isinstance(item, str) and "=" in item for item in value):
            return {task: names.split(",") for task, _, names in (item.partition("=") for item in value)}
        return value

    @field_validator("metrics")
    @classmethod
    def metrics_are_known(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for names in value.values():
            check_metric_names(names)
        return value

    @model_validator(mode="after")
    def something_to_score(self) -> EvaluateConfig:
        if not self.scored_inputs():
            raise ValueError(
                "there is nothing to score; give one of " + ", ".join(name for name in self.inputs() if name != "model")
            )
        return self

    def scored_inputs(self) -> list[str]:
        """The inputs that are given and hold something to score."""
        return [name for name in self.inputs() if name != "model" and getattr(self, name) is not None]

    def scored(self, task: TaskConfig) -> TaskConfig:
        """A task with the metrics that are asked for.

        Raises:
            InputError: the task has not what one of them needs.
        """
        asked = {**task.model_dump(), "metrics": self.metrics.get(task.name, task.metrics)}
        return validate(TaskConfig, asked, lambda loc: f"metrics.{task.name}")
