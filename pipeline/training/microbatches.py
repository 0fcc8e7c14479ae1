"""What training sees of its data: batches that are a function of the step, cut by rank and microbatch.

B batch, S input length, T target length
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Batch(Protocol):
    """Examples as zero-padded NumPy arrays. `weights_B` weighs each row's token losses, normalised over the *global*
    batch; `prompt_B` names each row's prompt in the bank; `segments` tells apart the examples of packed rows."""

    @property
    def inputs_BS(self) -> Any: ...
    @property
    def targets_BT(self) -> Any: ...
    @property
    def weights_B(self) -> Any: ...
    @property
    def prompt_B(self) -> Any: ...
    @property
    def segments(self) -> tuple[Any, Any] | None: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def target_tokens(self) -> int: ...
    def __len__(self) -> int: ...
    def shard(self, rank: int, world: int) -> Batch: ...
    def microbatches(self, size: int, device: str = "cpu") -> Sequence[Batch]: ...


class BatchSource(Protocol):
    """`at(step)` is the whole batch of a step, over all ranks; step 0 is the first. `ids(step)` names its examples."""

    def at(self, step: int) -> Batch: ...
    def ids(self, step: int) -> list[int]: ...


@dataclass(frozen=True)
class TensorBatch:
    """A microbatch as tensors: ids int64, weights fp32; `segments`, int64 [B, S] and [B, T], where rows are packed."""

    inputs_BS: Tensor
    targets_BT: Tensor
    weights_B: Tensor
    prompt_B: Tensor
    segments: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, batch: Batch) -> TensorBatch:
        return cls(
            torch.as_tensor(batch.inputs_BS).long(),
            torch.as_tensor(batch.targets_BT).long(),
            torch.as_tensor(batch.weights_B).float(),
            torch.as_tensor(batch.prompt_B).long(),
            _both(batch.segments, lambda numbers: torch.as_tensor(numbers).long()),
        )

    def weightless(self) -> TensorBatch:
        """The first row alone, with no weight: its loss and gradient are 0."""
        return TensorBatch(
            self.inputs_BS[:1],
            self.targets_BT[:1],
            torch.zeros(1),
            self.prompt_B[:1],
            _both(self.segments, lambda numbers: numbers[:1]),
        )

    def to(self, device: torch.device) -> TensorBatch:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return TensorBatch(
            moved(self.inputs_BS),
            moved(self.targets_BT),
            moved(self.weights_B),
            moved(self.prompt_B),
            _both(self.segments, moved),
        )


def _both(pair: tuple[Item, Item] | None, of: Callable[[Item], Tensor]) -> tuple[Tensor, Tensor] | None:
    return None if pair is None else (of(pair[0]), of(pair[1]))


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one step; `tokens` and `examples` (rows, where packed) count the step over all group."""

    step: int
    microbatches: list[TensorBatch]
    tokens: int
    examples: int


def step_batch(
    batches: BatchSource,
    step: int,
    *,
    rank: int,
    world: int,
    microbatch_size: int,
    device: str = "cpu",
    lockstep: bool = False,
) -> StepBatch:
    """The part of batch `step` that falls to `rank`, in microbatches, as `rank_part` has it."""
    whole = batches.at(step)
    part = rank_part(whole, rank, world, microbatch_size, device, lockstep)
    return StepBatch(step, part, whole.input_tokens + whole.target_tokens, len(whole))


def rank_part(
    whole: Batch, rank: int, world: int, microbatch_size: int, device: str = "cpu", lockstep: bool = False
) -> list[TensorBatch]:
    """The microbatches of one rank; it may have none.

    microbatch_size, device: rows of each, or for 0 as many as cost least on that kind of device.
    lockstep: every rank gets as many, for engines that exchange weights and gradients in each. What a rank lacks is
    made up by a row that weighs nothing.
    """

    def cut(rank: int) -> Sequence[Batch]:
        part = whole.shard(rank, world)
        return part.microbatches(microbatch_size, device) if len(part) else []

    mine = [TensorBatch.of(micro) for micro in cut(rank)]
    if lockstep and world > 1:
        missing = max(len(cut(other)) for other in range(world)) - len(mine)
        mine += [(mine[0] if mine else TensorBatch.of(whole)).weightless()] * missing
    return mine


def prefetch(make: Callable[[int], Item], steps: Iterable[int], ahead: int = 2) -> Generator[Item]:
    """make(step) for every step in order, computed in one background thread up to `ahead` items early.

    >>> list(prefetch(lambda step: step * step, range(4)))
    [0, 1, 4, 9]
    """
    waiting: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        for step in steps:
            waiting.append(thread.submit(make, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
