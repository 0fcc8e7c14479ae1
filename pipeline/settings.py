"""Every setting of every stage: the one source of the recipe's keys, the flags, `--help` and the docs.

An input field takes the name of another stage of the recipe (`lm_adapt`, or `lm_adapt@10000` for a kept step),
or a path; on the command line always a path.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from pipeline.evaluate_settings import EvaluateSettings
from pipeline.fields import Data, Input, Settings, setting
from pipeline.stage_settings import OFFSET, RATE, RSQRT_WARMUP, SCHEDULE, WARMUP, StageSettings, TrainingSettings
from pipeline.task_settings import TaskSettings
from pipeline.tuning_settings import (
    ModelTuneSettings,
    PeftTuneSettings,
    PromptDesignSettings,
    PromptMixtureSettings,
    PromptTuneSettings,
)


class ShapeSettings(Settings):
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


class PrepareSettings(StageSettings):
    """Text to token shards."""

    kind: ClassVar[str] = "prepare"
    summary: ClassVar[str] = "read a corpus, train or load the vocabulary, write token shards"
    outputs: ClassVar[tuple[str, ...]] = ("tokens",)
    mends_output: ClassVar[bool] = True
    code_version: ClassVar[int] = 2  # 2: shards are pieces of the corpus, validation documents are drawn by place

    corpus: Annotated[str, Data()] = setting(
        ...,
        "what to read: a file or folder of .txt, .jsonl (each also .gz or .zst) or .parquet, a `datasets` hub name, or"
        " `stdlib-docs`, the documentation that comes with Python",
    )
    config: str | None = setting(None, "configuration of a hub data set")
    split: str = setting("train", "split of a hub data set")
    text_field: str = setting("text", "field of JSONL, Parquet and hub rows that holds the text")
    vocabulary: Annotated[str | None, Data()] = setting(
        None, "SentencePiece model, tokenizer directory or hub model whose vocabulary to use; none trains one"
    )
    vocabulary_size: int = setting(
        32000, "pieces of a vocabulary that is trained, sentinels not counted", unit="pieces", gt=8
    )
    vocabulary_characters: int = setting(
        100_000_000,
        "characters of the corpus, from its start, that a vocabulary is trained on",
        unit="characters",
        gt=0,
    )
    keep_out: list[TaskSettings] = setting(
        [], "tasks whose validation and test inputs must not occur in the corpus: a document that holds one is dropped"
    )
    validation_fraction: float = setting(0.01, "share of the documents kept aside to measure the loss on", ge=0, lt=1)
    shard_bytes: int = setting(
        2**28,
        "bytes of the corpus that become one shard, the unit of work and of going on; files that are compressed or .txt"
        " are not cut, a hub data set is by its own files; of a small corpus less, so that all cores have work",
        unit="bytes",
        gt=0,
    )
    ray: str | None = setting(
        None,
        "Ray cluster whose machines make the shards and share the output directory: its address (`auto`, `HOST:PORT`,"
        " `ray://HOST:PORT`), or `local` to start Ray here; none: processes of this machine, as many as `threads`",
        role="runtime",
    )


class LanguageModelSettings(TrainingSettings):
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


class SpanCorruptSettings(LanguageModelSettings):
    """T5's own pretraining objective (Raffel et al. 2020, §3.1.4)."""

    kind: ClassVar[str] = "span_corrupt"
    summary: ClassVar[str] = "pretrain a T5 on span corruption, from nothing or from a checkpoint"

    model: Annotated[str | None, Input("model")] = setting(None, "the T5 to continue: hub name, directory or stage")
    init: ShapeSettings | None = setting(None, "the sizes of a T5 to start from nothing, instead of `model`")
    input_length: int = setting(512, "encoder tokens of an example", unit="tokens", gt=8)
    noise_density: float = setting(0.15, "share of the tokens that is hidden", gt=0, lt=1)
    mean_span_length: float = setting(3.0, "mean length of a hidden span", unit="tokens", ge=1)

    @model_validator(mode="after")
    def one_start(self) -> SpanCorruptSettings:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either `model` (a T5 to continue) or `init` (sizes to start from nothing)")
        return self


class LMAdaptSettings(LanguageModelSettings):
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
    def density_has_a_prefix(self) -> LMAdaptSettings:
        if self.prefix_density != 0.5 and self.objective != "prefix_lm":
            raise ValueError(
                f"`prefix_density` belongs to `objective: prefix_lm`; {self.objective} draws no such prefix"
            )
        return self


class SentinelSettings(StageSettings):
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


STAGES: dict[str, type[StageSettings]] = {
    cls.kind: cls
    for cls in (
        PrepareSettings,
        SpanCorruptSettings,
        LMAdaptSettings,
        SentinelSettings,
        PromptTuneSettings,
        ModelTuneSettings,
        PromptDesignSettings,
        PromptMixtureSettings,
        PeftTuneSettings,
        EvaluateSettings,
    )
}
