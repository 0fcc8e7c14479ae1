"""Settings that stages share, as groups of flat keys; each setting is declared once, stages override defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, Input, Role, data_fields, properties, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config

Precision = Literal["fp32", "bf16"]
# YAML reads true and false as booleans.
Switch = Annotated[
    Literal["auto", "true", "false"], BeforeValidator(lambda x: str(x).lower() if isinstance(x, bool) else x)
]
Scoring = Literal["decode", "likelihood"]
"""Answer to a task with labels: the decoded text (T5, the paper), or the label with the highest likelihood."""


class SplitRead(NamedTuple):
    """A split of a task that a stage reads.

    Attributes:
        inputs_only: only fields of the input are needed.
        reason: why it is needed and how to do without, for errors; empty if it goes without saying.
    """

    task: TaskConfig
    split: str
    inputs_only: bool = False
    reason: str = ""


class Package(NamedTuple):
    """A package that a stage needs and that is not a dependency of this one.

    Attributes:
        extra: the extra of this package that installs it.
        setting: the setting that asks for it.
    """

    name: str
    extra: str
    setting: str


class StageConfig(Config):
    """Settings and properties of every stage.

    Attributes:
        kind: name in `uses:` and of the stage's script.
        outputs: kinds of artifact that the stage publishes.
        engines: engines that can run the stage (docs/engines.md).
        code_version: raised when the same settings give another result than before.
        repairs_output: whether the stage repairs a damaged output instead of starting from scratch.
        scored_as: evaluate's input for what the stage publishes, and its help text; None if it is not scored.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    engines: ClassVar[tuple[str, ...]] = ("one",)
    code_version: ClassVar[int] = 1
    repairs_output: ClassVar[bool] = False
    scored_as: ClassVar[tuple[str, str] | None] = None

    seed: int = setting(0, "random seed; if unset, the recipe's `seed`", ge=0)
    threads: int = setting(0, "CPU threads per process; 0 divides all cores among the processes", role="runtime", ge=0)

    @classmethod
    def inputs(cls) -> dict[str, str]:
        """Input fields of this stage: field name → kind of artifact."""
        return {
            name: mark.artifact
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Input)
        }

    @classmethod
    def takes_many(cls, name: str) -> bool:
        """Whether an input field may name several artifacts."""
        return any(isinstance(mark, Input) and mark.many for mark in cls.model_fields[name].metadata)

    @classmethod
    def role(cls, name: str) -> Role:
        """Role of a setting in the result."""
        role: Role = properties(cls.model_fields[name])["role"]
        return role

    def shaping(self) -> list[str]:
        """Names of the settings that shape the result, besides inputs, `steps`, and those at a neutral default."""
        return [
            name
            for name, field in type(self).model_fields.items()
            if self.role(name) == "trajectory"
            and name not in self.inputs()
            and (not properties(field)["neutral"] or self.changed(name))
        ]

    def check_engine(self, engine: str) -> None:
        """Check that the stage can run on an engine.

        Raises:
            InputError: if it cannot.
        """
        if engine not in self.engines:
            raise InputError(
                f"{self.kind} does not run on {engine}, only on {', '.join(self.engines)}; launch it without a"
                " configuration, or with one of accelerate_configs/ for these"
            )

    def data(self) -> dict[str, str]:
        """Data from outside the run: field → location."""
        return {name: location for name, _, location in data_fields(self)}

    def task_sources(self) -> dict[str, TaskConfig]:
        """The part of `data()` that is the rows of a task: field → task."""
        return {name: owner for name, owner, _ in data_fields(self) if isinstance(owner, TaskConfig)}

    def made_for(self) -> list[TaskConfig]:
        """The tasks that the published artifact solves."""
        return []

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        """The splits of tasks that the stage reads.

        Args:
            solved: the tasks that its inputs solve.
        """
        return []

    def packages(self) -> list[Package]:
        """The packages that the stage needs beyond the dependencies."""
        return []

    def runs_model(self) -> bool:
        """Whether the stage computes with a T5."""
        return True

    def selects_by(self) -> dict[str, list[str]]:
        """Task → metrics whose average selects the published checkpoint or candidate; empty if nothing is selected."""
        return {}

    def together_with(self, other: StageConfig) -> bool:
        """Whether one process can make both cells at once (prompts on one frozen T5)."""
        return False

    def trained_together(self) -> Sequence[StageConfig]:
        """The settings of each prompt of a cell; of other cells its own."""
        return [self]

    def schedule_depends_on_steps(self) -> bool:
        """Whether `steps` shapes the trajectory itself (a learning rate that falls to 0 at the last step)."""
        return False

    def trained_parameters(self, shape: T5Config) -> int | None:
        """Number of parameters that the stage trains on a T5 of this shape; None if unknown."""
        return None

    def published_parameters(self, shape: T5Config) -> int | None:
        """Number of parameters that the stage publishes."""
        return self.trained_parameters(shape)

    def computed_parameters(self, shape: T5Config) -> int:
        """Numbers that a step computes from the trained parameters before it uses them."""
        return 0

    def extra_data(self, solved: Sequence[TaskConfig]) -> dict[str, TaskConfig]:
        """Tasks whose rows the stage reads because of its inputs.

        Args:
            solved: the tasks that its inputs solve.

        Returns:
            Name in the fingerprint → task.
        """
        return {}

    def check_solved(self, solved: Sequence[TaskConfig]) -> None:
        """Check the settings that name tasks of the inputs.

        Args:
            solved: the tasks that its inputs solve.

        Raises:
            InputError: if there is no such task; names the setting.
        """

    def resolved(
        self, makers: Sequence[StageConfig], others: bool, where: Callable[[tuple[str | int, ...]], str]
    ) -> Self:
        """The same settings completed by those of the stages that make its inputs.

        Args:
            makers: the recipe's stages that make the inputs.
            others: whether there are also inputs from outside the recipe.
            where: place of a key, for errors.

        Raises:
            InputError: if they do not fit together.
        """
        return self


def check_effects(cells: Sequence[StageConfig]) -> None:
    """Check that each setting of a stage that was changed has an effect on one of its cells.

    Raises:
        InputError: if one has none; names it and what it needs.
    """
    variants = [one for cell in cells for one in cell.trained_together()]
    useless = [one.without_effect() for one in variants]
    for name, condition in useless[0].items():
        if all(name in conditions for conditions in useless) and any(one.changed(name) for one in variants):
            key = ("sweep", name) if name in getattr(cells[0], "sweep", ()) else (name,)
            other = condition.removeprefix("no ")
            problem = f"has no effect {'with' if other != condition else 'without'} `{other}`"
            raise InputError(f"{cells[0].where(*key)}: {problem}; change one of the two")


class PrecisionConfig(Config):
    """Group: precision of a T5's arithmetic."""

    precision: Precision = setting("bf16", "precision of matrix products; trained weights and optimizer stay fp32")


class ScoringConfig(Config):
    """Group: the answers that are compared with targets, in evaluation and in the selection of checkpoints."""

    scoring: Scoring = setting(
        "decode", "tasks with labels: score the decoded text (the paper), or the likeliest label"
    )


class CompileConfig(Config):
    """Group: compilation and kernels of this package's T5 (not of transformers')."""

    compile: Switch = setting("auto", "compile the T5's blocks with torch.compile; auto: on GPUs", role="runtime")

    attention: Literal["auto", "sdpa", "flex"] = setting(
        "auto",
        "self-attention of a compiled, frozen T5 on GPUs: SDPA or FlexAttention; auto: SDPA",
        role="runtime",
    )


class InferenceConfig(CompileConfig, PrecisionConfig):
    """Group: predictions without training."""

    batch_size: int = setting(64, "examples per batch", unit="examples", role="runtime", gt=0)
