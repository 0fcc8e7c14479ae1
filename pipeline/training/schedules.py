"""Learning rates as plain functions of the step.

A schedule is called with the number of completed optimizer steps: 0 gives the rate of the first step, as in T5X. The
rate is a function of the step alone, so resuming has nothing to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from t5_pipeline.config.training import OptimizerConfig

Schedule = Callable[[int], float]


def constant(peak: float, warmup_steps: int = 0) -> Schedule:
    """`peak` at every step, after a linear rise over the first `warmup_steps` steps.

    >>> [constant(0.3)(step) for step in (0, 10_000)]
    [0.3, 0.3]
    >>> [constant(1.0, warmup_steps=4)(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lambda step: peak * _rise(step, warmup_steps)


def rsqrt(peak: float, warmup_steps: int, step_offset: int = 0) -> Schedule:
    """peak / √max(step + step_offset, warmup_steps): constant in warm-up, then falling (Raffel et al. 2020, §3.1.2).

    A T5 trained further continues its step count: T5 1.1 was pretrained for 1,000,000 steps, so its adaptation begins
    at 1/√1e6.

    >>> fresh, continued = rsqrt(1.0, 10_000), rsqrt(1.0, 10_000, step_offset=1_000_000)
    >>> fresh(0), fresh(40_000), continued(0), round(continued(100_000), 6)
    (0.01, 0.005, 0.001, 0.000953)
    """
    return lambda step: peak / math.sqrt(max(step + step_offset, warmup_steps, 1))


def linear(peak: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """`peak` falling in a straight line to 0 after `total_steps` steps, after a linear rise over `warmup_steps`.

    >>> [linear(1.0, total_steps=4)(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    falling = max(total_steps - warmup_steps, 1)
    return lambda step: peak * _rise(step, warmup_steps) * min(1.0, max(0.0, (total_steps - step) / falling))


def learning_rate(
    schedule: str, *, peak: float, warmup_steps: int = 0, step_offset: int = 0, total_steps: int = 0
) -> Schedule:
    """The schedule of this name. Only `linear` uses `total_steps`, only `rsqrt` uses `step_offset`.

    Raises:
        ValueError: if the name is unknown.
    """
    match schedule:
        case "constant":
            return constant(peak, warmup_steps)
        case "rsqrt":
            return rsqrt(peak, warmup_steps, step_offset)
        case "linear":
            return linear(peak, total_steps, warmup_steps)
    raise ValueError(f"unknown schedule `{schedule}`; use constant, rsqrt or linear")


def schedule_of(c: OptimizerConfig) -> Schedule:
    """The schedule of a stage's settings."""
    return learning_rate(
        c.schedule,
        peak=c.learning_rate,
        warmup_steps=c.warmup_steps,
        step_offset=c.step_offset,
        total_steps=c.steps,
    )


def _rise(step: int, warmup_steps: int) -> float:
    """(step + 1) / warmup_steps up to 1. T5X starts at 0/warmup, a first step without effect."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
