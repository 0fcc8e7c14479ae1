"""Tokens, FLOPs and memory of a stage, computed from shapes without loading anything.

A multiply-add counts as two FLOPs. The forward pass, the gradient of activations and the gradient of weights take 1×
each; a frozen T5 has no gradient of weights. In the products of attention both factors are activations, so they take 3×
in any case. Padding is not counted. Examples of tasks are assumed to be as long as the settings allow, so their figures
are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.launch import REPLICATED, LaunchConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import Cell, Recipe
from t5_pipeline.config.training import ExecutionConfig, LogitsConfig, TrainingConfig
from t5_pipeline.config.tuning import LearningConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import read_published
from t5_pipeline.cost.activations import Microbatch
from t5_pipeline.cost.memory import Memory, TrainingFootprint, training_memory
from t5_pipeline.data_prep.sampling.batches import collate
from t5_pipeline.data_prep.sampling.microbatching import Device, device_of
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS, embedding_rows
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.limits import SCORED_EXAMPLES
from t5_pipeline.modeling.presets import shape_at

_LABEL_TOKENS = 4  # of a label, EOS included; the exact number needs the vocabulary, which is not read here


@dataclass(frozen=True)
class StepCost:
    """Tokens and FLOPs of one step of one cell, over all processes."""

    tokens: int
    flops: float


def shape_of(recipe: Recipe, run_dir: RunDir, cell: Cell) -> T5Config | None:
    """The T5 of a cell, traced through the recipe to a preset, a directory or `init`; None if unknown."""
    settings = cell.settings
    if isinstance(settings, SpanCorruptConfig) and settings.init is not None:
        return T5Config(vocab_size=_rows(recipe, cell), **settings.init.model_dump())
    ref = cell.inputs.get("model")
    if ref is None:
        return None
    if (maker := recipe.maker(ref)) is not None:
        return shape_of(recipe, run_dir, maker)
    return shape_at(locate_one("model", str(ref.path), settings.where("model")))


def _rows(recipe: Recipe, cell: Cell) -> int:
    """Embedding rows of a new model."""
    tokens = cell.inputs["tokens"]
    if tokens.stage is None:
        place = locate_one("tokens", str(tokens.path), cell.settings.where("tokens"))
        rows = read_published(place / "tokens.json").get("rows")
        if type(rows) is not int or not 0 < rows < 2**31:
            raise InputError(f"{place / 'tokens.json'}: is damaged; run `prepare` again to rebuild it")
        return rows
    maker = recipe.maker(tokens)
    if maker is None or not isinstance(maker.settings, PrepareConfig) or maker.settings.vocabulary:
        return T5Config().vocab_size
    return embedding_rows(maker.settings.vocabulary_size + SENTINELS)


SEGMENTS_PER_ROW = 1.14
"""Full segments that the examples in a packed row of T5 amount to, for documents like those of C4 (fidelity.md)."""


def step_cost(settings: TrainingConfig, shape: T5Config) -> StepCost | None:
    """Cost of one step of a run for a cell, the mean over the steps; None if another library decides what trains."""
    trials = settings.trained_together()
    if len(trials) > 1:
        costs = [cost for cost in (step_cost(trial, shape) for trial in trials) if cost is not None]
        share = settings.share_of_steps()
        return StepCost(round(share * sum(cost.tokens for cost in costs)), share * sum(cost.flops for cost in costs))
    lengths = [(settings.prompt_rows() + inputs, targets) for inputs, targets in settings.example_lengths()]
    if settings.trained_parameters(shape) is None or not lengths:
        return None
    examples: float = settings.batch_size * settings.readings()
    if isinstance(settings, LMAdaptConfig) and settings.batch_unit == "rows":
        examples *= SEGMENTS_PER_ROW
    tokens = sum(inputs + targets for inputs, targets in lengths) / len(lengths)
    of_each = [training_flops(shape, inputs, targets, settings.freezes_model) for inputs, targets in lengths]
    return StepCost(round(examples * tokens), examples * sum(of_each) / len(lengths))


def training_flops(shape: T5Config, inputs: int, targets: int, frozen: bool) -> float:
    """FLOPs of one example's forward and backward pass.

    The products of a frozen T5's weights have a gradient of the activations, but none of the weights; attention, whose
    operands are both activations, has two gradients either way.

    Args:
        frozen: whether only the encoder's input is trained.
    """
    forward = forward_flops(shape, inputs, targets)
    return 3 * forward - (forward - attention_flops(shape, inputs, targets) if frozen else 0)


def forward_flops(shape: T5Config, inputs: int, targets: int) -> float:
    """FLOPs of one example's forward pass.

    Args:
        inputs, targets: encoder and decoder tokens.

    >>> from t5_pipeline.modeling.presets import SIZES
    >>> f"{forward_flops(SIZES['base'], 512, 512):.2e}"
    '2.57e+11'
    """
    width, inner = shape.d_model, shape.num_heads * shape.d_kv
    projections = 4 * width * inner
    feed_forward = (3 if shape.gated else 2) * width * shape.d_ff
    encoder = shape.num_layers * inputs * (projections + feed_forward)
    cross = (targets + inputs) * 2 * width * inner
    decoder = shape.num_decoder_layers * (targets * (projections + feed_forward) + cross)
    head = targets * width * shape.vocab_size
    return 2.0 * (encoder + decoder + head) + attention_flops(shape, inputs, targets)


def attention_flops(shape: T5Config, inputs: int, targets: int) -> float:
    """FLOPs of the products of queries with keys and of weights with values in one example's forward pass."""
    encoder = shape.num_layers * inputs * inputs
    decoder = shape.num_decoder_layers * (targets * targets + targets * inputs)
    return 4.0 * shape.num_heads * shape.d_kv * (encoder + decoder)


def stage_memory(together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig) -> Memory | None:
    """Memory of each process while a stage trains; None if another library decides what trains.

    Args:
        together: the cells of one job: prompts that train in one batch, or a single cell.
    """
    footprint = training_footprint(together, shape, launch)
    return None if footprint is None else training_memory(shape, footprint, launch)


def training_footprint(
    together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig, adapts: LMAdaptConfig | None = None
) -> TrainingFootprint | None:
    """Footprint of the cells of one job with the microbatch that needs most memory.

    Args:
        adapts: the adaptation whose probe they are; its T5 is in fp32 and computes as in training.
    """
    numbers = [number for cell in together if (number := cell.trained_parameters(shape)) is not None]
    if len(numbers) < len(together):
        return None
    batch = sum(trial.batch_size for cell in together for trial in cell.at_once())
    together = [trial for cell in together for trial in cell.trained_together()]
    settings = together[0]
    packed = isinstance(settings, LMAdaptConfig) and settings.packing
    if isinstance(settings, LMAdaptConfig) and packed and settings.objective == "packed_pairs":
        batch = -(-batch // 2)  # the two examples of a pair fill one row
    kind = "cpu" if launch.cpu else "cuda"
    costs = device_of(kind, settings.precision, trains_weights=numbers[0] == shape.parameters)
    parts = microbatches(together, -(-batch // launch.processes), costs)
    selects = isinstance(settings, LearningConfig) and bool(settings.selects_by())
    probe, executed = None, adapts or settings
    if isinstance(settings, LMAdaptConfig) and settings.probe:
        probe = training_footprint(settings.probe_cells(settings.model), shape, replace(launch, processes=1), settings)
    labels = [len(task.labels or []) for cell in together for task in cell.made_for()]

    replicated = launch.engine in REPLICATED and adapts is None
    graphs = replicated and isinstance(settings, ExecutionConfig) and settings.uses_cuda_graphs(kind)

    def footprint(rows: int, inputs: int, targets: int) -> TrainingFootprint:
        microbatch = Microbatch(
            rows=rows * settings.readings(),
            inputs=inputs,
            targets=targets,
            prompt=_prompt_rows(together),
            bf16=settings.precision == "bf16",
            dropout=settings.dropout > 0,
            packed=packed,
            recompute=isinstance(executed, ExecutionConfig) and executed.recompute,
            fp32_weights=adapts is not None,
            cpu=launch.cpu,
            logits=settings.logits_precision if isinstance(settings, LogitsConfig) else "whole",
        )
        return TrainingFootprint(
            microbatch,
            sum(numbers),
            settings.optimizer,
            accumulates=len(parts) > 1,
            cuda_graphs=graphs,
            kept=sum(cell.published_parameters(shape) or 0 for cell in together) if selects else 0,
            computed=sum(cell.computed_parameters(shape) for cell in together),
            scoring=replace(microbatch, rows=_scored_together(together)) if selects or adapts else None,
            label_tokens=_LABEL_TOKENS * max(labels) if labels and all(labels) else settings.longest_example()[1],
            probe=probe,
        )

    return max(
        (footprint(*part) for part in dict.fromkeys(parts)),
        key=lambda found: training_memory(shape, found, launch).peak,
    )


def _scored_together(together: Sequence[TrainingConfig]) -> int:
    """Examples of a validation batch, which mixes the rows of all cells."""
    limits = [cell.validation_limit for cell in together if isinstance(cell, LearningConfig)]
    return min(SCORED_EXAMPLES, sum(limits)) if all(limits) else SCORED_EXAMPLES


def microbatches(together: Sequence[TrainingConfig], share: int, device: Device) -> list[tuple[int, int, int]]:
    """(rows, encoder positions, decoder positions) of each microbatch of a process, prompt and padding included.

    Rows of tasks, and packed rows, are as long as the longest. Prefixes are spaced evenly over their lengths; as
    microbatches are cut in order of length, those with long inputs have short targets.

    Args:
        share: rows of the process.
        device: costs of the process's device.
    """
    settings = together[0]
    if isinstance(settings, LMAdaptConfig) and settings.objective == "prefix_lm" and not settings.packing:
        whole, shortest = settings.segment_length, 1 - 2 * settings.prefix_density
        prefixes = [whole * (shortest + (1 - shortest) * (i + 0.5) / share) for i in range(share)]
        lengths = [(math.ceil(prefix), math.ceil(whole - prefix)) for prefix in prefixes]
    else:
        inputs, targets = zip(*(cell.longest_example() for cell in together), strict=True)
        lengths = [(max(inputs), max(targets))] * share
    batch = collate([(np.ones(inputs, np.int32), np.ones(targets, np.int32)) for inputs, targets in lengths])
    return [
        (len(part), _prompt_rows(together) + part.inputs_BS.shape[1], part.targets_BT.shape[1])
        for part in batch.microbatches(settings.microbatch_size, device)
    ]


def _prompt_rows(together: Sequence[TrainingConfig]) -> int:
    """Rows of the longest prompt; 0 if the whole T5 trains."""
    return max(cell.prompt_rows() for cell in together)
