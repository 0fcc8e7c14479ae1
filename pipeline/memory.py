"""Memory of a stage that trains: weights, gradients, optimizer state and activations of one device, and its peak.

The parts do not all stand at their largest at once: gradients come up while the backward pass frees activations. The
peak is therefore that of the moments of a step at which something is at its largest:

    loss       all activations, and the gradient of the logits            (gradients: of earlier microbatches)
    head       the same without the logits, and a whole gradient of the output matrix
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

from pipeline.activations import Microbatch, kept, without_gradient
from pipeline.architecture import T5Shape
from pipeline.launch_config import LaunchConfig

_FP32 = 4
_AT_ONCE = 1 << 24  # numbers: pipeline/training/optimizers.py ELEMENTS_AT_ONCE and ranks.py BUCKET
_FACTORED_FROM = 128  # rows and columns of a matrix that Adafactor keeps means of instead of a number for each weight
_DEEPSPEED_BUCKET = 500_000_000  # reduce_bucket_size
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

    host: memory of the CPU beside it, for each process: a checkpoint's snapshot while it is written, the best weights
        so far, and what is offloaded. Where the device is a CPU, that is the same memory: the process takes the sum.
    loading: what a process holds while it reads the model, on the CPU.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    host: int
    loading: int


def training_memory(shape: T5Shape, trained: Trained, launch: LaunchConfig) -> Memory:
    """Memory of each device of a launch.

    >>> from pipeline.architecture import SIZES
    >>> eight = Microbatch(rows=8, inputs=512, targets=512, packed=True)
    >>> whole = Trained(eight, SIZES["xl"].parameters, "adamw", accumulates=True)
    >>> for engine in ("ddp", "zero3"):
    ...     found = training_memory(SIZES["xl"], whole, LaunchConfig(engine, processes=8))
    ...     print(engine, *(f"{part / 2**30:.1f}" for part in (found.weights, found.gradients, found.optimizer)))
    ddp 10.6 10.9 21.2
    zero3 5.1 3.2 4.0
    """
    m, N, n = trained.microbatch, trained.numbers, launch.processes
    zero, fsdp = launch.engine.startswith("zero"), launch.engine == "fsdp2"
    stage = int(launch.engine[-1]) if zero else 3 if fsdp else 0
    P, largest = shape.parameters, _largest(shape, trained)

    held = (2 if m.bf16 and m.frozen else _FP32) * P
    whole = held + (_FP32 * N if m.frozen else 0)
    shard = -(-whole // n)
    gathered = _gathered(shape, launch, held // P) if stage == 3 else 0
    weights = shard if stage == 3 else whole

    gradients = -(-_FP32 * N // n) if stage >= 2 else _FP32 * N
    exchanged = _exchanged(launch, N, largest)

    moments = moments_bytes(shape, trained)
    master = _FP32 * N if zero else 0  # DeepSpeed steps on a copy of the weights, in fp32 as they are
    optimizer = -(-(moments + master) // n) if stage else moments

    host = -(-(_FP32 * N + moments) // (n if stage else 1))
    host += _FP32 * N // (n if stage else 1) if trained.keeps_best else 0
    if launch.offload_optimizer:
        # The step is made where the moments are; the gradients of the partition go there too.
        host, optimizer = host + optimizer + gradients, 0
        gradients = 0 if stage >= 2 else gradients
    if launch.offload_parameters:
        host, weights = host + weights, 0

    act = kept(shape, m)
    logits_gradient = _FP32 * m.rows * m.targets * shape.vocab_size
    base = weights + gathered + optimizer
    # With one microbatch there are no gradients yet at its loss, unless an engine keeps their memory.
    before = gradients if trained.accumulates or stage else 0
    table = 0 if m.frozen else _FP32 * shape.vocab_size * shape.d_model
    residual = 2 * _FP32 * m.rows * m.inputs * shape.d_model
    so_far = before or min(gradients, _FP32 * _after_encoder(shape)) if not m.frozen else gradients
    moments_of_a_step = {
        "loss": before + act.total + logits_gradient,
        "head": before + act.total - act.logits + logits_gradient + table,
        "encoder": so_far + table + act.encoder + residual,
        "end": gradients + table,
        "sum": gradients + exchanged,
        "update": gradients + (0 if launch.offload_optimizer else _update(shape, trained, launch, largest)),
    }
    if trained.scoring is not None:
        moments_of_a_step["scoring"] = gradients + without_gradient(shape, trained.scoring, trained.label_tokens)
    return Memory(
        weights=weights + gathered,
        gradients=gradients + exchanged,
        optimizer=optimizer,
        activations=act.total + logits_gradient,
        peak=base + max(moments_of_a_step.values()),
        host=host,
        loading=_FP32 * P,
    )


def moments_bytes(shape: T5Shape, trained: Trained) -> int:
    """Optimizer state of all that trains.

    >>> from pipeline.architecture import SIZES
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


def matrices(shape: T5Shape) -> Iterator[tuple[int, int, int]]:
    """How many there are of each kind of weight: (count, rows, columns); norms are matrices of one row.

    >>> sum(count * rows * columns for count, rows, columns in matrices(T5Shape())) == T5Shape().parameters
    True
    """
    D, E, L, M = shape.d_model, shape.num_heads * shape.d_kv, shape.num_layers, shape.num_decoder_layers
    yield (1 if shape.tied else 2), shape.vocab_size, D
    yield 4 * (L + 2 * M), D, E
    yield (3 if shape.gated else 2) * (L + M), D, shape.d_ff
    yield 2, shape.relative_attention_num_buckets, shape.num_heads
    yield 2 * L + 3 * M + 2, 1, D


def _largest(shape: T5Shape, trained: Trained) -> int:
    """Numbers of the largest tensor that trains."""
    if trained.microbatch.frozen:
        return trained.numbers
    return max(rows * columns for _, rows, columns in matrices(shape))


def _after_encoder(shape: T5Shape) -> int:
    """Numbers whose gradient is there when the backward pass comes to the encoder, the embedding apart."""
    D, E = shape.d_model, shape.num_heads * shape.d_kv
    block = 8 * D * E + (3 if shape.gated else 2) * D * shape.d_ff
    return shape.num_decoder_layers * block + (0 if shape.tied else shape.vocab_size * D)


def _gathered(shape: T5Shape, launch: LaunchConfig, element: int) -> int:
    """Whole weights that stand beside the shards, at most."""
    P, D, E = shape.parameters, shape.d_model, shape.num_heads * shape.d_kv
    if launch.engine == "zero3":
        return element * min(P, _DEEPSPEED_LIVE)
    if not launch.reshard:
        return element * P
    # Embedding and output matrix are gathered for the whole pass; of blocks the one that computes and the next.
    block = 8 * D * E + (3 if shape.gated else 2) * D * shape.d_ff
    return element * ((1 if shape.tied else 2) * shape.vocab_size * D + 2 * block)


def _exchanged(launch: LaunchConfig, numbers: int, largest: int) -> int:
    """What gradients pass through on their way to the other ranks."""
    if launch.engine in ("one", "ddp"):
        return 0 if launch.processes == 1 else _FP32 * max(largest, min(numbers, _AT_ONCE))
    if launch.engine == "fsdp2":
        return _FP32 * largest
    # DeepSpeed reserves its bucket whole; what nothing is written to takes no memory on a CPU.
    return _FP32 * (min(numbers, _DEEPSPEED_BUCKET) if launch.cpu else _DEEPSPEED_BUCKET)


def _update(shape: T5Shape, trained: Trained, launch: LaunchConfig, largest: int) -> int:
    """What an optimizer makes on its way: AdamW √v̂ (on a CPU of one tensor after another, twice), Adafactor g² and the
    update of some tensors at a time."""
    N, n = trained.numbers, launch.processes
    sharded = launch.engine not in ("one", "ddp")
    if trained.optimizer == "adamw":
        flat = -(-N // n) if sharded else N
        return (
            2 * _FP32 * min(flat, flat if launch.engine.startswith("zero") else largest) if launch.cpu else _FP32 * flat
        )
    tensors = 3 if trained.microbatch.frozen else 2
    return tensors * _FP32 * max(largest, min(N, _AT_ONCE)) // (n if sharded else 1)
