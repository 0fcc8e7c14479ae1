"""What the settings of every stage, and of every stage that trains, have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

from pydantic import ValidationInfo, field_validator

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, Input, Role, data_fields, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config


class StageConfig(Config):
    """What every stage has."""

    kind: ClassVar[str]
    summary: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    # How it may be spread over processes (docs/engines.md).
    engines: ClassVar[tuple[str, ...]] = ("one",)
    # Raised whenever the stage's objective, optimizer or loss changes what comes out of the same settings.
    code_version: ClassVar[int] = 1
    # Whether the stage goes on from what is left of an output that was damaged, instead of making it all anew.
    repairs_output: ClassVar[bool] = False
    # The input of evaluate that scores what the stage publishes, and its help text; None if it is not scored.
    scored_as: ClassVar[tuple[str, str] | None] = None

    seed: int = setting(0, "seed of everything random; a recipe's own seed is the default", ge=0)
    threads: int = setting(
        0,
        "CPU threads of each process; 0 takes all the cores there are, shared between the processes",
        role="runtime",
        ge=0,
    )

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
        """Whether an input field may point at several artifacts."""
        return any(isinstance(mark, Input) and mark.many for mark in cls.model_fields[name].metadata)

    @classmethod
    def role(cls, name: str) -> Role:
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict), f"{cls.__name__}.{name} is not declared with setting()"
        return extra["role"]  # type: ignore[return-value]

    def check_engine(self, engine: str) -> None:
        """Whether the stage can be spread over processes in this way.

        Raises:
            InputError: it cannot.
        """
        if engine not in self.engines:
            raise InputError(
                f"{self.kind} does not run on {engine}, but on {', '.join(self.engines)}; launch it without a"
                " configuration, or with one of accelerate_configs/ for these"
            )

    def data(self) -> dict[str, str]:
        """Data that the stage reads from outside the run: field → location."""
        return {name: location for name, _, location in data_fields(self)}

    def task_sources(self) -> dict[str, TaskConfig]:
        """Those of its `data()` that are the rows of a task: field → task."""
        return {name: owner for name, owner, _ in data_fields(self) if isinstance(owner, TaskConfig)}

    def made_for(self) -> list[TaskConfig]:
        """The tasks that what the stage publishes answers; none for stages that are about no task."""
        return []

    def selects_by(self) -> dict[str, str]:
        """Metrics that decide what the stage publishes, by task; empty where nothing is chosen."""
        return {}

    def together_with(self, other: StageConfig) -> bool:
        """True where one process can make both at once: prompts on one frozen T5, otherwise never."""
        return False

    def schedule_depends_on_steps(self) -> bool:
        """True where `steps` shapes the trajectory itself (a learning rate that falls to 0 at the last step)."""
        return False

    def trained_parameters(self, shape: T5Config) -> int | None:
        """Number of parameters that the stage trains on a T5 of this shape; None if unknown."""
        return None

    def extra_data(self, makers: Sequence[StageConfig]) -> dict[str, TaskConfig]:
        """Tasks whose rows the stage reads because of its inputs.

        Args:
            makers: the stages that made its inputs.

        Returns:
            Name in the fingerprint → task.
        """
        return {}

    def resolved(self, makers: Sequence[StageConfig], where: Callable[[tuple[str | int, ...]], str]) -> Self:
        """The same settings completed by those of the stages that make its inputs.

        Args:
            makers: the recipe's stages that make the inputs.
            where: place of a key, for errors.

        Raises:
            InputError: if they do not fit together.
        """
        return self


RATE = "learning rate; with rsqrt what 1/√max(step, warmup) is multiplied by"
SCHEDULE = "constant; rsqrt: 1/√max(step + step_offset, warmup_steps); linear: falls to 0 at the last step"
RSQRT_WARMUP = 10_000  # steps: T5's own
WARMUP = "rsqrt: steps before the rate falls; otherwise: steps over which it rises from 0"
OFFSET = "steps that a continued model has behind it (T5 1.1: 1,000,000)"


class TrainingConfig(StageConfig):
    """What every stage that trains has."""

    engines: ClassVar[tuple[str, ...]] = ("one", "ddp", "zero1", "zero2", "zero3", "fsdp2")
    # Whether the T5 is frozen: no gradients of its weights, and prompts that stay whole under FSDP2.
    freezes_model: ClassVar[bool] = False

    steps: int = setting(..., "optimizer steps in all", unit="steps", role="extent", ge=0)
    batch_size: int = setting(32, "examples of one optimizer step, over all processes", unit="examples", gt=0)
    optimizer: Literal["adafactor", "adamw"] = setting("adafactor", "adafactor as in T5X, or AdamW")
    learning_rate: float = setting(1e-3, RATE, gt=0)
    schedule: Literal["constant", "rsqrt", "linear"] = setting("constant", SCHEDULE)
    warmup_steps: int = setting(0, WARMUP, unit="steps", ge=0)
    step_offset: int = setting(0, OFFSET, unit="steps", ge=0)
    weight_decay: float = setting(0.0, "share of each weight that a step takes away, not multiplied by the rate", ge=0)
    z_loss: float = setting(1e-4, "weight of (log Z)² in the loss", ge=0)
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of matrix products; weights that train, and the optimizer, stay fp32"
    )
    logits_precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of the product that makes logits, where `precision` is bf16; softmax and loss stay fp32"
    )
    microbatch_size: int = setting(
        0,
        "examples at a time on one device; 0 cuts its share by length, so that little is padding, into parts of at most"
        " 8,192 tokens on a CPU and 32,768 on a GPU",
        unit="examples",
        role="runtime",
        ge=0,
    )
    recompute: bool = setting(
        False,
        "keep only the input of each block for the backward pass, which computes the rest once more: a fraction of the"
        " memory, about a third more time, the same bits",
        role="runtime",
    )
    reference_ops: list[Literal["attention", "norm", "loss"]] = setting(
        [],
        "what is computed as its definition reads, slower, to compare; results agree to rounding (loss: fp32 logits)",
        role="runtime",
    )
    checkpoint_every: int = setting(1000, "steps between checkpoints", unit="steps", role="runtime", gt=0)
    keep_last: int = setting(2, "newest checkpoints that are kept", unit="checkpoints", role="runtime", ge=1)
    keep_every: int = setting(
        0, "checkpoints of every so manieth step are kept for ever; 0 keeps none", unit="steps", role="runtime", ge=0
    )
    keep_best: bool = setting(
        False, "also keep the checkpoint with the best validation, of those that have one at their step", role="runtime"
    )
    on_nonfinite: Literal["stop", "skip"] = setting(
        "stop",
        "a loss or gradient that is not finite: stop, with the checkpoints from before; skip, the step changes nothing"
        " and is counted. Either way nonfinite.jsonl names its examples",
        role="runtime",
    )
    log_every: int = setting(10, "steps between lines of metrics.jsonl", unit="steps", role="runtime", gt=0)
    trackers: list[Literal["tensorboard", "wandb"]] = setting([], "also log there, through Accelerate", role="runtime")

    def check_engine(self, engine: str) -> None:
        """Adafactor factors, scales and clips whole matrices, which flat partitions and slices are not."""
        super().check_engine(engine)
        whole = engine == "fsdp2" and self.freezes_model
        if self.optimizer == "adafactor" and (engine.startswith("zero") or engine == "fsdp2") and not whole:
            raise InputError(
                f"{self.kind}: `optimizer: adafactor` works on whole matrices, which {engine} cuts up; set `optimizer:"
                " adamw` with a learning rate for it, or launch with DDP (accelerate_configs/ddp.yaml)"
            )

    @field_validator("warmup_steps")
    @classmethod
    def warm_up_ends(cls, value: int, info: ValidationInfo) -> int:
        steps = info.data.get("steps")
        if info.data.get("schedule") == "linear" and value and steps is not None and value >= steps:
            raise ValueError(
                f"must be fewer than the {steps:,} `steps` where `schedule: linear` falls after it, not {value:,}"
            )
        return value

    def schedule_depends_on_steps(self) -> bool:
        return self.schedule == "linear"

    def example_lengths(self) -> list[tuple[int, int]]:
        """Encoder and decoder tokens of an example, without a prompt; several stand for a uniform distribution.

        Text is at least as long as an example; a task's examples are as long as its settings allow.
        """
        return []

    def longest_example(self) -> tuple[int, int]:
        """Most encoder tokens and most decoder tokens of an example, without a prompt."""
        inputs, targets = zip(*self.example_lengths(), strict=True)
        return max(inputs), max(targets)

    def prompt_rows(self) -> int:
        """Rows of the soft prompt before each input."""
        return 0

    def readings(self) -> int:
        """How often each input is read in a step."""
        return 1

    def kept_logits(self) -> Literal["fp32", "bf16", "whole"]:
        """Precision of the logits; "whole" if all of them are kept for the backward pass, in fp32."""
        return self.logits_precision
