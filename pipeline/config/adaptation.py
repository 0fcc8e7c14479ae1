"""Settings of the stages that make a T5 fit for prompts: span corruption, LM adaptation, sentinels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from t5_pipeline.config.stage import OFFSET, RATE, RSQRT_WARMUP, SCHEDULE, WARMUP, StageConfig, TrainingConfig
from t5_pipeline.core.schema import Config, Input, setting
from t5_pipeline.modeling.config import T5Config


class T5Sizes(Config):
    """The sizes of a T5 to start from nothing (`init`). Defaults are those of T5 1.1 Small but for its vocabulary."""

    d_model: int = setting(512, "width of the residual stream", gt=0)
    d_kv: int = setting(64, "width of one attention head", gt=0)
    d_ff: int = setting(1024, "inner width of the feed-forward layers", gt=0)
    num_layers: int = setting(8, "encoder layers", gt=0)
    num_decoder_layers: int = setting(8, "decoder layers", gt=0)
    num_heads: int = setting(6, "attention heads", gt=0)
    relative_attention_num_buckets: int = setting(32, "buckets of the relative position bias", gt=1)
    relative_attention_max_distance: int = setting(
        128, "distance from which on all positions share a bucket", unit="tokens", gt=1
    )


class LanguageModelConfig(TrainingConfig):
    """What span corruption and LM adaptation share."""

    outputs: ClassVar[tuple[str, ...]] = ("model",)

    learning_rate: float = setting(1.0, RATE, gt=0)
    schedule: Literal["constant", "rsqrt", "linear"] = setting("rsqrt", SCHEDULE)
    warmup_steps: int = setting(
        None, f"{WARMUP}; none means {RSQRT_WARMUP:,} with rsqrt and 0 with the others", unit="steps", ge=0
    )
    tokens: Annotated[str, Input("tokens")] = setting(..., "token shards, from prepare")
    keep_steps: list[int] = setting(
        [], "steps whose model is published beside the last one (STAGE@STEP hands it on)", unit="steps", role="runtime"
    )
    validate_every: int = setting(
        500, "steps between measurements of the validation loss", unit="steps", role="runtime", gt=0
    )
    validation_batches: int = setting(4, "batches of a validation measurement", role="runtime", gt=0)
    packing: bool = setting(
        True,
        "put several short examples into a row, unseen by one another: the same loss from fewer padded rows;"
        " microbatch_size then counts rows",
        role="runtime",
    )

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def warm_up_of_the_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return RSQRT_WARMUP if info.data.get("schedule") == "rsqrt" else 0
        return value

    def trained_parameters(self, shape: T5Config) -> int | None:
        return shape.parameters


class SpanCorruptConfig(LanguageModelConfig):
    """T5's own pretraining objective (Raffel et al. 2020, §3.1.4)."""

    kind: ClassVar[str] = "span_corrupt"
    summary: ClassVar[str] = "pretrain a T5 on span corruption, from nothing or from a checkpoint"

    model: Annotated[str | None, Input("model")] = setting(None, "the T5 to continue: hub name, directory or stage")
    init: T5Sizes | None = setting(None, "the sizes of a T5 to start from nothing, instead of `model`")
    input_length: int = setting(512, "encoder tokens of an example", unit="tokens", gt=8)
    noise_density: float = setting(0.15, "share of the tokens that is hidden", gt=0, lt=1)
    mean_span_length: float = setting(3.0, "mean length of a hidden span", unit="tokens", ge=1)

    @model_validator(mode="after")
    def one_start(self) -> SpanCorruptConfig:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either `model` (a T5 to continue) or `init` (sizes to start from nothing)")
        return self

    def example_lengths(self) -> list[tuple[int, int]]:
        """
        >>> SpanCorruptConfig(model="t5-small", tokens="shards", steps=1, input_length=512).example_lengths()
        [(512, 114)]
        """

        def lengths(tokens: int) -> tuple[int, int]:  # with n of them hidden in s spans: T − n + s + 1 and n + s + 1
            hidden = min(max(round(tokens * self.noise_density), 1), tokens - 1)
            spans = min(max(1, round(hidden / self.mean_span_length)), hidden, tokens - hidden)
            return tokens - hidden + spans + 1, hidden + spans + 1

        tokens = self.input_length - 1
        while lengths(tokens + 1)[0] <= self.input_length:
            tokens += 1
        return [(self.input_length, lengths(tokens)[1])]


class LMAdaptConfig(LanguageModelConfig):
    """LM adaptation (Lester et al. 2021, §2.2)."""

    kind: ClassVar[str] = "lm_adapt"
    summary: ClassVar[str] = "continue a T5 on natural text as a prefix LM"

    model: Annotated[str, Input("model")] = setting(..., "the T5 to adapt: hub name, directory or stage")
    objective: Literal["prefix_lm", "lm", "full_lm", "packed_pairs"] = setting(
        "prefix_lm",
        "prefix_lm: the paper's; lm, full_lm: everything is target, of documents joined without or with EOS between"
        " them; packed_pairs: BigScience's prefix LM, chunks of segment_length tokens split at random",
    )
    prefix_density: float = setting(
        0.5,
        "ρ of prefix_lm: a prefix of ℓ tokens has at least about (1−2ρ)·ℓ; 0.5 makes all lengths as likely (the paper)",
        gt=0,
        le=0.5,
    )
    steps: int = setting(100_000, "optimizer steps in all", unit="steps", role="extent", ge=0)
    segment_length: int = setting(512, "longest input and longest target, EOS counted", unit="tokens", gt=2)
    batch_size: int = setting(2048, "examples of one optimizer step, over all processes", unit="examples", gt=0)
    step_offset: int = setting(1_000_000, OFFSET, unit="steps", ge=0)

    @model_validator(mode="after")
    def density_has_a_prefix(self) -> LMAdaptConfig:
        if self.prefix_density != 0.5 and self.objective != "prefix_lm":
            raise ValueError(
                f"`prefix_density` belongs to `objective: prefix_lm`; {self.objective} draws no such prefix"
            )
        return self

    def example_lengths(self) -> list[tuple[int, int]]:
        whole = self.segment_length
        if self.objective in ("lm", "full_lm"):
            return [(1, whole)]
        # The prefix is uniform over all lengths from about (1−2ρ)·ℓ on (packed pairs: ρ = ½).
        shortest = 1 - 2 * self.prefix_density
        parts = [shortest + (1 - shortest) * (i + 0.5) / 8 for i in range(8)]
        return [(round(part * whole), whole - round(part * whole)) for part in parts]

    def longest_example(self) -> tuple[int, int]:
        return (1 if self.objective in ("lm", "full_lm") else self.segment_length), self.segment_length


class SentinelConfig(StageConfig):
    """Span Corruption + Sentinel (Lester et al. 2021, §3.2)."""

    kind: ClassVar[str] = "sentinel"
    summary: ClassVar[str] = "give a span-corruption T5 its sentinels downstream, without training"
    outputs: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[str, Input("model")] = setting(..., "the T5 to use as it is: hub name, directory or stage")
    variant: Literal["targets", "both"] = setting(
        "targets", "targets: extra_id_0 begins each target (the paper); both: it also ends each input (T5's own tasks)"
    )
    new_rows: Literal["mean", "normal"] = setting(
        "mean",
        "how embedding rows start where the vocabulary had no sentinels: the mean row, or normal noise around it",
    )

    def trained_parameters(self, shape: T5Config) -> int | None:
        return 0
