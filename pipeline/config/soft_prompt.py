"""Settings of soft prompts: prompt tuning with reparametrizations and sweeps, mixtures, multitask prompt tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ValidationError, model_validator

from t5_pipeline.config.reparametrization import RankOneConfig, ReparametrizationConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.sweep import MAX_TRIALS, SweepConfig, combination_name
from t5_pipeline.config.training import ExecutionConfig, LogitsConfig, TrainingConfig
from t5_pipeline.config.tuning import LearningConfig, OneTaskConfig, SeveralTasksConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Input, defaults, message_of, setting
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.modeling.config import T5Config


@defaults(learning_rate=0.3, weight_decay=1e-5)
class SoftPromptConfig(ExecutionConfig, LearningConfig):
    """Settings of every stage that trains soft prompts on a frozen T5."""

    freezes_model: ClassVar[bool] = True

    prompt_length: int = setting(100, "length of the prompt", unit="tokens", gt=0)
    # uniform: U[−0.5, 0.5]; uniform_code: U[0, 0.5), as in the official code; vocabulary: embeddings of frequent
    # tokens; class_labels: mean embedding of each label, the remaining rows as with vocabulary.
    prompt_init: Literal["uniform", "uniform_code", "vocabulary", "class_labels", "text", "prompt", "shared"] = setting(
        "class_labels", "start: random (uniform*), words (vocabulary, class_labels, text), trained (prompt, shared)"
    )
    init_text: str | None = setting(None, "text whose token embeddings start the prompt (prompt_init: text)")
    init_prompt: Annotated[str | None, Input("prompt")] = setting(
        None, "trained prompt to start from (prompt_init: prompt): directory or stage"
    )
    init_shared: Annotated[str | None, Input("task_prompts")] = setting(
        None, "shared prompt of other tasks to start from (prompt_init: shared): directory or stage"
    )
    init_labels: list[str] = setting(
        [], "words to start from instead of the task's labels", only="prompt_init: class_labels"
    )
    init_population: int = setting(
        5000, "number of most frequent tokens to sample from (prompt_init: vocabulary)", unit="tokens", gt=0
    )
    _TRAINED: ClassVar[dict[str, str]] = {"prompt": "init_prompt", "shared": "init_shared"}

    loss: Literal["mean", "sum"] = setting("mean", "mean or sum of the loss over the target tokens of a prompt's batch")

    @model_validator(mode="after")
    def init_is_complete(self) -> SoftPromptConfig:
        for init, field in (("text", "init_text"), *self._TRAINED.items()):
            if (self.prompt_init == init) != (getattr(self, field) is not None):
                raise ValueError(f"`prompt_init: {init}` and `{field}` go together; give both or neither")
        if self.prompt_init == "class_labels" and not self.first_words():
            names = ", ".join(task.name for task in self.made_for())
            raise ValueError(
                f"`prompt_init: class_labels` needs labels, and {names} has none; give `init_labels`, or use vocabulary"
            )
        return self

    @property
    def init_input(self) -> str | None:
        """The input that the prompt starts from; None if it is not a trained one."""
        return self._TRAINED.get(self.prompt_init)

    def resolved(
        self, makers: Sequence[StageConfig], others: bool, where: Callable[[tuple[str | int, ...]], str]
    ) -> Self:
        """Also check the length of the prompt that it starts from, unless a sweep of the recipe chooses that."""
        own = {c.prompt_length for c in self.trained_together() if isinstance(c, SoftPromptConfig)}
        for maker in makers:
            learned = maker.trained_together() if isinstance(maker, SoftPromptConfig) else []
            lengths = {c.prompt_length for c in learned if isinstance(c, SoftPromptConfig)}
            if len(lengths) == 1 and own != lengths:
                raise InputError(
                    f"{where(('prompt_length',))}: must be {lengths.pop()}, the length of the prompt that"
                    f" `{self.init_input}` names; change one of the two"
                )
        return self

    def first_words(self) -> list[str]:
        """The words of `prompt_init: class_labels`."""
        return self.init_labels or list(dict.fromkeys(label for t in self.made_for() for label in t.labels or ()))

    def trained_parameters(self, shape: T5Config) -> int | None:
        return self.readings() * self.prompt_length * shape.d_model

    def prompt_rows(self) -> int:
        return self.prompt_length


class PromptTuneConfig(SweepConfig, ReparametrizationConfig, LogitsConfig, SoftPromptConfig, OneTaskConfig):
    """Prompt tuning (Lester et al. 2021, §2)."""

    kind: ClassVar[str] = "prompt_tune"
    summary: ClassVar[str] = "freeze a T5 and learn a task as a soft prompt"
    outputs: ClassVar[tuple[str, ...]] = ("prompt",)
    code_version: ClassVar[int] = 4
    scored_as: ClassVar[tuple[str, str] | None] = ("prompts", "soft prompts: a prompt_tune stage, or a directory")

    factor_long_prompts: bool = setting(
        False,
        "factor Adafactor's second moments of prompts of 128 or more rows (the official code)",
        only="optimizer: adafactor",
    )
    update_clipping: float = setting(
        1.0,
        "maximum RMS of an update, before the learning rate is applied",
        neutral=True,
        only="optimizer: adafactor",
        gt=0,
    )

    # Settings that may differ between prompts trained in one batch on one frozen T5.
    per_prompt: ClassVar[frozenset[str]] = frozenset(
        ("seed", "task", "batch_size", "prompt_length", "prompt_init", "init_text", "init_prompt", "init_shared",
         "init_labels", "init_population", "learning_rate", "schedule", "warmup_steps", "step_offset", "weight_decay",
         "optimizer_step_offset", "factor_long_prompts", "update_clipping", *ReparametrizationConfig.model_fields)
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def sweep_begins_with_first_values(cls, given: Any) -> Any:
        """Give the stage itself the first combination of its sweep."""
        sweep = given.get("sweep") if isinstance(given, dict) else None
        known = cls.per_prompt - {"task", *cls._TRAINED.values()}
        for name, values in sweep.items() if isinstance(sweep, dict) else ():
            if name not in known:
                raise ValueError(f"`sweep.{name}`: prompts of one batch cannot differ in it; {nearest(name, known)}")
            if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
                raise ValueError(f"`sweep.{name}` must be a list of different values; change it")
            if name in given:
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

    def at_once(self) -> list[TrainingConfig]:
        trials = self.trained_together()
        return sorted(trials, key=lambda c: -c.batch_size)[: self.sweep_slots or len(trials)]

    def share_of_steps(self) -> float:
        return self.prompt_steps(self.steps) / max(1, self.run_steps(self.steps) * self.combination_count)

    def check_engine(self, engine: str) -> None:
        """Also reject prompts that wait if the engine steps all parameters as one."""
        super().check_engine(engine)
        if self.sweep_slots and engine.startswith("zero"):
            raise InputError(
                f"{self.where('sweep_slots')}: needs an optimizer that skips waiting prompts, which {engine} does not;"
                " remove it, or launch with DDP (accelerate_configs/ddp.yaml)"
            )

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


class PromptMixtureConfig(SoftPromptConfig, OneTaskConfig):
    """Mixture of soft prompts (Qin and Eisner 2021); its logits are always fp32."""

    kind: ClassVar[str] = "prompt_mixture"
    summary: ClassVar[str] = "freeze a T5 and learn a task as several soft prompts with learned weights"
    outputs: ClassVar[tuple[str, ...]] = ("mixture",)
    code_version: ClassVar[int] = 5
    scored_as: ClassVar[tuple[str, str] | None] = (
        "mixtures",
        "prompt mixtures: a prompt_mixture stage, or a directory",
    )

    components: int = setting(5, "number of prompts, each initialized with its own seed", unit="prompts", gt=1)
    weight_learning_rate: float = setting(
        0.01, "learning rate of the mixture weights' logits; they share the prompts' schedule", gt=0
    )

    def component_seeds(self) -> list[int]:
        """The seed that each prompt starts from; mixtures of other seeds share none of them."""
        return [(self.seed * self.components + k) % 2**63 for k in range(self.components)]

    def readings(self) -> int:
        return self.components


@defaults(factor_learning_rate=0.3)
class PromptMultitaskConfig(RankOneConfig, LogitsConfig, SoftPromptConfig, SeveralTasksConfig):
    """Multitask prompt tuning (Wang et al. 2023): the source tasks."""

    kind: ClassVar[str] = "prompt_multitask"
    summary: ClassVar[str] = "freeze a T5 and learn several tasks as one shared prompt and a rank-one matrix for each"
    outputs: ClassVar[tuple[str, ...]] = ("task_prompts",)
    scored_as: ClassVar[tuple[str, str] | None] = (
        "task_prompts",
        "prompts that share one: a prompt_multitask stage, or a directory",
    )

    def trained_together(self) -> list[TrainingConfig]:
        """One for each task: a step has a batch of every task."""
        return [self.model_copy(update={"tasks": [task]}) for task in self.tasks]

    def trained_parameters(self, shape: T5Config) -> int | None:
        return self.prompt_length * shape.d_model + len(self.tasks) * (self.prompt_length + shape.d_model)

    def published_parameters(self, shape: T5Config) -> int | None:
        """The prompt of each task, and the shared one with its factors."""
        rows = (len(self.tasks) + 1) * self.prompt_length * shape.d_model
        return rows + self.prompt_length + shape.d_model

    def computed_parameters(self, shape: T5Config) -> int:
        return len(self.tasks) * 4 * self.prompt_length * shape.d_model
