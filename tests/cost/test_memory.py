"""Memory of a process, compared with optimizer state and measured peaks of real stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory as benchmark
from t5_pipeline.config.launch import Engine, LaunchConfig
from t5_pipeline.cost.activations import Microbatch, inference_peak
from t5_pipeline.cost.memory import Memory, TrainingFootprint, moments_bytes, training_memory
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.training.optimizers import model_optimizer, prompt_optimizer
from tests.forked import call

SHAPE = T5Config(
    vocab_size=16_000, d_model=256, d_kv=32, d_ff=512, num_layers=2, num_decoder_layers=2, num_heads=8
)  # fmt: skip


NARROW = replace(SHAPE, d_model=128, d_kv=16, d_ff=256)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("memory")
    benchmark.prepare(directory, {"middling": SHAPE, "narrow": NARROW})
    return directory


ADAPT = {"packing": False, "precision": "fp32"}
PROBE = {
    "probe": ["halves"],
    "probe_every": 1,
    "probe_cost": 1e6,
    "probe_prompts": 2,
    "probe_steps": 1,
    "probe_batch_size": 6,
    "probe_input_length": 280,
    "probe_rows": 4,
}
CASES = {
    "lm_adapt": benchmark.Case("lm_adapt", "middling", ADAPT | {"batch_size": 8, "segment_length": 128}),
    "probe": benchmark.Case(
        "lm_adapt", "middling", ADAPT | PROBE | {"batch_size": 2, "segment_length": 32, "steps": 1}
    ),
}
TUNE = benchmark.Case(
    "prompt_tune", "narrow", {"batch_size": 16, "max_input_length": 288, "precision": "bf16", "select": "last"}
)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=pytest.mark.soak if name == "probe" else ()) for name, case in CASES.items()],
)
def test_measured_peak_of_a_stage(case: benchmark.Case, place: Path) -> None:
    """`python -m benchmarks` has more and larger cases."""
    row, _, _ = call(benchmark.compare, case, place)
    assert row["measured_bytes"] > 150 << 20
    assert row["estimate_bytes"] == pytest.approx(row["measured_bytes"], rel=0.15)


def test_peak_of_the_tensors_of_a_stage_in_bf16(place: Path) -> None:
    """Not of its process, in which bf16 products have buffers: on a Xeon with AMX 30% of the tensors, on others less."""
    found, _, _ = call(benchmark.measured_tensors, TUNE, place)
    assert found > 150 << 20
    assert benchmark.expected(TUNE, place) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_optimizer_state(name: Any, tied: bool) -> None:
    shape = T5Config(
        vocab_size=300, d_model=130, d_kv=16, d_ff=140, num_layers=2, num_decoder_layers=1, num_heads=9, tied=tied
    )
    model = init_t5(shape, seed=0)
    rows_RD = torch.nn.Parameter(torch.zeros(5, shape.d_model))
    bank = prompt_optimizer(name, rows_RD, torch.zeros(5, dtype=torch.long))
    for optimizer in (model_optimizer(name, model.parameters()), bank):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    of_model = sum(v.nbytes for state in optimizer_states(model.parameters(), name) for v in state)
    assert moments_bytes(shape, TrainingFootprint(Microbatch(1, 8, 8), shape.parameters, name)) == of_model
    of_bank = sum(v.nbytes for v in bank.state[rows_RD].values() if v.dim())
    assert moments_bytes(shape, TrainingFootprint(Microbatch(1, 8, 8, prompt=5), rows_RD.numel(), name)) == of_bank


def optimizer_states(parameters: Any, name: str) -> list[list[torch.Tensor]]:
    """State of each parameter after a step, without step counts."""
    optimizer = model_optimizer(name, list(parameters))
    optimizer.step()
    return [[v for v in state.values() if v.dim()] for state in optimizer.state.values()]


def on(engine: Engine, processes: int = 8, **more: Any) -> Memory:
    shape = SIZES["xl"]
    trained = TrainingFootprint(
        Microbatch(8, 512, 512), shape.parameters, "adamw", accumulates=True, kept=shape.parameters
    )
    return training_memory(shape, trained, LaunchConfig(engine, processes, **more))


def test_sharding_by_engine() -> None:
    """XL has 2.85 G weights: 4 bytes of weights and gradients, 8 of moments, and ZeRO's copy of the weights."""
    P = SIZES["xl"].parameters
    alone, ddp, zero1, zero2, zero3, fsdp2 = (
        on("one", 1), on("ddp"), on("zero1"), on("zero2"), on("zero3"), on("fsdp2"),
    )  # fmt: skip
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * P, 4 * P, 8 * P)
    assert (ddp.weights, ddp.optimizer, zero1.weights) == (alone.weights, alone.optimizer, alone.weights)
    assert zero1.optimizer == zero2.optimizer == zero3.optimizer == 12 * P // 8
    assert fsdp2.optimizer == 8 * P // 8
    assert zero1.gradients - zero2.gradients == 4 * P - 4 * P // 8
    assert zero3.weights == 4 * P // 8 + 4 * 10**9
    assert fsdp2.weights < zero3.weights
    assert on("fsdp2", reshard=False).weights == 4 * P // 8 + 4 * P
    assert alone.peak > zero1.peak > zero2.peak > zero3.peak > fsdp2.peak
    assert alone.snapshot == 16 * P == 8 * ddp.snapshot == 8 * zero2.snapshot
    assert alone.host == 4 * P == 8 * fsdp2.host


def test_offloading_moves_memory_to_the_host() -> None:
    here, there = on("zero3"), on("zero3", offload_optimizer=True, offload_parameters=True)
    assert there.optimizer == 0
    assert there.weights < here.weights
    assert there.peak < here.peak
    P = SIZES["xl"].parameters
    assert there.host - here.host == (12 + 4 + 4) * P // 8


def test_zero_begins_with_the_whole_model_on_each_device() -> None:
    """Even with offloading; FSDP2 moves one block at a time."""
    shape = SIZES["xxl"]
    prompts = TrainingFootprint(Microbatch(1, 64, 16, prompt=100), 100 * shape.d_model, "adamw")
    peaks = [
        training_memory(shape, prompts, LaunchConfig(engine, 64, offload_optimizer=True, offload_parameters=True)).peak
        for engine in ("zero3", "fsdp2")
    ]
    assert peaks[0] == 2 * shape.parameters > peaks[1]


def test_fsdp2_replicates_prompts() -> None:
    shape = SIZES["xl"]
    N = 100 * shape.d_model
    trained = TrainingFootprint(Microbatch(8, 612, 16, prompt=100), N, "adamw")
    for offload in (False, True):
        launch = LaunchConfig("fsdp2", 8, offload_optimizer=offload, offload_parameters=offload)
        found = training_memory(shape, trained, launch)
        assert (found.gradients, found.optimizer) == (4 * N, 8 * N)
        assert found.host == (2 * shape.parameters // 8 if offload else 0)


@pytest.mark.parametrize("scored", [False, True])
def test_cuda_graphs_keep_the_memory_of_a_microbatch(scored: bool) -> None:
    """During the update, too, which needs √v̂ of AdamW for all weights, and during validation."""
    shape, eight = SIZES["base"], Microbatch(8, 512, 114)
    scoring = Microbatch(64, 512, 114) if scored else None
    trained = TrainingFootprint(eight, shape.parameters, "adamw", accumulates=True, scoring=scoring)
    without, graphs = (
        training_memory(shape, replace(trained, cuda_graphs=graphs), LaunchConfig()) for graphs in (False, True)
    )
    at_once = inference_peak(shape, scoring, 0) if scoring else 4 * shape.parameters
    assert graphs.peak >= without.weights + without.gradients + without.optimizer + without.activations + at_once
    assert replace(graphs, peak=without.peak) == without


def test_peak_is_less_than_the_sum_of_parts_without_accumulation() -> None:
    shape = SIZES["small"]
    at_once, in_parts = (
        training_memory(
            shape, TrainingFootprint(Microbatch(4, 128, 128), shape.parameters, "adafactor", parts), LaunchConfig()
        )
        for parts in (False, True)
    )
    assert at_once.peak < at_once.weights + at_once.gradients + at_once.optimizer + at_once.activations
    assert in_parts.peak > at_once.peak
