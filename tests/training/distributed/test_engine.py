"""State of the engines, and launches that they refuse. tests/system/test_engines.py compares their training."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.sampling.batches import collate
from t5_pipeline.data_prep.sampling.microbatching import CPU
from t5_pipeline.execution.devices import COLLECTIVE_TIMEOUT
from t5_pipeline.training.microbatches import rank_microbatches
from tests.forked import run_forked
from tests.tiny_run import ROOT, Tiny, stage

PROBE = Path(__file__).with_name("engine_probe.py")
TRAINED = 5 * 32


@pytest.mark.parametrize(
    "engine", [*(pytest.param(name, marks=pytest.mark.engines) for name in ("ddp", "zero1", "zero2")), "zero3", "fsdp2"]
)
def test_frozen_weights_have_neither_gradients_nor_moments(tmp_path: Path, engine: str) -> None:
    configs = ROOT / "accelerate_configs"
    configuration = yaml.safe_load(
        (configs / ("cpu_zero2.yaml" if "zero" in engine else f"cpu_{engine}.yaml")).read_text()
    )
    if "zero" in engine:
        configuration["deepspeed_config"]["zero_stage"] = int(engine[-1])
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(configuration))
    words = ("-m", "accelerate.commands.launch", "--config_file", tmp_path / "launch.yaml", PROBE, tmp_path)
    _, _, said = run_forked(list(map(str, words)), ROOT, {**os.environ, "PYTHONPATH": str(ROOT)})
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("?.json"))]
    assert [rank["engine"] for rank in ranks] == [engine] * 2, said
    sharded = 1 if engine in ("ddp", "fsdp2") else 2
    for rank in ranks:
        assert rank["world"] == 2
        assert rank["timeouts_s"] == [COLLECTIVE_TIMEOUT.total_seconds()] * 2
        assert rank["frozen"] > 20
        assert rank["with_gradient"] == 0
        assert rank["freed"] == [True] * 3
        assert rank["norm"] > 0
        # Two moments of AdamW for each number of the prompt, or of this rank's part of it, padded by a few elements.
        assert 2 * TRAINED // sharded <= rank["moments"] <= 2 * (TRAINED // sharded + 8)
        assert list(rank["weights"]) == ["model/bank.rows_RD"]
    covered = {n for rank in ranks for start, stop in rank["weights"].values() for n in range(start, stop)}
    assert covered == set(range(TRAINED))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=23), world=st.integers(1, 5), size=st.integers(0, 4))
def test_ranks_share_a_batch_in_equally_many_microbatches(lengths: list[int], world: int, size: int) -> None:
    """Every row is on one rank; in lockstep all have equally many microbatches, padded by rows of zero weight."""
    rows = [(np.arange(1, n + 1), np.full(n, row + 1)) for row, n in enumerate(lengths)]
    whole = collate(rows)
    for lockstep in (False, True):
        parts = [rank_microbatches(whole, rank, world, size, CPU, lockstep) for rank in range(world)]
        seen = [
            int(row[0])
            for part in parts
            for micro in part
            for row, weight in zip(micro.targets_BT, micro.weights_B, strict=True)
            if weight > 0
        ]
        assert sorted(seen) == list(range(1, len(lengths) + 1))
        weights = sum(float((m.weights_B[:, None] * (m.targets_BT != 0)).sum()) for part in parts for m in part)
        assert weights == pytest.approx(1.0, rel=1e-5)
        if lockstep:
            assert len({len(part) for part in parts}) == 1
    assert torch.is_tensor(parts[0][0].inputs_BS)


ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "kind", "said"),
    [
        (ZERO2, "lm_adapt", "optimizer: adafactor needs whole matrices, which zero2 shards; set `optimizer: adamw`"),
        (FSDP, "lm_adapt", "optimizer: adafactor needs whole matrices, which fsdp2 shards"),
        (ZERO2, "prompt_tune", "optimizer: adafactor needs whole matrices, which zero2 shards"),
        (ZERO2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "lm_adapt", "zero_stage: 0 is not supported; give zero_stage 1, 2 or 3"),
        (FSDP | {"FSDP_VERSION": "1"}, "lm_adapt", "fsdp_version: 1 is not supported; set 2"),
        (ZERO2, "sentinel", "sentinel does not run on zero2, only on one"),
        ({"T5_PIPELINE_PROCESSES": "8", "T5_PIPELINE_ENGINE": "ddp"}, "lm_adapt", "launch: expected 8 processes (ddp) but got 1 process (one)"),
        ({"T5_PIPELINE_DEVICE": "gpu"}, "lm_adapt", "launch: the configuration asks for GPUs, but torch sees none"),
        ({"T5_PIPELINE_DEVICE": "cpu", "WORLD_SIZE": "2"}, "lm_adapt", "launch: the configuration asks for CPUs, but GPUs are visible"),
    ],
)  # fmt: skip
def test_impossible_launches_are_refused_before_anything_is_written(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], kind: str, said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: environment.get("T5_PIPELINE_DEVICE") == "cpu")
    tokens = ("--tokens", finished.run / "prepare") if kind == "lm_adapt" else ()
    task = {"data": str(finished.data / "rows"), "inputs": "{text}", "targets": "{label}", "metrics": ["accuracy"]}
    (tmp_path / "task.yaml").write_text(json.dumps(task | {"labels": ["files", "numbers"]}))
    more = ("--task", tmp_path / "task.yaml") if kind == "prompt_tune" else ()
    ended = stage(kind, "--model", finished.run / "pretrain", *tokens, *more, "--output-dir", tmp_path / "out")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert not (tmp_path / "out").exists()
