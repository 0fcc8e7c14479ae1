"""Collectives between the processes of a run: numbers over gloo, tensors over the training backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from t5_pipeline.execution.devices import COLLECTIVE_TIMEOUT
from t5_pipeline.modeling.limits import REDUCED_ELEMENTS
from t5_pipeline.training.buckets import buckets


class HostCollectives:
    """Collectives on scalars over gloo, so they never synchronize with the GPU.

    Each instance owns a process group, so a background thread's collectives cannot interleave with the training loop's.
    Construction is collective: every rank must call it.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if world > 1 else None

    def all_reduce_max(self, number: int) -> int:
        """The largest number of all ranks."""
        if self.world == 1:
            return number
        box = torch.tensor([number])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._group)
        return int(box.item())

    def broadcast(self, number: int) -> int:
        """The number of rank 0, at most 2⁵³."""
        return int(self.broadcast_list([number])[0])

    def broadcast_list(self, numbers: Sequence[float]) -> list[float]:
        """The numbers of rank 0; all ranks pass equally many."""
        if self.world == 1:
            return list(numbers)
        box = torch.tensor(numbers, dtype=torch.float64)
        dist.broadcast(box, src=0, group=self._group)
        found: list[float] = box.tolist()
        return found


class ProcessGroup(HostCollectives):
    """This process's `rank` among `world` processes. With one process every collective is a no-op.

    Raises:
        RuntimeError: if torch's process group does not exist or has another size: the launch failed, and the processes
            would silently train apart.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        found = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if found != world:
            raise RuntimeError(f"expected {world} processes, but the process group has {found}")
        super().__init__(rank, world)

    @classmethod
    def alone(cls) -> ProcessGroup:
        """A group of this process only, for work that every rank does by itself."""
        group = cls.__new__(cls)
        HostCollectives.__init__(group, 0, 1)
        return group

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks."""
        if self.world == 1:
            return
        for bucket in buckets(tensors, REDUCED_ELEMENTS):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(list(bucket), [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])

    def agree(self, number: Tensor) -> bool:
        """Whether all ranks have the same number (0-d, on the device)."""
        if self.world == 1:
            return True
        both = torch.stack([number, -number]).double()
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return bool(both[0] == -both[1])
