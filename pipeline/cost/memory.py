"""Peak memory of a training stage on one device: weights, gradients, optimizer state and activations.

These are not at their largest at the same time: gradients grow while the backward pass frees activations. The peak is
therefore the maximum over the moments of a step:

    loss       activations, and the buffers of the loss on its way to the gradient of the logits, which it saves
    head       all activations, and the gradient of the output matrix (other gradients only of earlier microbatches)
    decoder    activations without the logits, the gradient of the embedding, and a recomputed block
    encoder    the encoder's activations, and the gradients of decoder, output matrix and embedding
    attention  the same, in the encoder's last attention
    end        all gradients, and a second one of the embedding
    sum        all gradients, and the flat bucket in which ranks all-reduce them
    update     all gradients, and the optimizer's temporaries
    scoring    with `select: best`: inference on a validation batch
    probe      with `lm_adapt.probe`: the largest of these moments of the probe's prompts, with their optimizer state

CUDA graphs keep the largest of the first six from then on, in addition to the last four. ZeRO begins with the whole
model on each device.

The engine decides which parts are replicated and which are sharded. Weights, gradients and moments are fp32; a frozen
T5 with bf16 products is bf16. Checked against measured peaks on CPUs (docs/performance.md), not on GPUs or with
sharding engines, for which the default buffers of DeepSpeed and FSDP2 are added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from t5_pipeline.config.launch import REPLICATED, LaunchConfig
from t5_pipeline.cost.activations import (
    Microbatch,
    attention_backward,
    inference_peak,
    loss_peak,
    output_copy,
    saved_activations,
)
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.limits import (
    FACTORED_FROM,
    REDUCED_ELEMENTS,
    REPLICATED_ELEMENTS,
    UPDATED_ELEMENTS,
    ZERO_BUCKET,
)

_FP32 = 4
_DEEPSPEED_LIVE = 1_000_000_000  # DeepSpeed's default stage3_max_live_parameters and stage3_max_reuse_distance


@dataclass(frozen=True)
class TrainingFootprint:
    """The facts of a training stage that decide its memory.

    Attributes:
        microbatch: the largest one.
        numbers: trained parameters: all of the T5, or those of prompts before a frozen one.
        accumulates: whether a step has several microbatches (gradient accumulation).
        cuda_graphs: whether microbatches are CUDA graphs, which keep their memory and gradients from step to step.
        kept: numbers of the best weights so far, which are kept until the end (`select: best`); 0 without.
        computed: numbers of the rows of reparametrized prompts, and of what they are computed from.
        scoring: the batch in which validation rows are scored; None without scores.
        label_tokens: target tokens scored for an example: all labels of a task, or the target of free text.
        probe: the prompts that are tuned on the current weights now and then; None without.
    """

    microbatch: Microbatch
    numbers: int
    optimizer: Literal["adafactor", "adamw"]
    accumulates: bool = False
    cuda_graphs: bool = False
    kept: int = 0
    computed: int = 0
    scoring: Microbatch | None = None
    label_tokens: int = 0
    probe: TrainingFootprint | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of one process; each part at its largest, and `peak`, the largest sum at any one time.

    Attributes:
        host: CPU memory beside the device: the best weights so far, and offloaded state.
        snapshot: CPU memory while a checkpoint is written: a copy of weights and moments. If the device is a CPU, host
            and snapshot add to the peak.
        loading: CPU memory while the model is read.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    host: int
    snapshot: int
    loading: int


def training_memory(shape: T5Config, footprint: TrainingFootprint, launch: LaunchConfig) -> Memory:
    """Memory of each process of a launch.

    >>> from t5_pipeline.modeling.presets import SIZES
    >>> eight = Microbatch(rows=8, inputs=512, targets=512, packed=True)
    >>> whole = TrainingFootprint(eight, SIZES["xl"].parameters, "adamw", accumulates=True)
    >>> for engine in ("ddp", "zero3"):
    ...     found = training_memory(SIZES["xl"], whole, LaunchConfig(engine, processes=8))
    ...     print(engine, *(f"{part / 2**30:.1f}" for part in (found.weights, found.gradients, found.optimizer)))
    ddp 10.6 10.9 21.2
    zero3 5.1 1.6 4.0
    """
    held = _persistent(shape, footprint, launch)
    activations, moments = _moments(shape, footprint, launch, held.gradients)
    peak = held.weights + held.gathered + held.optimizer + held.buffer + max(moments.values())
    loading = _FP32 * shape.parameters
    return Memory(
        weights=held.weights + held.gathered,
        gradients=held.gradients + max(held.buffer, _summed(footprint, launch, _largest(shape, footprint))),
        optimizer=held.optimizer,
        activations=activations,
        peak=max(peak, loading if launch.cpu else held.unsharded),
        host=held.host,
        snapshot=held.snapshot,
        loading=loading,
    )


@dataclass(frozen=True)
class PersistentMemory:
    """Bytes that stay allocated from step to step.

    Attributes:
        unsharded: weights on a device before the engine shards them there; 0 if it does not.
        gathered: whole weights beside the shards, at most.
        buffer: bucket through which gradients are sent to other ranks.
    """

    weights: int
    unsharded: int
    gathered: int
    gradients: int
    buffer: int
    optimizer: int
    host: int
    snapshot: int


def _persistent(shape: T5Config, footprint: TrainingFootprint, launch: LaunchConfig) -> PersistentMemory:
    m, N, n = footprint.microbatch, footprint.numbers, launch.processes
    zero = launch.engine.startswith("zero")
    stage = int(launch.engine[-1]) if zero else 3 if launch.engine == "fsdp2" else 0
    moments = moments_bytes(shape, footprint)
    # ZeRO updates a copy of the weights of its partition, although they are fp32 already.
    optimizer = moments + (_FP32 * N if zero else 0)
    element = 2 if m.bf16 and m.frozen else _FP32
    replicated = _replicates_prompts(footprint, launch)

    def shared(size: int, *, from_stage: int) -> int:
        return -(-size // n) if stage >= from_stage and not replicated else size

    gradients, optimizer = shared(_FP32 * N, from_stage=2), shared(optimizer, from_stage=1)
    prompts = shared(_FP32 * N, from_stage=3) if m.frozen else 0
    weights = -(-element * shape.parameters // n) if stage == 3 else element * shape.parameters
    host = shared(_FP32 * footprint.kept, from_stage=1)
    if launch.offload_optimizer and not replicated:  # the update runs on the host
        host, optimizer = host + optimizer + -(-_FP32 * N // n), 0
        gradients = 0 if stage >= 2 else gradients
    if launch.offload_parameters:
        host, weights = host + weights + (0 if replicated else prompts), prompts if replicated else 0
    else:
        weights += prompts
    weights += _FP32 * footprint.computed
    return PersistentMemory(
        weights=weights,
        unsharded=element * shape.parameters if zero else 0,
        gathered=_gathered(shape, launch, element) if stage == 3 else 0,
        gradients=gradients,
        buffer=_buffer(launch, N, _largest(shape, footprint)) if stage and not replicated else 0,
        optimizer=optimizer,
        host=host,
        # Processes share the work of writing; the best weights so far are included.
        snapshot=-(-(_FP32 * (N + footprint.kept) + moments) // n),
    )


def _replicates_prompts(footprint: TrainingFootprint, launch: LaunchConfig) -> bool:
    """Whether FSDP2 replicates the trained prompts, on the device even with offloading."""
    return launch.engine == "fsdp2" and footprint.microbatch.frozen and footprint.numbers <= REPLICATED_ELEMENTS


def _moments(
    shape: T5Config, footprint: TrainingFootprint, launch: LaunchConfig, gradients: int
) -> tuple[int, dict[str, int]]:
    """Activations at their largest, and the bytes at each moment of a step beside weights and optimizer state."""
    m, largest = footprint.microbatch, _largest(shape, footprint)
    saved = saved_activations(shape, m)
    loss = saved.encoder + saved.decoder + loss_peak(shape, m)
    table = 0 if m.frozen else _FP32 * shape.vocab_size * shape.d_model
    # The gradient of the output matrix has the dtype of the product; the copy for the hidden states has been freed.
    head = output_copy(shape, m) + table
    if m.logits == "whole":  # the logits and their gradient
        head += _FP32 * m.rows * m.targets * shape.vocab_size
    residual = 2 * _FP32 * m.rows * m.inputs * shape.d_model
    in_encoder = saved.encoder + saved.encoder_block + residual
    # With a single microbatch there are no gradients at its loss, unless the engine keeps their memory.
    whole = launch.engine in REPLICATED
    before = gradients if footprint.accumulates or footprint.cuda_graphs or not whole else 0
    by_encoder = gradients if before or m.frozen else _FP32 * _after_encoder(shape)
    moments_here = not launch.offload_optimizer or _replicates_prompts(footprint, launch)
    moments = {
        "loss": before + loss,
        "head": before + saved.total + head,
        "decoder": before + table + saved.encoder + saved.decoder + saved.decoder_block,
        "encoder": by_encoder + table + in_encoder,
        "attention": by_encoder + table + in_encoder + attention_backward(shape, m),
        "end": gradients + table,
    }
    recorded = max(moments.values()) if footprint.cuda_graphs else 0
    left = max(gradients, recorded)
    moments["sum"] = left + _summed(footprint, launch, largest)
    moments["update"] = left + (_update(footprint, launch, largest) if moments_here else 0)
    if footprint.scoring is not None:
        moments["scoring"] = recorded + inference_peak(shape, footprint.scoring, footprint.label_tokens)
    recomputed = saved.encoder + max(saved.encoder_block, saved.decoder + saved.decoder_block)
    activations = max(loss, saved.total, recomputed)
    if footprint.probe is not None:
        of_probe, peak = _probe(shape, footprint.probe, launch)
        moments["probe"] = recorded + peak
        activations = max(activations, of_probe)
    return activations, moments


def _probe(shape: T5Config, probe: TrainingFootprint, launch: LaunchConfig) -> tuple[int, int]:
    """Activations of a probe, and its peak beside weights and optimizer state of the T5, without its gradients.

    Every process computes the whole probe by itself.
    """
    rows = gradients = _FP32 * probe.numbers
    activations, moments = _moments(shape, probe, replace(launch, engine="one", processes=1), gradients)
    return activations, rows + moments_bytes(shape, probe) + max(moments.values())


def moments_bytes(shape: T5Config, footprint: TrainingFootprint) -> int:
    """Bytes of optimizer state.

    >>> from t5_pipeline.modeling.presets import SIZES
    >>> base, m = SIZES["base"], Microbatch(1, 8, 8)
    >>> footprints = (TrainingFootprint(m, base.parameters, name) for name in ("adamw", "adafactor"))
    >>> [round(moments_bytes(base, footprint) / base.parameters, 4) for footprint in footprints]
    [8.0, 0.0087]
    """
    if footprint.optimizer == "adamw":
        return 2 * _FP32 * footprint.numbers
    if footprint.microbatch.frozen:  # prompts are not factored
        return _FP32 * footprint.numbers
    return _FP32 * sum(
        count * (rows + columns if min(rows, columns) >= FACTORED_FROM else rows * columns)
        for count, rows, columns in shape.matrices()
    )


def _largest(shape: T5Config, footprint: TrainingFootprint) -> int:
    """Elements of the largest trained tensor."""
    if footprint.microbatch.frozen:
        return footprint.numbers
    return max(rows * columns for _, rows, columns in shape.matrices())


def _after_encoder(shape: T5Config) -> int:
    """Elements of the gradients that exist when the backward pass reaches the encoder, without the embedding's."""
    return shape.num_decoder_layers * _decoder_block(shape) + (0 if shape.tied else shape.vocab_size * shape.d_model)


def _decoder_block(shape: T5Config) -> int:
    """Elements of a decoder block's matrices."""
    return 8 * shape.d_model * shape.num_heads * shape.d_kv + (3 if shape.gated else 2) * shape.d_model * shape.d_ff


def _gathered(shape: T5Config, launch: LaunchConfig, element: int) -> int:
    """Whole weights beside the shards, at most."""
    if launch.engine == "zero3":
        return element * min(shape.parameters, _DEEPSPEED_LIVE)
    if not launch.reshard:
        return element * shape.parameters
    # Embedding and output matrix are gathered for the whole pass; blocks one ahead of the computation.
    return element * ((1 if shape.tied else 2) * shape.vocab_size * shape.d_model + 2 * _decoder_block(shape))


def _buffer(launch: LaunchConfig, numbers: int, largest: int) -> int:
    """Bucket through which gradients are sent to the rank that keeps them."""
    if launch.engine == "fsdp2":
        return _FP32 * largest
    return _FP32 * min(numbers, ZERO_BUCKET)


def _summed(footprint: TrainingFootprint, launch: LaunchConfig, largest: int) -> int:
    """Flat bucket in which ranks all-reduce gradients."""
    return _FP32 * max(largest, min(footprint.numbers, REDUCED_ELEMENTS)) if launch.engine == "ddp" else 0


def _update(footprint: TrainingFootprint, launch: LaunchConfig, largest: int) -> int:
    """Temporaries of an optimizer.

    AdamW: √v̂, on a GPU for all weights together, on a CPU for one tensor at a time, where it is copied once. Adafactor:
    g² and the update, for one large tensor or many small ones at a time.
    """
    N, n = footprint.numbers, launch.processes
    whole = launch.engine in REPLICATED or _replicates_prompts(footprint, launch)
    mine = N if whole else -(-N // n)
    if footprint.optimizer == "adamw":
        flat = launch.engine.startswith("zero")  # one tensor for all of a partition
        return 2 * _FP32 * (mine if flat else min(mine, largest)) if launch.cpu else _FP32 * mine
    tensors = 3 if footprint.microbatch.frozen else 2
    return tensors * _FP32 * min(mine, max(largest, min(N, UPDATED_ELEMENTS)))
