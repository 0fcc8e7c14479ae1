"""Description of the machine, clocks, and the rate of its matrix products.

Shares of a rate refer to a rate measured in the same run with the same clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from t5_pipeline.execution.environment import processor, versions
from t5_pipeline.modeling.config import T5Config

SQUARES = (512, 1024, 2048, 4096)


def described() -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "clock": Clock.now.__name__,
        "versions": versions() | {"peft": _version("peft")},
    }


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


def matmul_rate(rows: int, inner: int, columns: int, times: int = 9) -> float:
    """FLOP/s of [rows, inner] · [inner, columns] in bf16, as a layer computes it (median of `times`)."""
    x, weight = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16()
    F.linear(x, weight)
    return 2 * rows * inner * columns / statistics.median(seconds(lambda: F.linear(x, weight)) for _ in range(times))


def layer_rate(shape: T5Config, tokens: int) -> float:
    """FLOP/s of the model's d_model × d_ff product at the tokens of a microbatch."""
    return matmul_rate(tokens, shape.d_model, shape.d_ff)


def best_square() -> tuple[int, float]:
    """Size and FLOP/s of the fastest square product."""
    return max(((size, matmul_rate(size, size, size, 5)) for size in SQUARES), key=lambda found: found[1])


class Clock:
    """Wall time, or CPU time of this process, which other work on the machine hardly changes.

    With one thread on an idle machine both are the same. With several, waiting threads count as busy.
    """

    now: Callable[[], float] = time.perf_counter

    @classmethod
    def use(cls, name: str) -> None:
        cls.now = {"wall": time.perf_counter, "cpu": time.process_time}[name]


def seconds(work: Callable[[], Any]) -> float:
    began = Clock.now()
    work()
    return Clock.now() - began


def paired(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Median seconds of both sides, and the median ratio of consecutive turns."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "peer": name,
        "ours_s": round(statistics.median(ours), 3),
        "theirs_s": round(statistics.median(theirs), 3),
        "times_faster": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }
