"""How a stage is launched, read from an accelerate configuration without starting anything.

    distributed_type   NO → one        MULTI_GPU, MULTI_CPU, … → ddp
                       DEEPSPEED → zero1, zero2, zero3 (deepspeed_config.zero_stage)        FSDP → fsdp2

Keys, values and defaults are those of accelerate 1.15.0 (`commands/launch.py`, `utils/dataclasses.py`). What accelerate
would run in some other way than it reads (one process where several are asked for), or what the stages cannot train
under (FSDP 1, NVMe), is an error here, before anything is launched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, read_yaml
from t5_pipeline.core.packaged import or_packaged
from t5_pipeline.core.schema import nearest

Engine = Literal["one", "ddp", "zero1", "zero2", "zero3", "fsdp2"]

_ZERO: dict[int, Engine] = {1: "zero1", 2: "zero2", 3: "zero3"}
_ZERO_DEFAULT = 2  # accelerate's
_SEVERAL = ("MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_HPU")
_TYPES = ("NO", *_SEVERAL, "DEEPSPEED", "FSDP")


@dataclass(frozen=True)
class LaunchConfig:
    """The engine of a launch, and over how many processes.

    processes: in all, over all machines; each has one device, or a share of a CPU.
    cpu: the processes compute on CPUs.
    offload_optimizer: the optimizer's state (and, under ZeRO, the gradients that it needs) lies in host memory.
    offload_parameters: the sharded weights do too.
    reshard: after a block's forward pass its gathered weights are freed again (zero3, fsdp2).

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


def read_launch_config(path: str | Path) -> LaunchConfig:
    """Read an accelerate configuration.

    Raises:
        InputError: the file cannot be read, or the stages cannot train under it; names the file, line and key.
    """
    located = read_yaml(or_packaged(Path(path)))
    data = located.data
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: the file: is not an accelerate configuration; see accelerate_configs/")
    kind = data.get("distributed_type")
    kind = "NO" if kind is False else kind  # unquoted, YAML reads NO as false
    where = located.where(("distributed_type",))
    if kind is None:
        raise InputError(f"{where}: is missing; there are: {', '.join(_TYPES)}")
    if kind not in _TYPES:
        raise InputError(f"{where}: {kind!r} is not supported; {nearest(str(kind), _TYPES)}")

    processes = _count(located, data, "num_processes", 1 if kind == "NO" else None)
    machines = _count(located, data, "num_machines", 1)
    if kind == "NO" and processes > 1:
        raise InputError(
            f"{located.where(('num_processes',))}: is {processes}, but `distributed_type: NO` starts one process;"
            " use MULTI_GPU"
        )
    if processes % machines:
        raise InputError(
            f"{located.where(('num_processes',))}: {processes} processes over {machines} machines: it is the total over"
            " all machines, which must have equally many"
        )
    # Processes to which no GPU is visible train on the CPU, whatever use_cpu says.
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
            f"{where('deepspeed_config_file')}: is not supported: the stages decide what else such a file would; give"
            " zero_stage and the offload devices here, as in accelerate_configs/zero2.yaml"
        )
    number = values[stage]
    number = _ZERO_DEFAULT if number is None else number
    if number not in _ZERO or isinstance(number, bool):
        hint = "; use `distributed_type: MULTI_GPU` to shard nothing" if number == 0 else ""
        raise InputError(f"{where(stage)}: must be 1, 2 or 3, not {number!r}{hint}")
    offload_optimizer = _on_cpu(values[optimizer], where(optimizer))
    offload_parameters = _on_cpu(values[parameters], where(parameters))
    if offload_parameters and number != 3:
        raise InputError(f"{where(parameters)}: only ZeRO-3 shards weights, so only it can keep them in host memory")
    return LaunchConfig(_ZERO[number], processes, machines, cpu, offload_optimizer, offload_parameters)


def _fsdp(located: Located, processes: int, machines: int, cpu: bool) -> LaunchConfig:
    # accelerate takes keys with and without the prefix.
    settings = {
        key if key.startswith("fsdp_") else f"fsdp_{key}": value
        for key, value in _section(located, "fsdp_config").items()
    }

    def where(key: str) -> str:
        short = key.removeprefix("fsdp_")
        return located.where(("fsdp_config", key if ("fsdp_config", key) in located.lines else short))

    version = settings.get("fsdp_version", 1)
    if str(version) != "2":
        raise InputError(f"{where('fsdp_version')}: is {version}; only FSDP 2 is supported: fsdp_version: 2")
    offload = _flag(settings.get("fsdp_offload_params", False), where("fsdp_offload_params"))
    reshard = _flag(settings.get("fsdp_reshard_after_forward", True), where("fsdp_reshard_after_forward"))
    return LaunchConfig("fsdp2", processes, machines, cpu, offload, offload, reshard)


def _section(located: Located, key: str) -> Mapping[str, Any]:
    values = located.data.get(key)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{located.where((key,))}: must hold keys below it, not {values!r}")
    return {str(name): value for name, value in values.items()}


def _count(located: Located, data: Mapping[str, Any], key: str, default: int | None) -> int:
    value = data.get(key, default)
    if type(value) is not int or value < 1:
        found = "is missing" if value is None else f"is {value!r}"
        raise InputError(f"{located.where((key,))}: {found}; it must be a whole number from 1 on")
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
