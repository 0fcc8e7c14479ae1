"""Accelerate configurations and launch contexts: engines, processes, offload, and errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from t5_pipeline.config.launch import LaunchConfig, LaunchContext, read_launch_config, runner_environment
from t5_pipeline.core.errors import InputError
from tests.tiny_run import ROOT

LOCK = Path("/run/.state/lm_adapt.runner.1")


def written(directory: Path, **keys: Any) -> Path:
    path = directory / "launch.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"distributed_type": "NO"}, LaunchConfig()),
        ({"distributed_type": False, "use_cpu": True}, LaunchConfig(cpu=True)),
        ({"distributed_type": "MULTI_GPU", "num_processes": 1}, LaunchConfig()),
        ({"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2}, LaunchConfig("ddp", 16, 2)),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, LaunchConfig("ddp", 2, cpu=True)),
        (
            {"distributed_type": "MULTI_GPU", "num_processes": 2, "gpu_ids": "-1,-1"},
            LaunchConfig("ddp", 2, cpu=True),
        ),
        ({"distributed_type": "DEEPSPEED", "num_processes": 8}, LaunchConfig("zero2", 8)),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8, "deepspeed_config": {"zero_stage": 1}},
            LaunchConfig("zero1", 8),
        ),
        (
            {
                "distributed_type": "DEEPSPEED",
                "num_processes": 8,
                "deepspeed_config": {
                    "zero_stage": 3,
                    "offload_optimizer_device": "cpu",
                    "offload_param_device": "cpu",
                },
            },
            LaunchConfig("zero3", 8, offload_optimizer=True, offload_parameters=True),
        ),
        (
            {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}},
            LaunchConfig("fsdp2", 4),
        ),
        (
            {
                "distributed_type": "FSDP",
                "num_processes": 4,
                "fsdp_config": {"version": "2", "offload_params": "true", "fsdp_reshard_after_forward": False},
            },
            LaunchConfig("fsdp2", 4, offload_optimizer=True, offload_parameters=True, reshard=False),
        ),
    ],
)
def test_configurations_are_read(keys: dict[str, Any], expected: LaunchConfig, tmp_path: Path) -> None:
    assert read_launch_config(written(tmp_path, **keys)) == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_processes": 2}, "distributed_type: is missing"),
        ({"distributed_type": "MEGATRON_LM", "num_processes": 2}, "distributed_type: 'MEGATRON_LM' is not supported"),
        ({"distributed_type": "DEEPSPED", "num_processes": 2}, "did you mean `DEEPSPEED`"),
        ({"distributed_type": "MULTI_GPU"}, "num_processes: is missing"),
        ({"distributed_type": "MULTI_GPU", "num_processes": "8"}, "num_processes: is '8'"),
        ({"distributed_type": "NO", "num_processes": 2}, "`distributed_type: NO` starts one process"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 3, "num_machines": 2}, "3 processes over 2 machines"),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 0}},
            "deepspeed_config.zero_stage: must be 1, 2 or 3, not 0",
        ),
        (
            {
                "distributed_type": "DEEPSPEED",
                "num_processes": 2,
                "deepspeed_config": {"offload_optimizer_device": "nvme"},
            },
            "deepspeed_config.offload_optimizer_device: must be none or cpu, not 'nvme'",
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"offload_param_device": "cpu"}},
            "only ZeRO-3 can keep weights in host memory",
        ),
        (
            {
                "distributed_type": "DEEPSPEED",
                "num_processes": 2,
                "deepspeed_config": {"deepspeed_config_file": "ds.json"},
            },
            "deepspeed_config.deepspeed_config_file: is not supported",
        ),
        ({"distributed_type": "FSDP", "num_processes": 2}, "fsdp_version: 1 is not supported; set fsdp_version: 2"),
        (
            {
                "distributed_type": "FSDP",
                "num_processes": 2,
                "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": "FULL_SHARD"},
            },
            "fsdp_config.fsdp_reshard_after_forward: must be true or false",
        ),
        ({"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": 2}, "must contain keys"),
    ],
)
def test_unsupported_configurations_are_one_line_errors(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = written(tmp_path, **keys)
    with pytest.raises(InputError) as error:
        read_launch_config(path)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}:")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="is not an accelerate configuration"):
        read_launch_config(path)
    with pytest.raises(InputError, match=r"^launch: .* does not exist; check the path"):
        read_launch_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_can_be_read(path: Path) -> None:
    found = read_launch_config(path)
    assert found.processes >= found.machines >= 1


DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, LaunchContext()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2"}, LaunchContext("ddp", 3, 4, 2)),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, LaunchContext("zero3", parent=os.getppid())),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
            LaunchContext("fsdp2", parent=os.getppid(), reshard=False),
        ),
        (
            runner_environment(LOCK, LaunchConfig(cpu=True)),
            LaunchContext(parent=os.getppid(), runner=LOCK, device="cpu"),
        ),
        (runner_environment(LOCK, None), LaunchContext(parent=os.getppid(), runner=LOCK)),
    ],
)
def test_a_launch_context_follows_the_environment(
    environment: dict[str, str], expected: LaunchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    assert LaunchContext.from_environment() == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (DEEPSPEED, "zero_stage: a deepspeed_config_file is not supported"),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage: 0 is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 1 is not supported; set 2"),
        ({"MASTER_ADDR": "x", "ACCELERATE_DYNAMO_MODE": "y"}, "accelerate started one process"),
        (runner_environment(LOCK, LaunchConfig("ddp", 4)), "expected 4 processes (ddp) but got 1 process (one)"),
        (runner_environment(LOCK, None) | {"WORLD_SIZE": "2"}, "expected 1 process (one) but got 2 processes (ddp)"),
    ],
)
def test_a_launch_that_cannot_be_used_has_an_error(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    error = LaunchContext.from_environment().error
    assert error is not None
    assert words in error
