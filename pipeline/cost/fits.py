"""Whether a stage fits in the memory of a device, and which setting would make it fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.training import ExecutionConfig, TrainingConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.flops import stage_memory
from t5_pipeline.modeling.config import T5Config

_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}
_SHARDED = 8  # processes of a launch that is suggested


@dataclass(frozen=True)
class Fit:
    """Memory that a process needs and has, in bytes.

    Attributes:
        remedy: settings under which it would fit; None if it fits, or if none was found.
    """

    needs: int
    has: int
    remedy: str | None = None

    @property
    def fits(self) -> bool:
        return self.needs <= self.has


def parse_memory(text: str) -> int:
    """Bytes of memory from `80G`, `80 GiB` or `512M`, in powers of 1024.

    Raises:
        InputError: if the text is not a size.

    >>> parse_memory("80G") == parse_memory("80 GiB") == 80 * 2**30
    True
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise InputError(f"--memory {text}: is not a size; give the memory of one device, such as 80G")
    if not found[2]:
        raise InputError(f"--memory {text}: means {found[1]} bytes; did you mean {found[1]}G?")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def fit(together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig, has: int) -> Fit | None:
    """Whether a job fits; None if its memory is unknown.

    Args:
        together: the cells of the job.
        has: bytes of a device, or of the host for each process on a CPU.
    """
    needs = _needs(together, shape, launch)
    if needs is None:
        return None
    if needs <= has:
        return Fit(needs, has)
    for remedy, settings, other in _remedies(together, launch):
        changed = [cell.model_copy(update=settings) for cell in together]
        less = _needs(changed, shape, other)
        if less is not None and less <= has:
            return Fit(needs, has, remedy)
    return Fit(needs, has)


def _needs(together: Sequence[TrainingConfig], shape: T5Config, launch: LaunchConfig) -> int | None:
    found = stage_memory(together, shape, launch)
    if found is None:
        return None
    return round(found.peak + (found.host + found.snapshot if launch.cpu else 0))


def _remedies(
    together: Sequence[TrainingConfig], launch: LaunchConfig
) -> Iterator[tuple[str, dict[str, Any], LaunchConfig]]:
    """Changes that save memory, those that cost least time first: text, settings, launch."""
    settings = together[0]
    changes: list[tuple[str, dict[str, Any]]] = []
    for size in (32, 8, 1):
        if settings.microbatch_size == 0 or size < settings.microbatch_size:
            changes.append((f"microbatch_size: {size}", {"microbatch_size": size}))
    if isinstance(settings, ExecutionConfig) and not settings.recompute:
        changes.append(("recompute: true", {"recompute": True}))
        changes.append(("microbatch_size: 1 and recompute: true", {"microbatch_size": 1, "recompute": True}))
    yield from ((text, change, launch) for text, change in changes)
    if launch.cpu:
        return
    processes = max(_SHARDED, launch.processes)
    smallest = changes[-1] if changes else ("", {})
    for engine in ("zero2", "zero3", "fsdp2"):
        sharded = replace(launch, engine=engine, processes=processes)
        try:
            settings.check_engine(engine)
        except InputError:
            continue
        for text, change in (("", {}), smallest):
            what = f"launch: accelerate_configs/{engine}.yaml on {processes} devices"
            yield (f"{what} and {text}" if text else what), change, sharded
