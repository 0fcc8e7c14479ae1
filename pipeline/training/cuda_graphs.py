"""Microbatches as CUDA graphs.

A step of a small T5 starts thousands of kernels, and starting one can take a host longer than a GPU needs to run it. A
CUDA graph starts all kernels of a microbatch's forward and backward pass at once. It computes the same bits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.core.errors import one_line
from t5_pipeline.training.microbatches import TensorBatch

log = logging.getLogger("t5-pipeline")

MOST = 32
"""Shapes of microbatches that are recorded; each holds some memory of the host."""


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    batch: TensorBatch
    losses_C: Tensor


class MicrobatchGraphs:
    """Runs microbatches: the first of a shape as usual, the second is recorded, and this and later ones are replayed.

    A graph reads and writes the memory that it was recorded with. So weights are changed in place, and gradients too:
    they are set to zero after a step, not released.

    Args:
        run: adds the gradient of a microbatch and returns its losses [C]. Its kernels must depend on the shapes of the
            microbatch only, and nothing in it may wait for the device.
    """

    def __init__(self, run: Callable[[Any, TensorBatch], Tensor]) -> None:
        self._run = run
        self._seen: dict[object, _Recorded | None] = {}
        self._pool: Any = None
        self._works = True

    def __call__(self, loss_fn: Any, batch: TensorBatch) -> Tensor:
        key = (loss_fn, *((tuple(x.shape), x.dtype) for x in batch.tensors()))
        if key not in self._seen or not self._works:
            if len(self._seen) < MOST:
                self._seen[key] = None
            return self._run(loss_fn, batch)
        recorded = self._seen[key]
        if recorded is None:
            recorded = self._seen[key] = self._record(loss_fn, batch)
            if recorded is None:
                return self._run(loss_fn, batch)
        for mine, theirs in zip(recorded.batch.tensors(), batch.tensors(), strict=True):
            mine.copy_(theirs, non_blocking=True)
        recorded.graph.replay()
        return recorded.losses_C

    def release(self) -> bool:
        """Free the memory of all graphs and run without them from now on; False if there were none."""
        released = any(self._seen.values())
        self._seen.clear()
        self._pool, self._works = None, False
        return released

    def _record(self, loss_fn: Any, batch: TensorBatch) -> _Recorded | None:
        """Record without computing; None, and never again, if that fails."""
        own, stream = batch.copy(), torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # The inner context leaves its own stream behind if the recording cannot be ended. Meanwhile another thread,
            # such as NCCL's, may call CUDA.
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                losses_C = self._run(loss_fn, own)
            log.info(
                "cuda graphs: recorded a microbatch of %s", " and ".join(str(list(x.shape)) for x in own.tensors()[:2])
            )
            return _Recorded(graph, own, losses_C)
        except RuntimeError as error:  # of CUDA or torch
            # What made it impossible to end the recording says more.
            log.warning("cuda graphs: %s; running without them", one_line(error.__context__ or error))
        # Outside the handler, whose traceback would keep the memory of the recording.
        pool = self._pool
        self.release()
        _leave_recording(graph, own.inputs_BS.device, pool)
        return None


def _leave_recording(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Reset what torch does not if a recording cannot be ended.

    Otherwise its allocator would keep the memory of the recording and, up to torch 2.12, release no other, and up to
    torch 2.11 its generator would refuse to draw dropout masks.
    """
    with contextlib.suppress(RuntimeError):  # it is no longer recording, as from torch 2.13 on
        torch._C._cuda_endAllocateToPool(device.index, pool)
    graph.reset()
    torch.cuda.empty_cache()
    # Whether the graph has released its pool depends on the version, and a second release would break the allocator. A
    # pool that is not released keeps unused segments.
    with contextlib.suppress(RuntimeError):  # of another allocator (`backend:cudaMallocAsync`), which has no segments
        segments = [segment for segment in torch.cuda.memory_snapshot() if segment["segment_pool_id"] == pool]
        if any(segment["active_size"] == 0 for segment in segments):
            torch._C._cuda_releasePool(device.index, pool)
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())
