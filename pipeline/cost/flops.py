"""What a stage would take: parameters, tokens, FLOPs, memory. Arithmetic on shapes; nothing is loaded.

FLOPs count matrix products as two per multiply-add: forward 1×, the gradient of activations 1×, the gradient of weights
1×. A frozen T5 needs no gradient of its weights. Attention's own products are included, padding is not. Of a task the
lengths are the longest that the settings allow, so what it takes is at most that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.adaptation import LMAdaptConfig, SentinelConfig, SpanCorruptConfig
from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import Cell, InputRef, Recipe
from t5_pipeline.config.stage import ExecutionConfig, LogitsConfig, StageConfig, TrainingConfig
from t5_pipeline.config.tuning import LearningConfig, ModelTuneConfig, PromptMixtureConfig, SoftPromptConfig
from t5_pipeline.cost.activations import Microbatch
from t5_pipeline.cost.memory import Memory, Trained, training_memory
from t5_pipeline.data_prep.sampling.microbatching import CPU, GPU, min_padding_microbatches
from t5_pipeline.modeling.config import PRESETS, T5Config

T5_ROWS = 32_128
SCORED_AT_ONCE = 64  # rows: pipeline/evaluation/held_out.py BATCH_SIZE
TOKENS_OF_A_LABEL = 4  # with EOS; longer ones are a matter of the vocabulary, which is not read here
_WIDTH_MULTIPLE = 8  # data_prep/sampling/batches.py


@dataclass(frozen=True)
class Work:
    """What one step of one cell goes through, over all processes: tokens (at most, see above) and FLOPs."""

    tokens: int
    flops: float


def shape_of(recipe: Recipe, run_dir: RunDir, cell: Cell) -> T5Config | None:
    """The T5 that a cell works on, followed back through the recipe to a preset, a directory or `init`."""
    settings = cell.settings
    if isinstance(settings, SpanCorruptConfig) and settings.init is not None:
        return T5Config(vocab_size=_rows(recipe, cell.inputs["tokens"]), **settings.init.model_dump())
    ref = cell.inputs.get("model")
    if ref is None:
        return None
    if ref.stage is not None:
        makers = recipe.stages[ref.stage]
        return shape_of(recipe, run_dir, next((c for c in makers if c.id == ref.cell), makers[0]))
    config = Path(str(ref.path)) / "config.json"
    if config.is_file():
        return T5Config.from_config(json.loads(config.read_text(encoding="utf-8")), str(config))
    return PRESETS.get(str(ref.path))


def _rows(recipe: Recipe, tokens: InputRef) -> int:
    """Embedding rows of a new model: the vocabulary and 100 sentinels, rounded up to a multiple of 128."""
    if tokens.stage is None:
        return T5_ROWS
    prepare = recipe.stages[tokens.stage][0].settings
    assert isinstance(prepare, PrepareConfig)
    return T5_ROWS if prepare.vocabulary else -(-(prepare.vocabulary_size + 100) // 128) * 128


def trained_numbers(settings: StageConfig, shape: T5Config) -> int | None:
    """How many numbers a stage trains: 0 where it trains none, None where another library decides."""
    if isinstance(settings, SoftPromptConfig):
        return components(settings) * settings.prompt_length * shape.d_model
    if isinstance(settings, (SpanCorruptConfig, LMAdaptConfig, ModelTuneConfig)):
        return shape.parameters
    return 0 if isinstance(settings, SentinelConfig) else None


def components(settings: StageConfig) -> int:
    """How often each input is read: once with every prompt of a mixture."""
    return settings.components if isinstance(settings, PromptMixtureConfig) else 1


def work(settings: TrainingConfig, shape: T5Config) -> Work | None:
    """What a step of one cell takes; None where another library decides."""
    lengths = example_lengths(settings)
    if trained_numbers(settings, shape) is None or not lengths:
        return None
    examples = settings.batch_size * components(settings)
    passes = 2 if isinstance(settings, SoftPromptConfig) else 3
    tokens = sum(inputs + targets for inputs, targets in lengths) / len(lengths)
    flops = sum(forward_flops(shape, inputs, targets) for inputs, targets in lengths) / len(lengths)
    return Work(round(examples * tokens), passes * examples * flops)


def example_lengths(settings: TrainingConfig) -> list[tuple[int, int]]:
    """Encoder and decoder lengths of an example; several that stand for a distribution, each as likely.

    Of text that is at least as long as an example; of a task the longest there may be.
    """
    if isinstance(settings, SoftPromptConfig):
        return [(settings.prompt_length + settings.max_input_length, longest_target(settings))]
    if isinstance(settings, ModelTuneConfig):
        return [(settings.max_input_length, longest_target(settings))]
    if isinstance(settings, SpanCorruptConfig):
        return [(settings.input_length, span_targets(settings))]
    if isinstance(settings, LMAdaptConfig):
        whole = settings.segment_length
        if settings.objective in ("lm", "full_lm"):
            return [(1, whole)]
        # The prefix is uniform over all lengths from about (1−2ρ)·ℓ on (packed pairs: ρ = ½).
        shortest = 1 - 2 * settings.prefix_density
        parts = [shortest + (1 - shortest) * (i + 0.5) / 8 for i in range(8)]
        return [(round(part * whole), whole - round(part * whole)) for part in parts]
    return []


def longest_target(settings: LearningConfig) -> int:
    """Tokens of the longest target at most: a label's characters, the space before it and EOS, if there are labels."""
    tasks = settings.made_for()
    if not all(task.labels for task in tasks):
        return settings.max_target_length
    return min(settings.max_target_length, max(len(label) for task in tasks for label in task.labels or []) + 2)


def span_targets(settings: SpanCorruptConfig) -> int:
    """Target tokens of span corruption.

    >>> span_targets(SpanCorruptConfig(model="t5-small", tokens="shards", steps=1, input_length=512))
    114
    """

    def lengths(tokens: int) -> tuple[int, int]:  # with n of them hidden in s spans: T − n + s + 1 and n + s + 1
        hidden = min(max(round(tokens * settings.noise_density), 1), tokens - 1)
        spans = min(max(1, round(hidden / settings.mean_span_length)), hidden, tokens - hidden)
        return tokens - hidden + spans + 1, hidden + spans + 1

    tokens = settings.input_length - 1
    while lengths(tokens + 1)[0] <= settings.input_length:
        tokens += 1
    return lengths(tokens)[1]


def forward_flops(shape: T5Config, inputs: int, targets: int) -> float:
    """FLOPs of one example's forward pass at these lengths.

    >>> f"{forward_flops(PRESETS['google/t5-v1_1-base'], 512, 512):.2e}"
    '2.57e+11'
    """
    width, inner = shape.d_model, shape.num_heads * shape.d_kv
    projections = 4 * width * inner
    feed_forward = (3 if shape.gated else 2) * width * shape.d_ff
    encoder = shape.num_layers * (inputs * (projections + feed_forward) + 2 * inputs * inputs * inner)
    cross = targets * 2 * width * inner + inputs * 2 * width * inner + 2 * targets * inputs * inner
    own = targets * (projections + feed_forward) + 2 * targets * targets * inner
    decoder = shape.num_decoder_layers * (own + cross)
    head = targets * width * shape.vocab_size
    return 2.0 * (encoder + decoder + head)


def memory(together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig) -> Memory | None:
    """Memory of each device while a stage trains; None where another library decides.

    Args:
        together: the cells of one job: prompts that train in one batch, or a single cell.
    """
    trained = trained_together(together, shape, launch)
    return None if trained is None else training_memory(shape, trained, launch)


def trained_together(together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig) -> Trained | None:
    """What the cells of one job train, and its largest microbatch."""
    settings = together[0]
    numbers = [trained_numbers(cell, shape) for cell in together]
    if None in numbers:
        return None
    batch = sum(cell.batch_size for cell in together)
    packed = False
    if isinstance(settings, LMAdaptConfig):
        packed = settings.packing
        if packed and settings.objective == "packed_pairs":
            batch = -(-batch // 2)  # the two examples of a pair fill one row
    share = -(-batch // launch.processes)
    parts = microbatches(together, share, launch.cpu)
    all_of_them = [
        Microbatch(
            rows=rows * components(settings),
            inputs=inputs,
            targets=targets,
            prompt=_prompt(together),
            bf16=settings.precision == "bf16",
            dropout=settings.dropout > 0,
            packed=packed,
            recompute=isinstance(settings, ExecutionConfig) and settings.recompute,
            cpu=launch.cpu,
            logits=settings.logits_precision if isinstance(settings, LogitsConfig) else "whole",
        )
        for rows, inputs, targets in parts
    ]
    selects = isinstance(settings, LearningConfig) and settings.select == "best"
    labels: list[int] = [len(task.labels or []) for cell in together for task in cell.made_for()]
    each = [
        Trained(
            m,
            sum(number or 0 for number in numbers),
            settings.optimizer,
            accumulates=len(parts) > 1,
            keeps_best=selects,
            scoring=replace(m, rows=SCORED_AT_ONCE) if selects else None,
            label_tokens=TOKENS_OF_A_LABEL * max(labels) if all(labels) and labels else 0,
        )
        for m in all_of_them
    ]
    return max(each, key=lambda trained: training_memory(shape, trained, launch).peak)


def microbatches(together: Sequence[TrainingConfig], share: int, cpu: bool) -> list[tuple[int, int, int]]:
    """Each microbatch of a process's share of rows: (rows, encoder, decoder) positions, prompt and padding included.

    Of a task, and of rows that are packed from short documents, each row may be as long as the longest. Prefixes are
    uniform and text is as long as an example: the lengths are those that divide them evenly, and microbatches take rows
    in the order of their length, so that with long inputs go short targets.
    """
    settings = together[0]
    if isinstance(settings, LMAdaptConfig) and settings.objective == "prefix_lm" and not settings.packing:
        whole, shortest = settings.segment_length, 1 - 2 * settings.prefix_density
        prefixes = [whole * (shortest + (1 - shortest) * (i + 0.5) / share) for i in range(share)]
        lengths = [(_padded(prefix), _padded(whole - prefix)) for prefix in prefixes]
    else:
        inputs, targets = zip(*(_longest(cell) for cell in together), strict=True)
        lengths = [(max(inputs), max(targets))] * share
    if settings.microbatch_size:
        size = settings.microbatch_size
        cuts = [(begin, min(begin + size, share)) for begin in range(0, share, size)]
    else:
        inputs_N, targets_N = zip(*lengths, strict=True)
        cuts = min_padding_microbatches(inputs_N, targets_N, CPU if cpu else GPU)
    found = []
    for begin, end in cuts:
        inputs_n, targets_n = zip(*lengths[begin:end], strict=True)
        found.append((end - begin, _prompt(together) + max(inputs_n), max(targets_n)))
    return found


def _prompt(together: Sequence[TrainingConfig]) -> int:
    """Rows of the longest prompt; 0 where the whole T5 trains."""
    return max((cell.prompt_length for cell in together if isinstance(cell, SoftPromptConfig)), default=0)


def _longest(settings: TrainingConfig) -> tuple[int, int]:
    """Padded lengths of the longest example, without a prompt."""
    match settings:
        case LearningConfig():
            return _padded(settings.max_input_length), _padded(longest_target(settings))
        case SpanCorruptConfig():
            return _padded(settings.input_length), _padded(span_targets(settings))
        case LMAdaptConfig():
            without_inputs = settings.objective in ("lm", "full_lm")
            return _padded(1 if without_inputs else settings.segment_length), _padded(settings.segment_length)
    raise AssertionError(settings.kind)


def _padded(length: float) -> int:
    return -(-math.ceil(length) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
