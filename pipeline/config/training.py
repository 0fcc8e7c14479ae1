"""Settings of stages that train: optimizer, checkpoints, logging, and ways to compute a step."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

from pydantic import ValidationInfo, field_validator

from t5_pipeline.config.launch import Engine
from t5_pipeline.config.stage import CompileConfig, Package, Precision, PrecisionConfig, StageConfig, Switch
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Config, setting

_SMALL_RATE = 1e-4
RSQRT_WARMUP = 10_000  # T5's own number of warm-up steps


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
        0,
        "steps already counted in Adafactor's β₂ (official prompt tuning: 1,100,000)",
        unit="steps",
        only="optimizer: adafactor",
        ge=0,
    )
    weight_decay: float = setting(0.0, "decoupled weight decay per step, not scaled by the learning rate", ge=0)
    z_loss: float = setting(1e-4, "weight of (log Z)² in the loss", ge=0)
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)

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

    engines: ClassVar[tuple[str, ...]] = get_args(Engine)
    # Whether the T5 is frozen: it needs no gradients of its weights, and FSDP2 does not shard the prompts.
    freezes_model: ClassVar[bool] = False

    def packages(self) -> list[Package]:
        return [Package(tracker, "trackers", "trackers") for tracker in self.trackers]

    def warnings(self) -> list[str]:
        """Settings that work, but probably not as intended."""
        found = [problem] if (problem := self.rate_problem()) else []
        if self.schedule == "constant" and self.warmup_steps > self.steps > 0:
            found.append(
                f"`warmup_steps` ({self.warmup_steps:,}) are more than the {self.steps:,} `steps`, so the learning rate"
                " does not reach `learning_rate`; lower them"
            )
        return found

    def check_engine(self, engine: str) -> None:
        """Also reject Adafactor on sharded weights: it factors, scales and clips whole matrices."""
        super().check_engine(engine)
        sharded = engine.startswith("zero") or (engine == "fsdp2" and not self.freezes_model)
        if self.optimizer == "adafactor" and sharded:
            raise InputError(
                f"{self.where('optimizer')}: adafactor needs whole matrices, which {engine} shards; set `optimizer:"
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
