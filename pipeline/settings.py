"""Every setting of every stage: the one source of the recipe's keys, the flags, `--help` and the docs.

An input field takes the name of another stage of the recipe (`lm_adapt`, or `lm_adapt@10000` for a kept step),
or a path; on the command line always a path.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from pipeline.fields import Data, Input, Role, Settings, data_fields, setting
from pipeline.task_settings import TaskSettings, check_metric_names


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


class StageSettings(Settings):
    """What every stage has."""

    kind: ClassVar[str]
    summary: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    # Raised whenever the stage's objective, optimizer or loss changes what comes out of the same settings.
    code_version: ClassVar[int] = 1

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

    def data(self) -> dict[str, str]:
        """Data that the stage reads from outside the run: field → location."""
        return {name: location for name, _, location in data_fields(self)}

    def tasks(self) -> dict[str, TaskSettings]:
        """Those of its `data()` that are the rows of a task: field → task."""
        return {name: owner for name, owner, _ in data_fields(self) if isinstance(owner, TaskSettings)}

    def together_with(self, other: StageSettings) -> bool:
        """True where one process can make both at once: prompts on one frozen T5, otherwise never."""
        return False

    def schedule_depends_on_steps(self) -> bool:
        """True where `steps` shapes the trajectory itself (a learning rate that falls to 0 at the last step)."""
        return False


class PrepareSettings(StageSettings):
    """Text to token shards."""

    kind: ClassVar[str] = "prepare"
    summary: ClassVar[str] = "read a corpus, train or load the vocabulary, write token shards"
    outputs: ClassVar[tuple[str, ...]] = ("tokens",)

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
    shard_tokens: int = setting(100_000_000, "tokens after which a new shard begins", unit="tokens", gt=0)


_RATE = "learning rate; with rsqrt what 1/√max(step, warmup) is multiplied by"
_SCHEDULE = "constant; rsqrt: 1/√max(step + step_offset, warmup_steps); linear: falls to 0 at the last step"
RSQRT_WARMUP = 10_000  # steps: T5's own
_WARMUP = "rsqrt: steps before the rate falls; otherwise: steps over which it rises from 0"
_OFFSET = "steps that a continued model has behind it (T5 1.1: 1,000,000)"


class TrainingSettings(StageSettings):
    """What every stage that trains has."""

    steps: int = setting(..., "optimizer steps in all", unit="steps", role="extent", ge=0)
    batch_size: int = setting(32, "examples of one optimizer step, over all processes", unit="examples", gt=0)
    optimizer: Literal["adafactor", "adamw"] = setting("adafactor", "adafactor as in T5X, or AdamW")
    learning_rate: float = setting(1e-3, _RATE, gt=0)
    schedule: Literal["constant", "rsqrt", "linear"] = setting("constant", _SCHEDULE)
    warmup_steps: int = setting(0, _WARMUP, unit="steps", ge=0)
    step_offset: int = setting(0, _OFFSET, unit="steps", ge=0)
    weight_decay: float = setting(0.0, "share of each weight that a step takes away, not multiplied by the rate", ge=0)
    z_loss: float = setting(1e-4, "weight of (log Z)² in the loss", ge=0)
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = setting(
        "bf16", "precision of matrix products; weights and optimizer stay fp32"
    )
    microbatch_size: int = setting(
        0, "examples at a time on one device; 0 takes all of its share", unit="examples", role="runtime", ge=0
    )
    checkpoint_every: int = setting(1000, "steps between checkpoints", unit="steps", role="runtime", gt=0)
    keep_last: int = setting(2, "newest checkpoints that are kept", unit="checkpoints", role="runtime", ge=1)
    log_every: int = setting(10, "steps between lines of metrics.jsonl", unit="steps", role="runtime", gt=0)
    trackers: list[Literal["tensorboard", "wandb"]] = setting([], "also log there, through Accelerate", role="runtime")

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


class LanguageModelSettings(TrainingSettings):
    """What span corruption and LM adaptation share."""

    outputs: ClassVar[tuple[str, ...]] = ("model",)

    learning_rate: float = setting(1.0, _RATE, gt=0)
    schedule: Literal["constant", "rsqrt", "linear"] = setting("rsqrt", _SCHEDULE)
    warmup_steps: int = setting(
        None, f"{_WARMUP}; none means {RSQRT_WARMUP:,} with rsqrt and 0 with the others", unit="steps", ge=0
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
    step_offset: int = setting(1_000_000, _OFFSET, unit="steps", ge=0)

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


class PromptTuneSettings(TrainingSettings):
    """Prompt tuning (Lester et al. 2021, §2)."""

    kind: ClassVar[str] = "prompt_tune"
    summary: ClassVar[str] = "freeze a T5 and learn a task as a soft prompt"
    outputs: ClassVar[tuple[str, ...]] = ("prompt",)

    model: Annotated[str, Input("model")] = setting(..., "the T5 to freeze: hub name, directory or stage")
    task: TaskSettings = setting(
        ..., "the task: its name under the recipe's `tasks:`, or a YAML file with its settings"
    )
    prompt_length: int = setting(100, "rows of the prompt", unit="tokens", gt=0)
    prompt_init: Literal["uniform", "uniform_code", "vocabulary", "class_labels", "text", "prompt"] = setting(
        "class_labels",
        "uniform: U[−0.5, 0.5]; uniform_code: U[0, 0.5), as the official code does; vocabulary: rows of the likeliest"
        " pieces; class_labels: the labels' mean rows, the rest from vocabulary; text: the rows of init_text;"
        " prompt: the rows of init_prompt",
    )
    init_text: str | None = setting(None, "text whose embedded pieces start the prompt (prompt_init: text)")
    init_prompt: Annotated[str | None, Input("prompt")] = setting(
        None, "trained prompt to start from (prompt_init: prompt)"
    )
    init_labels: list[str] = setting(
        [], "class_labels: words to start from instead of the task's labels (ReCoRD: commonsense, reasoning, …)"
    )
    init_population: int = setting(
        5000, "how many of the likeliest pieces vocabulary rows are drawn from", unit="pieces", gt=0
    )
    steps: int = setting(30_000, "optimizer steps in all", unit="steps", role="extent", ge=0)
    learning_rate: float = setting(0.3, "learning rate", gt=0)
    weight_decay: float = setting(1e-5, "share of each weight that a step takes away, not multiplied by the rate", ge=0)
    dropout: float = setting(0.1, "dropout rate, shared along the sequence as in the official code", ge=0, lt=1)
    max_input_length: int = setting(512, "input tokens beside the prompt; longer inputs are cut", unit="tokens", gt=0)
    max_target_length: int = setting(128, "target tokens; longer targets are cut", unit="tokens", gt=0)
    loss: Literal["mean", "sum"] = setting("mean", "mean or sum over the target tokens of a prompt's batch")

    # What may differ between prompts that train in one batch on one frozen T5.
    per_prompt: ClassVar[frozenset[str]] = frozenset(
        ("seed", "task", "prompt_length", "prompt_init", "init_text", "init_prompt", "init_labels", "init_population")
    ) | {"batch_size"}

    def together_with(self, other: StageSettings) -> bool:
        shared = set(type(self).model_fields) - self.per_prompt
        return isinstance(other, PromptTuneSettings) and all(getattr(self, f) == getattr(other, f) for f in shared)

    @model_validator(mode="after")
    def init_is_complete(self) -> PromptTuneSettings:
        for init, field in (("text", "init_text"), ("prompt", "init_prompt")):
            if (self.prompt_init == init) != (getattr(self, field) is not None):
                raise ValueError(f"`prompt_init: {init}` and `{field}` go together: give both or neither")
        if self.init_labels and self.prompt_init != "class_labels":
            raise ValueError("`init_labels` goes with `prompt_init: class_labels`")
        if self.prompt_init == "class_labels" and not (self.task.labels or self.init_labels):
            raise ValueError(
                f"`prompt_init: class_labels` needs the task's labels; {self.task.name} has none: give init_labels,"
                " or use vocabulary"
            )
        return self


class EvaluateSettings(StageSettings):
    """Scores of prompts, beside what they must beat."""

    kind: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "score prompts on held-out rows, beside the majority class and no prompt"
    outputs: ClassVar[tuple[str, ...]] = ("scores",)

    prompts: Annotated[str, Input("prompt", many=True)] = setting(
        ..., "the prompts to score: a prompt_tune stage, or a directory"
    )
    model: Annotated[str | None, Input("model")] = setting(
        None, "the frozen T5, where it does not lie where the prompts say; it must be the very same"
    )
    split: str = setting("test", "split of the task to score on")
    limit: int = setting(0, "score the first N rows only; 0 takes all", unit="rows", ge=0)
    batch_size: int = setting(64, "examples at a time", unit="examples", role="runtime", gt=0)
    metrics: dict[str, list[str]] = setting(
        {},
        "scores to compute, by task (TASK=A,B on a command line); otherwise a recipe's tasks say, or what the prompts"
        " were trained with",
    )
    max_output_length: int = setting(64, "longest greedy output", unit="tokens", gt=0)
    precision: Literal["fp32", "bf16"] = setting("bf16", "precision of matrix products")
    baselines: bool = setting(True, "also score the majority class and the frozen T5 with no prompt")

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

    def scored(self, task: TaskSettings) -> TaskSettings:
        """The task of a prompt with the metrics that are asked for."""
        return task.model_copy(update={"metrics": self.metrics.get(task.name, task.metrics)})


STAGES: dict[str, type[StageSettings]] = {
    cls.kind: cls
    for cls in (
        PrepareSettings,
        SpanCorruptSettings,
        LMAdaptSettings,
        SentinelSettings,
        PromptTuneSettings,
        EvaluateSettings,
    )
}
