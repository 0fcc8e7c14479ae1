"""Settings that stages share, as groups of flat keys; each setting is declared once, stages override defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, Input, Role, data_fields, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config

Precision = Literal["fp32", "bf16"]
# YAML reads true and false as booleans.
Switch = Annotated[
    Literal["auto", "true", "false"], BeforeValidator(lambda x: str(x).lower() if isinstance(x, bool) else x)
]
Scoring = Literal["decode", "likelihood"]
"""Answer to a task with labels: the decoded text (T5, the paper), or the label with the highest likelihood."""
_SMALL_RATE = 1e-4
RSQRT_WARMUP = 10_000  # T5's own number of warm-up steps


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
        role: Role = _extra(cls.model_fields[name])["role"]
        return role

    def shaping(self) -> list[str]:
        """Names of the settings that shape the result, besides inputs, `steps`, and those at a neutral default."""
        return [
            name
            for name, field in type(self).model_fields.items()
            if self.role(name) == "trajectory"
            and name not in self.inputs()
            and not (_extra(field)["neutral"] and getattr(self, name) == field.get_default(call_default_factory=True))
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

    def splits_read(self, makers: Sequence[StageConfig]) -> list[SplitRead]:
        """The splits of tasks that the stage reads.

        Args:
            makers: the stages that make its inputs.
        """
        return []

    def selects_by(self) -> dict[str, list[str]]:
        """Task → metrics whose average selects the published checkpoint or candidate; empty if nothing is selected."""
        return {}

    def together_with(self, other: StageConfig) -> bool:
        """Whether one process can make both cells at once (prompts on one frozen T5)."""
        return False

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


def _extra(field: FieldInfo) -> dict[str, Any]:
    """The unit, role and neutrality of a setting."""
    assert isinstance(field.json_schema_extra, dict), f"{field.description} is not declared with setting()"
    return field.json_schema_extra


class OptimizerConfig(Config):
    """Group: optimizer steps, their batches, learning rate and regularization."""

    steps: int = setting(..., "total optimizer steps", unit="steps", role="extent", ge=0)
    batch_size: int = setting(32, "global batch size, over all processes", unit="examples", gt=0)
    optimizer: Literal["adafactor", "adamw"] = setting("adafactor", "Adafactor as in T5X, or AdamW")
    learning_rate: float = setting(1e-3, "learning rate; with `schedule: rsqrt`, the factor of 1/√step", gt=0)
    schedule: Literal["constant", "rsqrt", "linear"] = setting(
        "constant", "rsqrt: 1/√max(step + step_offset, warmup_steps); linear: falls to 0 at the last step"
    )
    warmup_steps: int = setting(
        0,
        f"warm-up, constant (rsqrt) or a linear rise; none: {RSQRT_WARMUP:,} for rsqrt, else 0",
        unit="steps",
        ge=0,
    )
    step_offset: int = setting(
        0,
        "rsqrt: earlier steps of the T5; lm_adapt, if unset: the known number, else 0",
        unit="steps",
        ge=0,
    )
    optimizer_step_offset: int = setting(
        0, "steps already counted in Adafactor's β₂ (official prompt tuning: 1,100,000)", unit="steps", ge=0
    )
    weight_decay: float = setting(0.0, "decoupled weight decay per step, not scaled by the learning rate", ge=0)
    z_loss: float = setting(1e-4, "weight of (log Z)² in the loss", ge=0)
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)

    @field_validator("optimizer_step_offset")
    @classmethod
    def offset_is_used(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("optimizer") != "adafactor":
            raise ValueError("applies to `optimizer: adafactor`; remove one of the two")
        return value

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def warmup_of_the_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return RSQRT_WARMUP if info.data.get("schedule") == "rsqrt" else 0
        return value

    @field_validator("warmup_steps")
    @classmethod
    def warmup_ends(cls, value: int, info: ValidationInfo) -> int:
        steps = info.data.get("steps")
        if info.data.get("schedule") == "linear" and value and steps is not None and value >= steps:
            raise ValueError(
                f"must be fewer than the {steps:,} `steps` with `schedule: linear`, not {value:,}; lower it"
            )
        return value

    def schedule_depends_on_steps(self) -> bool:
        return self.schedule == "linear"

    def rate_problem(self) -> str | None:
        """Why the learning rate is too small to train with; None if `schedule: rsqrt` does not make it so."""
        if self.schedule != "rsqrt":
            return None
        without_offset = self.learning_rate / math.sqrt(max(self.warmup_steps, 1))
        rate = min(without_offset, self.learning_rate / math.sqrt(max(self.step_offset, 1)))
        if rate >= _SMALL_RATE:
            return None
        if without_offset < _SMALL_RATE:
            cause, remedy = "schedule: rsqrt", "schedule: constant"
        else:
            cause, remedy = f"step_offset: {self.step_offset:,}", "step_offset: 0"
        return (
            f"`{cause}` makes the learning rate {rate:.1e}, below {_SMALL_RATE:g}; raise `learning_rate`, or set"
            f" `{remedy}`"
        )


class WholeModelConfig(Config):
    """Group: the optimizer of a stage that trains every weight of a T5."""

    optimizer_state: Literal["fresh", "checkpoint"] = setting(
        "fresh", "Adafactor's moments and step: from 0, or as in a T5X checkpoint (the paper)"
    )

    @field_validator("optimizer_state")
    @classmethod
    def state_is_of_adafactor(cls, value: str, info: ValidationInfo) -> str:
        if value == "checkpoint" and info.data.get("optimizer") != "adafactor":
            raise ValueError("needs `optimizer: adafactor`; change one of the two")
        if value == "checkpoint" and info.data.get("optimizer_step_offset"):
            raise ValueError("takes the step from the checkpoint; remove `optimizer_step_offset`")
        return value


class CheckpointConfig(Config):
    """Group: checkpoints of a training stage."""

    checkpoint_every: int = setting(1000, "steps between checkpoints", unit="steps", role="runtime", gt=0)
    keep_last: int = setting(2, "number of newest checkpoints to keep", unit="checkpoints", role="runtime", ge=1)
    keep_every: int = setting(
        0, "also keep the checkpoint of every Nth step permanently (0: off)", unit="steps", role="runtime", ge=0
    )
    keep_best: bool = setting(False, "also keep the checkpoint with the best validation result", role="runtime")


class RuntimeConfig(Config):
    """Group: gradient accumulation, non-finite losses and logging of a training stage."""

    microbatch_size: int = setting(
        0, "examples per forward pass (gradient accumulation); 0: limit the tokens instead", unit="examples",
        role="runtime", ge=0,
    )  # fmt: skip
    on_nonfinite: Literal["stop", "skip"] = setting(
        "stop", "non-finite loss or gradient: stop at the last checkpoint, or skip the step", role="runtime"
    )
    log_every: int = setting(10, "steps between lines of metrics.jsonl", unit="steps", role="runtime", gt=0)
    trackers: list[Literal["tensorboard", "wandb"]] = setting(
        [], "experiment trackers that also receive the metrics", role="runtime"
    )


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


class ExecutionConfig(CompileConfig):
    """Group: ways to compute the training step of this package's T5 (not of transformers')."""

    recompute: bool = setting(
        False, "activation checkpointing: recompute each block in the backward pass to save memory", role="runtime"
    )
    cuda_graphs: Switch = setting(
        "auto", "replay microbatches as CUDA graphs; auto: on GPUs, unless `compile: false`", role="runtime"
    )
    reference_ops: list[Literal["attention", "norm", "loss"]] = setting(
        [], "operations to run by their slower reference implementation, for comparison", role="runtime"
    )

    def uses_cuda_graphs(self, device_type: str) -> bool:
        """Whether steps on a device are CUDA graphs: not with activation checkpointing, which saves random states."""
        wanted = self.cuda_graphs == "true" or (self.cuda_graphs == "auto" and self.compile != "false")
        return wanted and device_type == "cuda" and not self.recompute


class LogitsConfig(Config):
    """Group: precision of the logits of this package's T5."""

    logits_precision: Precision = setting(
        "bf16", "precision of the logits' matrix product under bf16; softmax and loss stay fp32"
    )


class TrainingConfig(RuntimeConfig, CheckpointConfig, PrecisionConfig, OptimizerConfig, StageConfig):
    """Settings of every stage that trains."""

    engines: ClassVar[tuple[str, ...]] = ("one", "ddp", "zero1", "zero2", "zero3", "fsdp2")
    # Whether the T5 is frozen: it needs no gradients of its weights, and FSDP2 does not shard the prompts.
    freezes_model: ClassVar[bool] = False

    def check_engine(self, engine: str) -> None:
        """Also reject Adafactor on sharded weights: it factors, scales and clips whole matrices."""
        super().check_engine(engine)
        sharded = engine.startswith("zero") or (engine == "fsdp2" and not self.freezes_model)
        if self.optimizer == "adafactor" and sharded:
            raise InputError(
                f"{self.kind}: `optimizer: adafactor` needs whole matrices, which {engine} shards; set `optimizer:"
                " adamw` and a learning rate for it, or launch with DDP (accelerate_configs/ddp.yaml)"
            )

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

    def trained_together(self) -> list[TrainingConfig]:
        """The settings of each prompt of a cell; of other cells its own."""
        return [self]

    def at_once(self) -> list[TrainingConfig]:
        """Those of `trained_together` that are in the largest batch."""
        return self.trained_together()

    def run_steps(self, steps: int) -> int:
        """Steps of a run after which `steps` steps of training are done; more if prompts take turns."""
        return steps

    def may_stop_early(self) -> bool:
        """Whether training may end before the last step."""
        return False

    def share_of_steps(self) -> float:
        """Mean share of `trained_together` that take part in a step of the run."""
        return 1.0
