"""Settings of evaluate: the artifacts to score, the baselines beside them, and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, create_model, field_validator, model_validator

from t5_pipeline.config.stage import InferenceConfig, Package, ScoringConfig, SplitRead, StageConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Input, setting, validate
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig, check_metric_names, metric_packages


class EvaluateConfig(ScoringConfig, InferenceConfig, StageConfig):
    """Scores on held-out rows. `for_methods` adds an input for each method."""

    kind: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "score prompts, the methods they are compared with, and baselines on held-out rows"
    outputs: ClassVar[tuple[str, ...]] = ("scores",)
    code_version: ClassVar[int] = 6

    model: Annotated[str | None, Input("model")] = setting(
        None, "the frozen T5, if it is not where the prompts expect it; must be the same model"
    )
    split: str = setting("test", "split of the task to score on")
    also_on: list[TaskConfig] = setting(
        [], "domain shift: other tasks with the same labels, on which everything is scored too"
    )
    limit: int = setting(0, "rows to score, spread evenly over the split; 0: all", unit="rows", ge=0)
    metrics: dict[str, list[str]] = setting(
        {}, "metrics by task (flags: TASK=A,B); none: those of the recipe's tasks, or of the prompts"
    )
    max_output_length: int = setting(
        0,
        "maximum length of decoded free text; 0: max_target_length (labels: the longest + 1)",
        unit="tokens",
        ge=0,
    )
    beams: int = setting(1, "free text: number of beams; 1: greedy decoding", unit="beams", gt=0)
    length_penalty: float = setting(
        1.0, "beam search: divide log p by the number of tokens to this power", only="beams", ge=-20, le=20
    )
    baselines: bool = setting(True, "also score the majority class and the frozen T5 without a prompt")
    ensembles: bool = setting(True, "also score the majority vote of prompts that differ only in their seed")
    latency_tasks: list[Annotated[int, Field(gt=0, le=10_000)]] = setting(
        [], "time a request for one of N tasks on one T5, for each of these N; none: off", unit="tasks"
    )
    neighbors: int = setting(5, "nearest vocabulary pieces to record per prompt row (0: off)", unit="pieces", ge=0)

    @classmethod
    def for_methods(cls, methods: Iterable[type[StageConfig]]) -> type[EvaluateConfig]:
        """The settings with one input for each method, in their order.

        Args:
            methods: stages whose artifacts can be scored (`scored_as`).
        """
        inputs: dict[str, Any] = {}
        for method in methods:
            if method.scored_as is not None:
                name, description = method.scored_as
                artifact = Input(method.outputs[0], many=True)
                inputs[name] = (Annotated[str | None, artifact], setting(None, description))
        # As a second base, so that the inputs come before the other settings.
        fields = create_model("ScoredInputs", __base__=StageConfig, **inputs)
        made = create_model(cls.__name__, __base__=(cls, fields), __doc__=cls.__doc__, __module__=__name__)
        return cast(type[EvaluateConfig], made)

    @field_validator("metrics", mode="before")
    @classmethod
    def by_task(cls, value: Any) -> Any:
        """Split the flags `sst2=accuracy,f1 rte=accuracy`."""
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
                "there is nothing to score; give one of "
                + ", ".join(f"`{name}`" for name in self.inputs() if name != "model")
            )
        return self

    def scored_inputs(self) -> dict[str, str]:
        """The inputs to score that are given: field name → kind of artifact."""
        return {n: kind for n, kind in self.inputs().items() if n != "model" and getattr(self, n) is not None}

    def scored(self, task: TaskConfig, where: str = "") -> TaskConfig:
        """A task with the metrics to compute.

        Args:
            where: place of the metrics, for errors; default: where these settings were written.

        Raises:
            InputError: if the task lacks what a metric needs.
        """
        asked = {**task.model_dump(), "metrics": self.metrics.get(task.name, task.metrics)}
        made = validate(TaskConfig, asked, lambda loc: where or self.where("metrics", task.name))
        return task.model_copy(update={"metrics": made.metrics})

    def packages(self) -> list[Package]:
        asked = metric_packages(name for names in self.metrics.values() for name in names)
        adapters = [Package("peft", "peft", "adapters")] if "adapter" in self.scored_inputs().values() else []
        return [*(Package(name, "metrics", "metrics") for name in asked), *adapters]

    def extra_data(self, solved: Sequence[TaskConfig]) -> dict[str, TaskConfig]:
        return {f"task {task.name}": task for task in solved}

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        tasks = [*solved, *self.also_on]
        majority = [task for task in tasks if self.baselines and task.labels and "train" in task.splits]
        return [SplitRead(task, self.split) for task in tasks] + [SplitRead(task, "train") for task in majority]

    def check_solved(self, solved: Sequence[TaskConfig]) -> None:
        self._check_metrics([*solved, *self.also_on], lambda name: self.where("metrics", name))

    def resolved(
        self, makers: Sequence[StageConfig], others: bool, where: Callable[[tuple[str | int, ...]], str]
    ) -> EvaluateConfig:
        """With the metrics that the recipe's tasks have now, whatever they were at training time."""
        tasks = [*(task for maker in makers for task in maker.made_for()), *self.also_on]
        if not others:
            self._check_metrics(tasks, lambda name: where(("metrics", name)))
        metrics = {task.name: self.scored(task, where(("metrics", task.name))).metrics for task in tasks}
        return self.model_copy(update={"metrics": {**self.metrics, **metrics}})

    def _check_metrics(self, tasks: Sequence[TaskConfig], where: Callable[[str], str]) -> None:
        names = [task.name for task in tasks]
        for name in self.metrics:
            if name not in names:
                raise InputError(f"{where(name)}: the task `{name}` is not evaluated here; {nearest(name, names)}")
