"""Settings of the stages that prepare a T5 for prompts: span corruption, LM adaptation, sentinels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from t5_pipeline.config.denoisers import MIXTURES, DenoiserConfig
from t5_pipeline.config.probe import ProbeConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import ExecutionConfig, LogitsConfig, TrainingConfig, WholeModelConfig
from t5_pipeline.core.schema import Config, Input, defaults, setting
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS
from t5_pipeline.modeling.config import T5Config, bucket_problem
from t5_pipeline.modeling.digest import t5x_folder

_PARTS = 56  # example lengths that stand for a mixture
# Models whose steps of training are known (Lester et al. 2021, §2.2), by the last part of a hub name, or of a directory
# with a copy, also in the cache of the hub.
_TRAINED = tuple(
    (rf"(?:.*(?:/|--))?{name.format('(?:small|base|large|xl|xxl)')}(?:/snapshots/[^/]+)?", steps)
    for name, steps in (("t5-v1_1-{}", 1_000_000), ("t5-{}-lm-adapt", 1_100_000))
)


class T5Sizes(Config):
    """Sizes of a randomly initialized T5 (`init`); the defaults are those of T5 1.1 Small."""

    d_model: int = setting(512, "width of the residual stream", gt=0, le=2**20)
    d_kv: int = setting(64, "width of one attention head", gt=0, le=2**20)
    d_ff: int = setting(1024, "inner width of the feed-forward layers", gt=0, le=2**20)
    num_layers: int = setting(8, "encoder layers", gt=0, le=1000)
    num_decoder_layers: int = setting(8, "decoder layers", gt=0, le=1000)
    num_heads: int = setting(6, "attention heads", gt=0, le=2**20)
    relative_attention_num_buckets: int = setting(32, "buckets of the relative position bias", gt=1)
    relative_attention_max_distance: int = setting(
        128, "distance from which all positions share one bucket", unit="tokens", gt=1
    )

    @model_validator(mode="after")
    def check_buckets(self) -> Self:
        if problem := bucket_problem(self.relative_attention_num_buckets, self.relative_attention_max_distance):
            raise ValueError(problem)
        return self


@defaults(learning_rate=1.0, schedule="rsqrt", warmup_steps=None)
class LanguageModelConfig(LogitsConfig, ExecutionConfig, WholeModelConfig, TrainingConfig):
    """Settings that span corruption and LM adaptation share."""

    outputs: ClassVar[tuple[str, ...]] = ("model",)

    tokens: Annotated[str, Input("tokens")] = setting(..., "token shards: a prepare stage or a directory")
    keep_steps: list[Annotated[int, Field(ge=0)]] = setting(
        [], "steps whose models are published too, for other stages to use as STAGE@STEP", unit="steps", role="runtime"
    )
    validate_every: int = setting(500, "steps between validations of the loss", unit="steps", role="runtime", gt=0)
    validation_batches: int = setting(4, "batches per validation", unit="batches", role="runtime", gt=0)
    packing: bool = setting(
        True, "pack several short examples into a row, masked from one another: less padding, same loss", role="runtime"
    )

    def trained_parameters(self, shape: T5Config) -> int | None:
        return shape.parameters

    def warnings(self) -> list[str]:
        """Also steps to keep that training does not reach, as if only `steps` had been lowered for a trial."""
        later = sorted({step for step in self.keep_steps if step > self.steps})
        if not later:
            return super().warnings()
        listed = ", ".join(f"{step:,}" for step in later)
        return [
            *super().warnings(),
            f"`keep_steps` {listed} will not be published, because training ends after {self.steps:,} `steps`;"
            " lower them, or raise `steps`",
        ]


def known_steps(model: Any) -> int:
    """Steps that a T5 is known to have been trained for; 0 if nothing is known.

    Args:
        model: hub name, directory with the same last name, or a T5X checkpoint (its folder, one above it, or its file),
            which has its step in its name.

    >>> known_steps("google/t5-v1_1-base"), known_steps("t5x/base/checkpoint_1100000"), known_steps("lm_adapt")
    (1000000, 1100000, 0)
    """
    name = str(t5x_folder(Path(str(model)))) if model else ""
    for pattern, steps in _TRAINED:
        if re.fullmatch(pattern, name):
            return steps
    inside = [path.parent.name for path in Path(name).glob("checkpoint_*/checkpoint")] if name else []
    last = inside[0] if len(inside) == 1 else name.rpartition("/")[2]
    found = re.fullmatch(r"checkpoint_(\d+)", last)
    return int(found[1]) if found else 0


def prefix_parts(whole: int, density: float) -> list[tuple[int, int]]:
    """Inputs and targets of a prefix LM: the prefix is uniform over all lengths from about (1−2ρ)·ℓ on."""
    shortest = 1 - 2 * density
    parts = [shortest + (1 - shortest) * (i + 0.5) / 8 for i in range(8)]
    return [(round(part * whole), whole - round(part * whole)) for part in parts]


class SpanCorruptConfig(LanguageModelConfig):
    """T5's own pretraining objective (Raffel et al. 2020, §3.1.4)."""

    kind: ClassVar[str] = "span_corrupt"
    code_version: ClassVar[int] = 2
    summary: ClassVar[str] = "pretrain a T5 on span corruption, from random weights or from a checkpoint"

    model: Annotated[str | None, Input("model")] = setting(
        None, "T5 to continue from (or give `init`): hub name, directory or stage"
    )
    init: T5Sizes | None = setting(None, "sizes of a randomly initialized T5 (or give `model`)")
    input_length: int = setting(512, "encoder tokens of an example", unit="tokens", gt=8)
    noise_density: float = setting(0.15, "fraction of the tokens that is masked", only="no mixture", gt=0, le=0.99)
    mean_span_length: float = setting(3.0, "mean length of a masked span", unit="tokens", only="no mixture", ge=1)
    mixture: list[DenoiserConfig] = setting(
        [], "mixture of objectives instead of one: `ul2`, or in a recipe a list of denoisers", neutral=True
    )

    @field_validator("mixture", mode="before")
    @classmethod
    def published(cls, value: Any) -> Any:
        """A mixture by its name."""
        name = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(name, str):
            return value
        if name not in MIXTURES:
            raise ValueError(f"there is no mixture `{name}`; {nearest(name, MIXTURES)}")
        return MIXTURES[name]

    @field_validator("mixture")
    @classmethod
    def every_block_has_each(cls, value: list[DenoiserConfig]) -> list[DenoiserConfig]:
        """Reject a share of less than one example in a block, which `Places` cannot deal."""
        from t5_pipeline.data_prep.sampling.mixed_batches import BLOCK  # imports NumPy

        total = sum(one.rate for one in value)
        for one in value:
            if one.rate * BLOCK < total:
                raise ValueError(
                    f"rate {one.rate:g} is less than 1/{BLOCK} of the sum of the rates, {total:g}; raise it, or remove"
                    " this denoiser"
                )
        return value

    @model_validator(mode="after")
    def one_start(self) -> SpanCorruptConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either `model` (a T5 to continue from) or `init` (sizes of a new T5)")
        if self.init is not None and self.optimizer_state == "checkpoint":
            raise ValueError("`optimizer_state: checkpoint` needs `model`, because a new T5 has none; remove it")
        return self

    def example_lengths(self) -> list[tuple[int, int]]:
        """Encoder and decoder tokens of examples, as in `TrainingConfig.example_lengths`.

        >>> SpanCorruptConfig(model="t5-small", tokens="shards", steps=1, input_length=512).example_lengths()
        [(512, 114)]
        """
        from t5_pipeline.data_prep.objectives.span_corruption import fitting_length, tokens_length  # imports NumPy

        def lengths(inputs: int, density: float, mean: float) -> tuple[int, int]:
            return inputs, tokens_length(inputs, density, mean)[1]

        if not self.mixture:
            return [lengths(self.input_length, self.noise_density, self.mean_span_length)]
        found: list[tuple[int, int]] = []
        total = sum(one.rate for one in self.mixture)
        for one in self.mixture:
            if one.prefix_density is None:
                density, mean = one.noise_density or 0.15, one.mean_span_length or 3.0
                of_it = [lengths(fitting_length(self.input_length, density, mean, SENTINELS), density, mean)]
            else:
                of_it = prefix_parts(self.input_length, one.prefix_density)
            copies = max(1, round(_PARTS * one.rate / total / len(of_it)))
            found += of_it * copies
        return found

    def longest_example(self) -> tuple[int, int]:
        if any(one.prefix_density is not None for one in self.mixture):
            return self.input_length, self.input_length
        return self.input_length, super().longest_example()[1]


@defaults(steps=100_000, batch_size=2048, step_offset=None)
class LMAdaptConfig(LanguageModelConfig, ProbeConfig):
    """LM adaptation (Lester et al. 2021, §2.2)."""

    kind: ClassVar[str] = "lm_adapt"
    code_version: ClassVar[int] = 2
    summary: ClassVar[str] = "continue training a T5 on natural text as a prefix LM"

    model: Annotated[str, Input("model")] = setting(..., "T5 to adapt: hub name, directory or stage")
    # lm, full_lm: every token is a target; documents are concatenated without or with EOS between them.
    # packed_pairs: BigScience's prefix LM, chunks of segment_length tokens split at random.
    objective: Literal["prefix_lm", "lm", "full_lm", "packed_pairs"] = setting(
        "prefix_lm", "prefix_lm (the paper); lm, full_lm (no prefix); packed_pairs (BigScience)"
    )
    # ρ: a prefix of a segment of ℓ tokens has at least about (1−2ρ)·ℓ tokens.
    prefix_density: float = setting(
        0.5, "prefix_lm; 0.5: all prefix lengths equally likely (the paper); less: longer prefixes", gt=0, le=0.5
    )
    segment_length: int = setting(512, "maximum tokens of an input and of a target, with EOS", unit="tokens", gt=2)
    # T5 packs examples into rows of segment_length + segment_length positions; the paper's batch is 2,048 of them.
    batch_unit: Literal["examples", "rows"] = setting(
        "examples", "unit of batch_size: examples, or T5's packed rows of several examples (the paper)"
    )

    @model_validator(mode="after")
    def rows_have_a_prefix(self) -> LMAdaptConfig:
        if self.batch_unit == "rows" and self.objective != "prefix_lm":
            raise ValueError(
                f"`batch_unit: rows` applies to `objective: prefix_lm`, whose examples differ in length, not"
                f" {self.objective}; remove one of the two"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def steps_of_the_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("step_offset") is None:
            return {**values, "step_offset": known_steps(values.get("model"))}
        return values

    @model_validator(mode="after")
    def density_has_a_prefix(self) -> LMAdaptConfig:
        if self.prefix_density != 0.5 and self.objective != "prefix_lm":
            raise ValueError(
                f"`prefix_density` applies to `objective: prefix_lm`, not {self.objective}; remove one of the two"
            )
        return self

    def example_lengths(self) -> list[tuple[int, int]]:
        whole = self.segment_length
        if self.objective in ("lm", "full_lm"):
            return [(1, whole)]
        return prefix_parts(whole, self.prefix_density)  # packed pairs: ρ = ½

    def longest_example(self) -> tuple[int, int]:
        return (1 if self.objective in ("lm", "full_lm") else self.segment_length), self.segment_length


class SentinelConfig(StageConfig):
    """Span Corruption + Sentinel (Lester et al. 2021, §3.2)."""

    kind: ClassVar[str] = "sentinel"
    summary: ClassVar[str] = "mark a span-corruption T5 to begin its targets with a sentinel, without training"
    outputs: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[str, Input("model")] = setting(..., "T5 to mark: hub name, directory or stage")
    variant: Literal["targets", "both"] = setting(
        "targets", "position of extra_id_0: start of targets (the paper), or both there and after inputs"
    )
    new_rows: Literal["mean", "normal"] = setting(
        "mean", "initial embeddings of missing sentinels: the mean row, or normal noise around it"
    )

    def trained_parameters(self, shape: T5Config) -> int | None:
        return 0
