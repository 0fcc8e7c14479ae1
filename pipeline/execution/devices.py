"""What a stage was launched on: threads, devices, other processes. It refuses what is not what was asked for."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

from t5_pipeline.config.launch import Engine
from t5_pipeline.config.stage import StageConfig, TrainingConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.launcher import DEVICE, ENGINE, PROCESSES
from t5_pipeline.execution.malloc import keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

_ZERO: dict[str, Engine] = {"1": "zero1", "2": "zero2", "3": "zero3"}


def set_threads(asked: int) -> None:
    """Take the same number of threads whoever launched the process: results depend on it."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = asked or max(1, there // here)
    torch.set_num_threads(threads)
    keep_freed_memory()


def launched(settings: StageConfig, directory: Path) -> Accelerator:
    """The devices of this process, and the others that were launched with it.

    Raises:
        InputError: they are not what was asked for, or the stage does not run on them.
    """
    import torch
    from accelerate import Accelerator

    trackers = settings.trackers if isinstance(settings, TrainingConfig) else []
    for tracker in trackers:
        try:
            importlib.metadata.version(tracker)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"trackers: {tracker} is not installed; pip install 't5-pipeline[trackers]'") from None
    # `accelerate launch` names the place where several processes meet even where it then starts a single one.
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_DYNAMO_MODE"} <= os.environ.keys():
        raise InputError(
            "accelerate started one process where its configuration asks for several; on the CPU several need"
            " `distributed_type: MULTI_GPU`, as in accelerate_configs/cpu_ddp.yaml"
        )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    engine = engine_asked_for(asked)
    told = os.environ.get(ENGINE, engine), int(os.environ.get(PROCESSES, asked))
    if told != (engine, asked):
        raise InputError(
            f"launch: {told[1]} processes on {told[0]} were asked for, and {asked} on {engine} came; a scheduler's"
            " WORLD_SIZE, or an ACCELERATE_ variable of the environment, may contradict the launch configuration"
        )
    settings.check_engine(engine)
    on_cpu = not torch.cuda.is_available()
    if os.environ.get(DEVICE) == "gpu" and on_cpu:
        raise InputError(
            'launch: GPUs are asked for, and torch sees none (`nvidia-smi`, `python -c "import torch;'
            ' print(torch.version.cuda)"`); for processes on the CPU use accelerate_configs/cpu*.yaml'
        )
    if os.environ.get(DEVICE) == "cpu" and not on_cpu and engine != "one":
        raise InputError('launch: CPUs are asked for, and GPUs are visible: add gpu_ids: "-1,-1", as cpu_ddp.yaml has')
    handlers = []
    if engine.startswith("zero"):
        _check_deepspeed()
        if on_cpu:
            import deepspeed
            from accelerate.utils import InitProcessGroupKwargs

            # Its exchange through shared memory compiles for a minute at first use; gloo gives the same bits.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            # With cpu=True DeepSpeed's processes would train apart, each alone, in silence.
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(
        # Else processes that find no GPU train apart, each alone.
        cpu=on_cpu and asked > 1 and not handlers,
        kwargs_handlers=handlers,
        log_with=list(trackers) or None,
        project_dir=str(directory) if trackers else None,
    )
    if accelerator.num_processes != asked:
        raise InputError(
            f"launch: {asked} processes were asked for, and each got a world of {accelerator.num_processes}; check"
            " distributed_type and use_cpu of the launch configuration against those of accelerate_configs/"
        )
    return accelerator


def engine_asked_for(processes: int) -> Engine:
    """The engine that the launcher's environment names.

    Raises:
        InputError: it is none that runs here.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        if stage not in _ZERO:
            raise InputError(
                f"deepspeed_config.zero_stage: {stage or 'a deepspeed_config_file'} is not supported; give zero_stage"
                " 1, 2 or 3 in the accelerate configuration, as in accelerate_configs/zero2.yaml"
            )
        return _ZERO[stage]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise InputError(
                f"fsdp_config.fsdp_version: {version} is not supported; set 2, as in accelerate_configs/fsdp2.yaml"
            )
        return "fsdp2"
    return "ddp" if processes > 1 else "one"


def _check_deepspeed() -> None:
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("DeepSpeed is not installed; pip install 't5-pipeline[deepspeed]'") from None
