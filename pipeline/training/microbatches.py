"""One rank's share of a step's batch, in microbatches.

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

from t5_pipeline.data_prep.sampling.microbatching import CPU, Device

Item = TypeVar("Item")


class ArrayBatch(Protocol):
    """Examples as padded NumPy arrays.

    Attributes:
        weights_B: weight of each row's token losses, normalized over the *global* batch.
        prompt_B: index of each row's prompt in the bank.
        segments: number of the example that each token of a packed row belongs to; None if rows are not packed.
    """

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
    def shard(self, rank: int, world: int) -> ArrayBatch: ...
    def microbatches(self, size: int, device: Device = CPU) -> Sequence[ArrayBatch]: ...


class BatchSource(Protocol):
    """Batches as a function of the step (0 is the first).

    `at(step)` is the global batch, over all ranks; `ids(step)` are the ids of its examples.
    """

    def at(self, step: int) -> ArrayBatch: ...
    def ids(self, step: int) -> list[int]: ...


@dataclass(frozen=True)
class TensorBatch:
    """A microbatch as tensors: ids int64, weights fp32; `segments` of packed rows, int64 [B, S] and [B, T]."""

    inputs_BS: Tensor
    targets_BT: Tensor
    weights_B: Tensor
    prompt_B: Tensor
    segments: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, batch: ArrayBatch) -> TensorBatch:
        return cls(
            torch.as_tensor(batch.inputs_BS).long(),
            torch.as_tensor(batch.targets_BT).long(),
            torch.as_tensor(batch.weights_B).float(),
            torch.as_tensor(batch.prompt_B).long(),
            _both(batch.segments, lambda numbers: torch.as_tensor(numbers).long()),
        )

    def weightless(self) -> TensorBatch:
        """The first row with weight 0, so that its loss and gradient are 0."""
        return TensorBatch(
            self.inputs_BS[:1],
            self.targets_BT[:1],
            torch.zeros(1),
            self.prompt_B[:1],
            _both(self.segments, lambda numbers: numbers[:1]),
        )

    def tensors(self) -> list[Tensor]:
        return [self.inputs_BS, self.targets_BT, self.weights_B, self.prompt_B, *(self.segments or ())]

    def copy(self) -> TensorBatch:
        """A copy on the same device."""
        return self._each(Tensor.clone)

    def to(self, device: torch.device) -> TensorBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, of: Callable[[Tensor], Tensor]) -> TensorBatch:
        return TensorBatch(
            of(self.inputs_BS),
            of(self.targets_BT),
            of(self.weights_B),
            of(self.prompt_B),
            _both(self.segments, of),
        )


def _both(pair: tuple[Item, Item] | None, of: Callable[[Item], Tensor]) -> tuple[Tensor, Tensor] | None:
    return None if pair is None else (of(pair[0]), of(pair[1]))


@dataclass(frozen=True)
class StepBatch:
    """One rank's microbatches of a step; `tokens` and `examples` (rows, if packed) count the step over all ranks.

    Attributes:
        step: steps that the trained weights have done before; that of the run, unless prompts take turns.
    """

    step: int
    microbatches: list[TensorBatch]
    tokens: int
    examples: int


def rank_microbatches(
    whole: ArrayBatch, rank: int, world: int, microbatch_size: int, device: Device = CPU, lockstep: bool = False
) -> list[TensorBatch]:
    """The microbatches of one rank; possibly none.

    Args:
        microbatch_size: rows of each; 0 chooses the cheapest sizes for this `device`.
        lockstep: give all ranks the same number, for engines that run collectives in every microbatch. Ranks with fewer
            rows get extra microbatches with zero loss weight.
    """

    def cut(rank: int) -> Sequence[ArrayBatch]:
        rows = whole.shard(rank, world)
        return rows.microbatches(microbatch_size, device) if len(rows) else []

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
