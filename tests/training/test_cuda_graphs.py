"""CUDA graphs that fail, with stand-ins for CUDA. Graphs that work: tests/system/test_gpu.py."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t5_pipeline.training.cuda_graphs import MicrobatchGraphs
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.loop import train_step
from t5_pipeline.training.microbatches import StepBatch, TensorBatch
from t5_pipeline.training.optimizers import model_optimizer
from t5_pipeline.training.state import TrainState


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger of stages does not propagate to that of pytest once a stage has run."""
    monkeypatch.setattr(logging.getLogger("t5-pipeline"), "propagate", True)


SHORT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.50 GiB is"


def batch(rows: int) -> TensorBatch:
    ids_BS = torch.arange(rows * 2).view(rows, 2)
    return TensorBatch(ids_BS, ids_BS, torch.ones(rows), torch.zeros(rows, dtype=torch.long))


POOL = (0, 1)


class Cuda:
    """The stream, the generator and the pool of a device, and recordings that can be broken.

    Attributes:
        torch: version whose failed recordings it has. Up to 2.12 they still allocate from the pool; up to 2.13 their
            graph does not release it.
        uses: uses of the pool, whose memory is freed at 0.
    """

    def __init__(self) -> None:
        self.stream = "default"
        self.recording = self.broken = False
        self.replayed = 0
        self.torch = "2.13"
        self.uses = 0
        self.allocating = self.cached = False

    @contextlib.contextmanager
    def use(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def record(self, *_: object, **__: object) -> Iterator[None]:
        """Like torch's: what cannot be ended stays as it is."""
        self.stream, self.recording = "recording", True
        self.uses += 1
        self.allocating = self.cached = True
        try:
            yield
        finally:
            self.allocating = self.broken and self.torch <= "2.12"
            if self.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.stream, self.recording = "default", False

    def clone_state(self) -> Cuda:
        return Cuda()

    def graphsafe_set_state(self, state: Cuda) -> None:
        self.recording = state.recording

    def replay(self) -> None:
        self.replayed += 1

    def end_allocating(self, *_: object) -> None:
        if not self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating = False

    def reset(self) -> None:
        if self.torch > "2.13":
            self.release_pool()

    def release_pool(self, *_: object) -> None:
        self.uses -= 1
        assert self.uses >= 0

    def empty_cache(self) -> None:
        assert not self.allocating
        self.cached = self.uses > 0

    def snapshot(self) -> list[dict[str, object]]:
        ours = [{"segment_pool_id": POOL, "active_size": 0}] if self.cached else []
        return [
            {"segment_pool_id": POOL, "active_size": 32 << 20},
            {"segment_pool_id": (0, 0), "active_size": 0},
            *ours,
        ]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    stands_in = {
        "CUDAGraph": lambda: made, "graph_pool_handle": lambda: POOL, "graph": made.record, "stream": made.use,
        "current_stream": lambda: made.stream, "default_generators": {None: made}, "empty_cache": made.empty_cache,
        "memory_snapshot": made.snapshot,
    }  # fmt: skip
    for name, value in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.end_allocating)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", made.release_pool)
    return made


def test_after_a_recording_that_fails_microbatches_run_as_before(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def run(loss_fn: Any, micro: TensorBatch) -> Tensor:
        if cuda.recording and cuda.broken:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore about it")
        ran.append(len(micro.weights_B))
        return torch.zeros(1)

    graphs = MicrobatchGraphs(run)
    for _ in range(3):  # run, recorded and replayed, replayed
        graphs(None, batch(1))
    assert (ran, cuda.replayed) == ([1, 1], 2)
    cuda.broken = True
    for _ in range(3):
        graphs(None, batch(2))
    graphs(None, batch(1))
    assert (ran, cuda.replayed) == ([1, 1, 2, 2, 2, 1], 2)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line == "cuda graphs: CUDA error: operation not permitted when stream is capturing; running without them"
    assert (cuda.stream, cuda.recording) == ("default", False)
    assert not graphs.release()


@pytest.mark.parametrize("version", ["2.11", "2.13", "2.14"])
def test_the_memory_of_a_recording_that_fails_is_released_once(cuda: Cuda, version: str) -> None:
    def run(loss_fn: Any, micro: TensorBatch) -> Tensor:
        if cuda.recording:
            raise torch.OutOfMemoryError(SHORT)
        return torch.zeros(1)

    cuda.torch, cuda.broken = version, True
    graphs = MicrobatchGraphs(run)
    for _ in range(3):
        graphs(None, batch(1))
    assert (cuda.uses, cuda.allocating) == (0, False)


class Short(MicrobatchGraphs):
    """Graphs whose memory another microbatch lacks, after part of its gradient."""

    def __call__(self, loss_fn: Any, micro: TensorBatch) -> Tensor:
        losses_C = self._run(loss_fn, micro)
        if len(micro.weights_B) == 2:
            raise torch.OutOfMemoryError(SHORT)
        return losses_C

    def release(self) -> bool:
        return True


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(6, 3)
        self.dropout = nn.Dropout(0.5)


def engine_of(model: Model, *, graphs: bool) -> Replicated:
    scope, device = ForwardScope(model, "fp32", "cpu"), torch.device("cpu")
    return Replicated(scope, lambda given: model_optimizer("adamw", given), ProcessGroup(), device, cuda_graphs=graphs)


def steps(*, short: bool) -> Model:
    torch.manual_seed(0)
    model = Model()
    engine = engine_of(model, graphs=short)
    if short:
        assert engine._graphs is not None
        engine._graphs = Short(engine._graphs._run)
    state = TrainState(engine)
    for step in range(3):
        train_step(
            state,
            StepBatch(step, [batch(1), batch(2), batch(3)], tokens=1, examples=1),
            lambda model, micro: model.dropout(model.rows(micro.inputs_BS)).square().sum().view(1),
            learning_rates=[0.1],
            seed=0,
        )
    return model


def test_if_memory_lacks_beside_graphs_the_step_begins_again_without(caplog: pytest.LogCaptureFixture) -> None:
    expected = steps(short=False).rows.weight
    assert torch.equal(steps(short=True).rows.weight, expected)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line == "cuda graphs: CUDA out of memory. Tried to allocate 2.00 GiB; running without them"


def test_without_graphs_memory_that_lacks_is_an_error() -> None:
    def fail(*_: object) -> Tensor:
        raise torch.OutOfMemoryError(SHORT)

    state = TrainState(engine_of(Model(), graphs=False))
    with pytest.raises(torch.OutOfMemoryError):
        train_step(state, StepBatch(0, [batch(1)], 1, 1), fail, learning_rates=[0.1], seed=0)
