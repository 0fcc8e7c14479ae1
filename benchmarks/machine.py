"""Description of the machine, clocks, and the rate of its matrix products.

Shares of a rate refer to a rate measured in the same run with the same clock.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from t5_pipeline.data_prep.sampling.microbatching import Device, device_of
from t5_pipeline.execution.devices import has_bf16
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


def fast_dtype() -> torch.dtype:
    """bf16 if this CPU has instructions for it; fp32 otherwise, because bf16 is then many times slower."""
    return torch.bfloat16 if has_bf16() else torch.float32


def device_in(dtype: torch.dtype) -> Device:
    """The costs by which LM adaptation on a CPU cuts batches into microbatches, with products in this dtype."""
    return device_of("cpu", "bf16" if dtype == torch.bfloat16 else "fp32", trains_weights=True)


def matmul_rate(rows: int, inner: int, columns: int, times: int = 9, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of [rows, inner] · [inner, columns], as a layer computes it (median of `times`)."""
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    F.linear(x, weight)
    return 2 * rows * inner * columns / statistics.median(seconds(lambda: F.linear(x, weight)) for _ in range(times))


def layer_rate(shape: T5Config, tokens: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of the model's d_model × d_ff product at the tokens of a microbatch."""
    return matmul_rate(tokens, shape.d_model, shape.d_ff, dtype=dtype)


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


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; a first round, which compiles, does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            took = seconds(work)
            print(f"{name}: {took:.2f} s", file=sys.stderr, flush=True)
            if turn:
                times[name].append(took)
    return times


def compared(times: Mapping[str, list[float]], flops: float, rate: float) -> list[dict[str, Any]]:
    """For each side: median seconds, share of a product's rate, and its time as a multiple of the fastest of ours."""
    ours = min((took for name, took in times.items() if name.startswith("ours")), key=statistics.median)
    return [
        {
            "side": name,
            "seconds": round(statistics.median(took), 3),
            "turns": [round(s, 3) for s in took],
            "share": round(flops / statistics.median(took) / rate, 3),
            "times_slower": round(statistics.median(b / a for a, b in zip(ours, took, strict=True)), 2),
        }
        for name, took in times.items()
    ]


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
