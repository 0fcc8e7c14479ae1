"""Learning rates and gradients of a made-up training, for tests of optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

LENGTHS = [1, 20, 5, 150, 1, 64, 128]
"""Rows of the prompts of a bank."""


def rate(step: int) -> float:
    return 0.3 / (1 + step) ** 0.25


def gradients(shape: tuple[int, ...], steps: int, seed: int) -> Iterator[Array]:
    """Gradients whose scale varies by orders of magnitude between entries and between steps, sometimes exactly 0."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-4, 2, shape)
    for step in range(steps):
        g = rng.normal(size=shape) * scale * 10.0 ** rng.uniform(-3, 3)
        yield np.where(rng.random(shape) < 0.1, 0.0, g) if step % 3 else g
