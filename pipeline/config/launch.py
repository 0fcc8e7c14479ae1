"""Launch configurations: what an accelerate configuration asks for, and how this process was launched.

    distributed_type   NO → one        MULTI_GPU, MULTI_CPU, … → ddp
                       DEEPSPEED → zero1, zero2, zero3 (deepspeed_config.zero_stage)        FSDP → fsdp2

Keys, values and defaults are those of accelerate 1.15.0 (`commands/launch.py`, `utils/dataclasses.py`). Configurations
that accelerate would not run as written (one process instead of several), or under which no stage can train (FSDP 1,
NVMe), are rejected here, before anything is launched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, read_yaml
from t5_pipeline.core.packaged import or_packaged
from t5_pipeline.core.suggestions import nearest

Engine = Literal["one", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
REPLICATED: tuple[Engine, ...] = ("one", "ddp")
"""Engines that keep all weights, gradients and optimizer state on every device."""

_ZERO: dict[int, Engine] = {1: "zero1", 2: "zero2", 3: "zero3"}
_ZERO_DEFAULT = 2  # accelerate's
_SEVERAL = ("MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_HPU")
_TYPES = ("NO", *_SEVERAL, "DEEPSPEED", "FSDP")

# Set by the runner for a stage: a file that it locks while it lives, and what the launch configuration asks for.
_RUNNER = "T5_PIPELINE_RUNNER"
_ENGINE, _PROCESSES, _DEVICE = "T5_PIPELINE_ENGINE", "T5_PIPELINE_PROCESSES", "T5_PIPELINE_DEVICE"


@dataclass(frozen=True)
class LaunchConfig:
    """The engine of a launch and its processes.

    Attributes:
        processes: number of processes over all machines; each has one device, or a share of a CPU.
        cpu: whether the processes compute on CPUs.
        offload_optimizer: keep the optimizer state (and, under ZeRO, the gradients it needs) in host memory.
        offload_parameters: keep the sharded weights in host memory, too.
        reshard: free a block's gathered weights after its forward pass (zero3, fsdp2).

    >>> LaunchConfig()
    LaunchConfig(engine='one', processes=1, machines=1, cpu=False, offload_optimizer=False, \
offload_parameters=False, reshard=True)
    """

    engine: Engine = "one"
    processes: int = 1
    machines: int = 1
    cpu: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reshard: bool = True


def runner_environment(lock: Path, asked: LaunchConfig | None) -> dict[str, str]:
    """Environment variables for a stage that this process launches; `LaunchContext` reads them.

    Args:
        lock: a file that this process locks while it lives.
        asked: the launch configuration; None for plain Python on one process, whatever its device.
    """
    engine, processes = (asked.engine, asked.processes) if asked else ("one", 1)
    device = "" if asked is None else "cpu" if asked.cpu else "gpu"
    return {_RUNNER: str(lock.absolute()), _ENGINE: engine, _PROCESSES: str(processes), _DEVICE: device}


@dataclass(frozen=True)
class LaunchContext:
    """How this process was launched. Made once, by `from_environment`, before accelerate adds variables of its own.

    Attributes:
        engine: the engine that the launcher set up.
        rank, processes: rank and world size.
        local_processes: processes on this machine.
        parent: process id of the launcher or runner; None if a person started this process.
        runner: file that the runner locks while it lives; None if there is no runner.
        device: the device that the launch configuration asks for; None if it does not matter.
        reshard, offload: FSDP2's settings.
        error: why no stage can run under this launch; None if one can.
    """

    engine: Engine = "one"
    rank: int = 0
    processes: int = 1
    local_processes: int = 1
    parent: int | None = None
    runner: Path | None = None
    device: Literal["cpu", "gpu"] | None = None
    reshard: bool = True
    offload: bool = False
    error: str | None = None

    @classmethod
    def from_environment(cls) -> LaunchContext:
        """Read the variables that torch's and accelerate's launchers and the runner set."""
        found = os.environ
        processes = int(found.get("WORLD_SIZE", "1"))
        engine, error = _launched_engine(found, processes)
        expected = found.get(_ENGINE, engine), int(found.get(_PROCESSES, processes))
        # `accelerate launch` sets a meeting point for several processes even if it then starts only one.
        if "WORLD_SIZE" not in found and {"MASTER_ADDR", "ACCELERATE_DYNAMO_MODE"} <= found.keys():
            error = (
                "accelerate started one process, but its configuration asks for several; on CPUs, several processes"
                " need `distributed_type: MULTI_GPU`, as in accelerate_configs/cpu_ddp.yaml"
            )
        elif error is None and expected != (engine, processes):
            error = (
                f"launch: expected {_processes(*expected)} but got {_processes(engine, processes)}; check whether a"
                " scheduler's WORLD_SIZE or an ACCELERATE_ variable overrides the launch configuration"
            )
        launched = _RUNNER in found or any(name.startswith("ACCELERATE_") for name in found)
        device = found.get(_DEVICE)
        return cls(
            engine=engine,
            rank=int(found.get("RANK", "0")),
            processes=processes,
            local_processes=int(found.get("LOCAL_WORLD_SIZE", "1")),
            parent=os.getppid() if launched else None,
            runner=Path(found[_RUNNER]) if _RUNNER in found else None,
            device="cpu" if device == "cpu" else "gpu" if device == "gpu" else None,
            reshard=found.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true",
            offload=found.get("FSDP_OFFLOAD_PARAMS", "false") == "true",
            error=error,
        )


def _launched_engine(found: Mapping[str, str], processes: int) -> tuple[Engine, str | None]:
    """The engine that accelerate's variables name, and why no stage runs on it, if none does."""
    if found.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = found.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        if stage.isdecimal() and int(stage) in _ZERO:
            return _ZERO[int(stage)], None
        return "one", (
            f"deepspeed_config.zero_stage: {stage or 'a deepspeed_config_file'} is not supported; give zero_stage 1, 2"
            " or 3 in the accelerate configuration, as in accelerate_configs/zero2.yaml"
        )
    if found.get("ACCELERATE_USE_FSDP") == "true":
        version = found.get("FSDP_VERSION", "1")
        if version == "2":
            return "fsdp2", None
        return (
            "one",
            f"fsdp_config.fsdp_version: {version} is not supported; set 2, as in accelerate_configs/fsdp2.yaml",
        )
    return ("ddp" if processes > 1 else "one"), None


def _processes(engine: str, processes: int) -> str:
    """The processes of a launch, for errors.

    >>> _processes("ddp", 4), _processes("one", 1)
    ('4 processes (ddp)', '1 process (one)')
    """
    return f"{processes} process{'es' if processes > 1 else ''} ({engine})"


def read_launch_config(path: str | Path, where: str = "launch") -> LaunchConfig:
    """Read an accelerate configuration.

    Args:
        where: setting that names it, for errors.

    Raises:
        InputError: if the file cannot be read, or no stage can train under it.
    """
    file = or_packaged(Path(path))
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise InputError(f"{where}: {path} {problem}; check the path (accelerate_configs/ has examples)")
    located = read_yaml(file)
    data = located.data
    if not isinstance(data, dict):
        raise InputError(f"{path}: is not an accelerate configuration; see accelerate_configs/")
    kind = data.get("distributed_type")
    kind = "NO" if kind is False else kind  # unquoted, YAML reads NO as false
    place = located.where(("distributed_type",))
    if kind is None:
        raise InputError(f"{place}: is missing; choose one of {', '.join(_TYPES)}")
    if kind not in _TYPES:
        raise InputError(f"{place}: {kind!r} is not supported; {nearest(str(kind), _TYPES)}")

    processes = _count(located, data, "num_processes", 1 if kind == "NO" else None)
    machines = _count(located, data, "num_machines", 1)
    if kind == "NO" and processes > 1:
        raise InputError(
            f"{located.where(('num_processes',))}: is {processes}, but `distributed_type: NO` starts one process;"
            " use MULTI_GPU"
        )
    if processes % machines:
        raise InputError(
            f"{located.where(('num_processes',))}: {processes} processes over {machines} machines; give the total over"
            " all machines, a multiple of their number"
        )
    # Processes without a visible GPU train on the CPU, whatever use_cpu says.
    hidden = {number.strip() for number in str(data.get("gpu_ids", "all")).split(",")} == {"-1"}
    cpu = bool(data.get("use_cpu", False)) or kind == "MULTI_CPU" or hidden
    if kind == "DEEPSPEED":
        return _deepspeed(located, processes, machines, cpu)
    if kind == "FSDP":
        return _fsdp(located, processes, machines, cpu)
    return LaunchConfig("ddp" if processes > 1 else "one", processes, machines, cpu)


def _deepspeed(located: Located, processes: int, machines: int, cpu: bool) -> LaunchConfig:
    settings = _section(located, "deepspeed_config")

    def where(*keys: str) -> str:
        return located.where(("deepspeed_config", *keys))

    stage, optimizer, parameters = "zero_stage", "offload_optimizer_device", "offload_param_device"
    values = {key: settings.get(key) for key in (stage, optimizer, parameters)}
    if settings.get("deepspeed_config_file") not in (None, "none"):
        raise InputError(
            f"{where('deepspeed_config_file')}: is not supported; give zero_stage and the offload"
            " devices here instead, as in accelerate_configs/zero2.yaml"
        )
    number = values[stage]
    number = _ZERO_DEFAULT if number is None else number
    if number not in _ZERO or isinstance(number, bool):
        hint = "; use `distributed_type: MULTI_GPU` to train without sharding" if number == 0 else ""
        raise InputError(f"{where(stage)}: must be 1, 2 or 3, not {number!r}{hint}")
    offload_optimizer = _on_cpu(values[optimizer], where(optimizer))
    offload_parameters = _on_cpu(values[parameters], where(parameters))
    if offload_parameters and number != 3:
        raise InputError(f"{where(parameters)}: only ZeRO-3 can keep weights in host memory; set zero_stage: 3")
    return LaunchConfig(_ZERO[number], processes, machines, cpu, offload_optimizer, offload_parameters)


def _fsdp(located: Located, processes: int, machines: int, cpu: bool) -> LaunchConfig:
    # accelerate accepts keys with and without the prefix.
    settings = {
        key if key.startswith("fsdp_") else f"fsdp_{key}": value
        for key, value in _section(located, "fsdp_config").items()
    }

    def where(key: str) -> str:
        short = key.removeprefix("fsdp_")
        return located.where(("fsdp_config", short if ("fsdp_config", short) in located.lines else key))

    version = settings.get("fsdp_version", 1)
    if str(version) != "2":
        raise InputError(f"{where('fsdp_version')}: {version} is not supported; set fsdp_version: 2")
    offload = _flag(settings.get("fsdp_offload_params", False), where("fsdp_offload_params"))
    reshard = _flag(settings.get("fsdp_reshard_after_forward", True), where("fsdp_reshard_after_forward"))
    return LaunchConfig("fsdp2", processes, machines, cpu, offload, offload, reshard)


def _section(located: Located, key: str) -> Mapping[str, Any]:
    values = located.data.get(key)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{located.where((key,))}: must contain keys, not {values!r}")
    return {str(name): value for name, value in values.items()}


def _count(located: Located, data: Mapping[str, Any], key: str, default: int | None) -> int:
    value = data.get(key, default)
    if type(value) is not int or value < 1:
        found = "is missing" if value is None else f"is {value!r}"
        raise InputError(f"{located.where((key,))}: {found}; give a whole number of at least 1")
    return value


def _on_cpu(device: Any, where: str) -> bool:
    if device in (None, "none", "cpu"):
        return device == "cpu"
    raise InputError(f"{where}: must be none or cpu, not {device!r}")


def _flag(value: Any, where: str) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise InputError(f"{where}: must be true or false, not {value!r}")
    return text == "true"
