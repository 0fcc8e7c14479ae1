"""What a stage would take: parameters, tokens, FLOPs, memory, disk. Arithmetic on shapes; nothing is loaded.

FLOPs count matrix products as two per multiply-add, of the padded lengths: forward 1×, the gradient of activations 1×,
the gradient of weights 1×. A frozen T5 needs no gradient of its weights. Attention's own products are included.
Memory is that of one device which holds the whole model, with activations estimated from the tensors that autograd
keeps; none of it has been checked against measured peaks yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from data_prep.cuts import GPU
from pipeline.architecture import PRESETS, T5Shape
from pipeline.recipe import Cell, InputRef, Recipe
from pipeline.run_dir import RunDir
from pipeline.settings import (
    LanguageModelSettings,
    LMAdaptSettings,
    PrepareSettings,
    SentinelSettings,
    SpanCorruptSettings,
)
from pipeline.stage_settings import TrainingSettings
from pipeline.tuning_settings import ModelTuneSettings, PeftTuneSettings, PromptMixtureSettings, PromptTuneSettings

T5_ROWS = 32_128


@dataclass(frozen=True)
class Estimate:
    """What one cell takes; None where it cannot be known before something else has run.

    tokens: padded encoder and decoder tokens over all steps. flops: over all steps. Bytes everywhere else.
    """

    parameters: int | None = None
    trained: int | None = None
    tokens: int | None = None
    flops: float | None = None
    weights_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_bytes: int | None = None
    activations_bytes: int | None = None
    disk_bytes: int | None = None

    @property
    def memory_bytes(self) -> int | None:
        known = (self.weights_bytes, self.gradients_bytes, self.optimizer_bytes, self.activations_bytes)
        return None if self.weights_bytes is None else sum(part or 0 for part in known)


def shape_of(recipe: Recipe, run_dir: RunDir, cell: Cell) -> T5Shape | None:
    """The T5 that a cell works on, followed back through the recipe to a preset, a directory or `init`."""
    settings = cell.settings
    if isinstance(settings, SpanCorruptSettings) and settings.init is not None:
        return T5Shape(vocab_size=_rows(recipe, cell.inputs["tokens"]), **settings.init.model_dump())
    ref = cell.inputs.get("model")
    if ref is None:
        return None
    if ref.stage is not None:
        return shape_of(recipe, run_dir, recipe.stages[ref.stage][0])
    config = Path(str(ref.path)) / "config.json"
    if config.is_file():
        return T5Shape.from_config(json.loads(config.read_text(encoding="utf-8")), str(config))
    return PRESETS.get(str(ref.path))


def _rows(recipe: Recipe, tokens: InputRef) -> int:
    """Embedding rows of a new model: the vocabulary and 100 sentinels, rounded up to a multiple of 128."""
    if tokens.stage is None:
        return T5_ROWS
    prepare = recipe.stages[tokens.stage][0].settings
    assert isinstance(prepare, PrepareSettings)
    return T5_ROWS if prepare.vocabulary else -(-(prepare.vocabulary_size + 100) // 128) * 128


def estimate(cell: Cell, shape: T5Shape | None, company: int = 1) -> Estimate:
    """Estimate one cell.

    Args:
        company: prompts that train together on one frozen T5; the batch of a step grows with it.
    """
    settings = cell.settings
    if shape is None:
        return Estimate()
    if isinstance(settings, SentinelSettings):
        return Estimate(shape.parameters, 0, disk_bytes=4 * shape.parameters)
    if not isinstance(settings, TrainingSettings):
        return Estimate(shape.parameters)
    inputs, targets, trained = _lengths(settings, shape)
    if isinstance(settings, PeftTuneSettings):
        return Estimate(shape.parameters)  # PEFT's own arithmetic, which is not repeated here
    frozen = isinstance(settings, PromptTuneSettings)
    passes = 2 if frozen else 3
    batch = settings.batch_size * (settings.components if isinstance(settings, PromptMixtureSettings) else 1)
    micro = min(settings.microbatch_size or max(1, GPU.at_once // (inputs + targets)), batch * company)
    weight = 2 if frozen and settings.precision == "bf16" else 4
    moments = 8 * trained if settings.optimizer == "adamw" else (4 * trained if frozen else _factored(shape))
    published = len(getattr(settings, "keep_steps", ())) + 1
    checkpoint = 4 * trained + moments
    return Estimate(
        parameters=shape.parameters,
        trained=trained,
        tokens=settings.steps * batch * (inputs + targets),
        flops=float(settings.steps) * batch * passes * forward_flops(shape, inputs, targets),
        weights_bytes=weight * shape.parameters + (4 * trained * company if frozen else 0),
        gradients_bytes=4 * trained * (company if frozen else 1),
        optimizer_bytes=moments * (company if frozen else 1),
        activations_bytes=micro * activation_bytes(shape, inputs, targets, 2 if settings.precision == "bf16" else 4),
        disk_bytes=settings.keep_last * checkpoint + published * 4 * trained,
    )


def _lengths(settings: TrainingSettings, shape: T5Shape) -> tuple[int, int, int]:
    """Encoder length, decoder length, and how many numbers train."""
    if isinstance(settings, PromptTuneSettings):
        length = settings.max_input_length + settings.prompt_length
        components = settings.components if isinstance(settings, PromptMixtureSettings) else 1
        return length, settings.max_target_length, components * settings.prompt_length * shape.d_model
    if isinstance(settings, ModelTuneSettings):
        return settings.max_input_length, settings.max_target_length, shape.parameters
    assert isinstance(settings, LanguageModelSettings)
    if isinstance(settings, LMAdaptSettings):
        return settings.segment_length, settings.segment_length, shape.parameters
    assert isinstance(settings, SpanCorruptSettings)
    spans = settings.input_length * settings.noise_density / settings.mean_span_length
    targets = round(settings.input_length * settings.noise_density + 2 * spans) + 1
    return settings.input_length, targets, shape.parameters


def forward_flops(shape: T5Shape, inputs: int, targets: int) -> float:
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


def activation_bytes(shape: T5Shape, inputs: int, targets: int, element: int) -> int:
    """Bytes that autograd keeps for the backward pass of one example.

    Per block and position: the residual stream and its normalised copy (fp32 statistics keep the former so), queries,
    keys, values and the attention's output, the feed-forward's inner activations; and the logits in fp32, twice.
    """
    width, inner = shape.d_model, shape.num_heads * shape.d_kv
    norm = (4 + element) * width
    attention = 4 * inner * element + norm
    feed_forward = (4 if shape.gated else 2) * shape.d_ff * element + norm
    encoder = shape.num_layers * inputs * (attention + feed_forward)
    decoder = shape.num_decoder_layers * (targets * (2 * attention + feed_forward) + inputs * 2 * inner * element)
    return encoder + decoder + targets * shape.vocab_size * 8


def _factored(shape: T5Shape) -> int:
    """Adafactor's second moments: a row and a column of each matrix, and a number for each weight of a norm."""
    inner = shape.num_heads * shape.d_kv
    attention = 4 * (shape.d_model + inner)
    feed_forward = (3 if shape.gated else 2) * (shape.d_model + shape.d_ff)
    blocks = shape.num_layers * (attention + feed_forward) + shape.num_decoder_layers * (2 * attention + feed_forward)
    return 4 * (blocks + (1 if shape.tied else 2) * (shape.vocab_size + shape.d_model))
