"""Memory of a stage that trains: weights, gradients, optimizer state and activations of one device, and its peak.

The parts do not all stand at their largest at once: gradients come up while the backward pass frees activations. The
peak is therefore that of the moments of a step at which something is at its largest:

    loss       activations, and what the loss makes on its way to the gradient of the logits, which it keeps
    head       all activations, and a whole gradient of the output matrix (gradients so far: of earlier microbatches)
    encoder    the encoder's activations, and the gradients of decoder, output matrix and embedding
    end        all gradients, and one more of the embedding, which gives rise to two
    sum        all gradients, and the flat bucket in which ranks exchange them
    update     all gradients, and what the optimizer makes on its way
    scoring    where validation scores choose the checkpoint: a forward pass of whole batches, nothing kept

An engine decides what of it every device holds whole, and what it holds one n-th of. Weights, gradients and moments are
fp32, a frozen T5 that computes in bf16 is bf16. On a CPU this was checked against measured peaks (docs/performance.md);
for GPUs and sharding engines it is the same arithmetic, with the buffers that DeepSpeed and FSDP2 have by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.cost.activations import Microbatch, at_attention, kept, of_loss, weight_copy, without_gradient
from t5_pipeline.modeling.config import T5Config

_FP32 = 4
_AT_ONCE = 1 << 24  # numbers: pipeline/training/optimizers.py ELEMENTS_AT_ONCE and ranks.py BUCKET
_FACTORED_FROM = 128  # rows and columns of a matrix that Adafactor keeps means of instead of a number for each weight
_DEEPSPEED_BUCKET = 1 << 26  # elements, or all that train (training/engines/zero.py)
_WHOLE_BESIDE_FROZEN = 1 << 26  # numbers: training/engines/fsdp2.py
_DEEPSPEED_LIVE = 1_000_000_000  # stage3_max_live_parameters, and no sooner let go (stage3_max_reuse_distance)


@dataclass(frozen=True)
class Trained:
    """What a stage trains, as far as memory goes.

    numbers: how many train: all of the T5, or those of prompts before a frozen one.
    accumulates: a step has several microbatches, so all but the first one find gradients there.
    keeps_best: a copy of the best weights so far is kept for the end (`select: best`).
    scoring: the batch in which validation rows are scored; None where no score is taken.
    """

    microbatch: Microbatch
    numbers: int
    optimizer: Literal["adafactor", "adamw"]
    accumulates: bool = False
    keeps_best: bool = False
    scoring: Microbatch | None = None
    label_tokens: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, each part at its largest; `peak` is the largest sum at any one time.

    host: memory of the CPU beside it, for each process: the best weights so far, and what is offloaded.
    snapshot: the same while a checkpoint is written: a copy of weights and moments. Where the device is a CPU, host and
        snapshot come on top of the peak.
    loading: what a process holds while it reads the model, in CPU memory.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    host: int
    snapshot: int
    loading: int


def training_memory(shape: T5Config, trained: Trained, launch: LaunchConfig) -> Memory:
    """Memory of each device of a launch.

    >>> from t5_pipeline.modeling.config import SIZES
    >>> eight = Microbatch(rows=8, inputs=512, targets=512, packed=True)
    >>> whole = Trained(eight, SIZES["xl"].parameters, "adamw", accumulates=True)
    >>> for engine in ("ddp", "zero3"):
    ...     found = training_memory(SIZES["xl"], whole, LaunchConfig(engine, processes=8))
    ...     print(engine, *(f"{part / 2**30:.1f}" for part in (found.weights, found.gradients, found.optimizer)))
    ddp 10.6 10.9 21.2
    zero3 5.1 1.6 4.0
    """
    held = _held(shape, trained, launch)
    activations, of_step = _step(shape, trained, launch, held.gradients)
    peak = held.weights + held.gathered + held.optimizer + held.buffer + max(of_step.values())
    loading = _FP32 * shape.parameters
    return Memory(
        weights=held.weights + held.gathered,
        gradients=held.gradients + max(held.buffer, of_step["sum"] - held.gradients),
        optimizer=held.optimizer,
        activations=activations,
        peak=max(peak, loading) if launch.cpu else peak,
        host=held.host,
        snapshot=held.snapshot,
        loading=loading,
    )


@dataclass(frozen=True)
class _Held:
    """What stands from step to step, once there are gradients.

    gathered: whole weights beside the shards, at most. buffer: what gradients pass through on their way to other ranks.
    """

    weights: int
    gathered: int
    gradients: int
    buffer: int
    optimizer: int
    host: int
    snapshot: int


def _held(shape: T5Config, trained: Trained, launch: LaunchConfig) -> _Held:
    m, N, n = trained.microbatch, trained.numbers, launch.processes
    zero = launch.engine.startswith("zero")
    stage = int(launch.engine[-1]) if zero else 3 if launch.engine == "fsdp2" else 0
    moments = moments_bytes(shape, trained)
    # ZeRO steps on a copy of the weights of its partition, in fp32 as they are.
    optimizer = moments + (_FP32 * N if zero else 0)
    element = 2 if m.bf16 and m.frozen else _FP32
    apart = _prompts_stay_whole(trained, launch)

    def shared(size: int, *, from_stage: int) -> int:
        return -(-size // n) if stage >= from_stage and not apart else size

    gradients, optimizer = shared(_FP32 * N, from_stage=2), shared(optimizer, from_stage=1)
    prompts = shared(_FP32 * N, from_stage=3) if m.frozen else 0
    weights = -(-element * shape.parameters // n) if stage == 3 else element * shape.parameters
    host = shared(_FP32 * N, from_stage=1) if trained.keeps_best else 0
    if launch.offload_optimizer and not apart:  # the step is made there, of gradients that are there
        host, optimizer = host + optimizer + -(-_FP32 * N // n), 0
        gradients = 0 if stage >= 2 else gradients
    if launch.offload_parameters:
        host, weights = host + weights + (0 if apart else prompts), prompts if apart else 0
    else:
        weights += prompts
    return _Held(
        weights=weights,
        gathered=_gathered(shape, launch, element) if stage == 3 else 0,
        gradients=gradients,
        buffer=_buffer(launch, N, _largest(shape, trained)) if stage and not apart else 0,
        optimizer=optimizer,
        host=host,
        # The processes share what all of them hold; the best weights so far are part of it.
        snapshot=-(-(_FP32 * N * (2 if trained.keeps_best else 1) + moments) // n),
    )


def _prompts_stay_whole(trained: Trained, launch: LaunchConfig) -> bool:
    """Whether FSDP2 leaves what trains whole on every device, and in its memory whatever is offloaded."""
    return launch.engine == "fsdp2" and trained.microbatch.frozen and trained.numbers <= _WHOLE_BESIDE_FROZEN


def _step(shape: T5Config, trained: Trained, launch: LaunchConfig, gradients: int) -> tuple[int, dict[str, int]]:
    """Activations at their largest, and what each moment of a step holds beside weights and moments."""
    m, N, largest = trained.microbatch, trained.numbers, _largest(shape, trained)
    saved = kept(shape, m)
    loss = saved.encoder + saved.decoder + of_loss(shape, m)
    table = 0 if m.frozen else _FP32 * shape.vocab_size * shape.d_model
    # The gradient of the output matrix comes in the dtype of the product, as the copy that makes that of the hidden
    # states has gone.
    head = max(weight_copy(shape, m), table + (weight_copy(shape, m) if table else 0))
    if m.logits == "whole":  # the gradient of the logits is there beside them
        head += _FP32 * m.rows * m.targets * shape.vocab_size
    residual = 2 * _FP32 * m.rows * m.inputs * shape.d_model
    in_encoder = saved.encoder + saved.encoder_block + residual
    # With one microbatch there are no gradients yet at its loss, unless an engine keeps their memory.
    whole = launch.engine in ("one", "ddp")
    before = gradients if trained.accumulates or not whole else 0
    by_encoder = gradients if before or m.frozen else _FP32 * _after_encoder(shape)
    moments_here = not launch.offload_optimizer or _prompts_stay_whole(trained, launch)
    summed = _FP32 * max(largest, min(N, _AT_ONCE)) if launch.engine == "ddp" else 0
    of_step = {
        "loss": before + loss,
        "head": before + saved.total + head,
        "decoder": before + table + saved.encoder + saved.decoder + saved.decoder_block,
        "encoder": by_encoder + table + in_encoder,
        "attention": by_encoder + table + in_encoder + at_attention(shape, m),
        "end": gradients + table,
        "sum": gradients + summed,
        "update": gradients + (_update(trained, launch, largest) if moments_here else 0),
    }
    if trained.scoring is not None:
        of_step["scoring"] = without_gradient(shape, trained.scoring, trained.label_tokens)
    recomputed = saved.encoder + max(saved.encoder_block, saved.decoder + saved.decoder_block)
    return max(loss, saved.total, recomputed), of_step


def moments_bytes(shape: T5Config, trained: Trained) -> int:
    """Optimizer state of all that trains.

    >>> from t5_pipeline.modeling.config import SIZES
    >>> base, m = SIZES["base"], Microbatch(1, 8, 8)
    >>> all_of_it = (Trained(m, base.parameters, name) for name in ("adamw", "adafactor"))
    >>> [round(moments_bytes(base, trained) / base.parameters, 4) for trained in all_of_it]
    [8.0, 0.0087]
    """
    if trained.optimizer == "adamw":
        return 2 * _FP32 * trained.numbers
    if trained.microbatch.frozen:  # prompts are not factored
        return _FP32 * trained.numbers
    return _FP32 * sum(
        count * (rows + columns if min(rows, columns) >= _FACTORED_FROM else rows * columns)
        for count, rows, columns in matrices(shape)
    )


def matrices(shape: T5Config) -> Iterator[tuple[int, int, int]]:
    """How many there are of each kind of weight: (count, rows, columns); norms are matrices of one row.

    >>> sum(count * rows * columns for count, rows, columns in matrices(T5Config())) == T5Config().parameters
    True
    """
    D, E, L, M = shape.d_model, shape.num_heads * shape.d_kv, shape.num_layers, shape.num_decoder_layers
    yield (1 if shape.tied else 2), shape.vocab_size, D
    yield 4 * (L + 2 * M), D, E
    yield (3 if shape.gated else 2) * (L + M), D, shape.d_ff
    yield 2, shape.relative_attention_num_buckets, shape.num_heads
    yield 2 * L + 3 * M + 2, 1, D


def _largest(shape: T5Config, trained: Trained) -> int:
    """Numbers of the largest tensor that trains."""
    if trained.microbatch.frozen:
        return trained.numbers
    return max(rows * columns for _, rows, columns in matrices(shape))


def _after_encoder(shape: T5Config) -> int:
    """Numbers whose gradient is there when the backward pass comes to the encoder, the embedding apart."""
    D, E = shape.d_model, shape.num_heads * shape.d_kv
    block = 8 * D * E + (3 if shape.gated else 2) * D * shape.d_ff
    return shape.num_decoder_layers * block + (0 if shape.tied else shape.vocab_size * D)


def _gathered(shape: T5Config, launch: LaunchConfig, element: int) -> int:
    """Whole weights that stand beside the shards, at most."""
    P, D, E = shape.parameters, shape.d_model, shape.num_heads * shape.d_kv
    if launch.engine == "zero3":
        return element * min(P, _DEEPSPEED_LIVE)
    if not launch.reshard:
        return element * P
    # Embedding and output matrix are gathered for the whole pass; of blocks the one that computes and the next.
    block = 8 * D * E + (3 if shape.gated else 2) * D * shape.d_ff
    return element * ((1 if shape.tied else 2) * shape.vocab_size * D + 2 * block)


def _buffer(launch: LaunchConfig, numbers: int, largest: int) -> int:
    """What gradients pass through on their way to the rank that keeps them."""
    if launch.engine == "fsdp2":
        return _FP32 * largest
    return _FP32 * min(numbers, _DEEPSPEED_BUCKET)


def _update(trained: Trained, launch: LaunchConfig, largest: int) -> int:
    """What an optimizer makes on its way.

    AdamW √v̂: on a GPU of all weights together, on a CPU of one tensor after another, and once more divided. Adafactor
    g² and the update, of a large tensor or many small ones at a time.
    """
    N, n = trained.numbers, launch.processes
    whole = launch.engine in ("one", "ddp") or _prompts_stay_whole(trained, launch)
    mine = N if whole else -(-N // n)
    if trained.optimizer == "adamw":
        flat = launch.engine.startswith("zero")  # one tensor for all of a partition
        return 2 * _FP32 * (mine if flat else min(mine, largest)) if launch.cpu else _FP32 * mine
    tensors = 3 if trained.microbatch.frozen else 2
    return tensors * _FP32 * min(mine, max(largest, min(N, _AT_ONCE)))
