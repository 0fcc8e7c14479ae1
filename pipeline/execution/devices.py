"""Threads, devices and processes of a stage; they must be the ones that the launch configuration asks for."""

from __future__ import annotations

import gc
import re
import resource
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.machine import available_cores
from t5_pipeline.execution.malloc import keep_freed_memory
from t5_pipeline.execution.packages import check_installed

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others, which may have to write and read tens of gigabytes on a slow disk."""

_BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))  # x86, x86, ARM


def set_threads(asked: int, launch: LaunchContext) -> None:
    """Use the same number of threads under every launcher, because results depend on it.

    Args:
        asked: the number of threads; 0 divides the machine's cores among its processes.
    """
    import torch

    torch.set_num_threads(asked or max(1, available_cores() // launch.local_processes))
    keep_freed_memory()


def slow_precision(settings: StageConfig, device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """A warning if the stage computes in bf16 on a device without bf16 instructions; None if not, or if unknown.

    Args:
        device: type of the device: cpu, cuda, …
    """
    if getattr(settings, "precision", "fp32") != "bf16" or not settings.runs_model():
        return None
    if device == "cuda":
        import torch

        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return "this GPU has no bf16 instructions and emulates them, so bf16 is slower than fp32; set `precision: fp32`"
    if device != "cpu" or has_bf16(cpuinfo):
        return None
    return "this CPU has no bf16 instructions, so bf16 is many times slower than fp32; set `precision: fp32`"


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has bf16 instructions; True if unknown."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found is None or not _BF16.isdisjoint(found[1].split())


def make_accelerator(cells: Sequence[StageConfig], launch: LaunchContext, directory: Path) -> Accelerator:
    """Set up this process's device and join the other processes of the launch.

    Args:
        cells: the settings of each cell of the stage.
        directory: directory of the run, for trackers.

    Raises:
        InputError: if the launch differs from its configuration, or the stage does not run under it.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    trackers = cells[0].trackers if isinstance(cells[0], TrainingConfig) else []
    if launch.error is not None:
        raise InputError(launch.error)
    for cell in cells:
        cell.check_engine(launch.engine)
    on_cpu = not torch.cuda.is_available()
    if launch.device == "gpu" and on_cpu:
        raise InputError(
            "launch: the configuration asks for GPUs, but torch sees none; check `nvidia-smi` and"
            " `torch.version.cuda`, or use accelerate_configs/cpu*.yaml for processes on the CPU"
        )
    if launch.device == "cpu" and not on_cpu and launch.engine != "one":
        raise InputError(
            'launch: the configuration asks for CPUs, but GPUs are visible; add gpu_ids: "-1,-1", as in'
            " accelerate_configs/cpu_ddp.yaml"
        )
    visible = torch.cuda.device_count()
    # Processes that a launcher starts see the same GPUs. Two of them on one would wait for each other, or fail in NCCL.
    if not on_cpu and launch.parent is not None and launch.local_processes > visible:
        raise InputError(
            f"launch: asks for {launch.local_processes} processes on this machine, but torch sees {visible} "
            f"GPU{'s' if visible > 1 else ''}; set num_processes to {visible}, or check CUDA_VISIBLE_DEVICES"
        )
    groups: dict[str, Any] = {"timeout": COLLECTIVE_TIMEOUT}
    if launch.engine.startswith("zero"):
        check_installed("deepspeed", "deepspeed", "launch")
        if on_cpu:
            import deepspeed

            # Its shared-memory collectives compile at first use, for about a minute; gloo gives the same bits.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            # With cpu=True each of DeepSpeed's processes would silently train alone.
            groups["backend"] = "gloo"
    accelerator = Accelerator(
        # Without this, several processes that find no GPU would each train alone, and one process would choose any
        # other accelerator (MPS, XPU), where this package has not run.
        cpu=on_cpu and (launch.processes > 1 or launch.engine == "one") and "backend" not in groups,
        kwargs_handlers=[InitProcessGroupKwargs(**groups)],
        log_with=list(trackers) or None,
        project_dir=str(directory) if trackers else None,
    )
    if accelerator.num_processes != launch.processes:
        raise InputError(
            f"launch: expected {launch.processes} processes but accelerate set up {accelerator.num_processes}; compare"
            " distributed_type and use_cpu in the launch configuration with accelerate_configs/"
        )
    return accelerator


def free_memory(accelerator: Accelerator) -> None:
    """Free the memory of a finished job, beside which the model of the next one might not fit on the device.

    Engines and CUDA graphs are in reference cycles, which Python collects late, and accelerate keeps DeepSpeed's.
    """
    import torch

    accelerator.free_memory()
    _forget_zero3()
    gc.collect()  # accelerate collects before it forgets its models
    torch.cuda.empty_cache()


def _forget_zero3() -> None:
    """Remove finished ZeRO-3 engines from two globals of DeepSpeed, which would keep their modules in memory.

    DeepSpeed 0.19 has no public call for this: `engine.destroy()`, which accelerate calls, clears neither. If a version
    has no attributes of these names, there is nothing to clear.
    """
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    # The module of every engine is pushed when the engine is made, and never popped.
    getattr(offload, "FWD_MODULE_STACK", []).clear()
    # The cache of a method keeps its arguments, the coordinator and the modules. A decorator wraps it once more.
    coordinator = getattr(offload, "PartitionedParameterCoordinator", None)
    method = getattr(coordinator, "_PartitionedParameterCoordinator__params_to_release", None)
    wrapped = [cell.cell_contents for cell in getattr(method, "__closure__", None) or ()]
    for cached in (method, *wrapped):
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak of a GPU from now on."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of this process, and of the tensors on its GPU since `reset_peak_memory`."""
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        import torch

        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
