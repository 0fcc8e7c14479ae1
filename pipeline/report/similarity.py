"""Similarity of tasks by their prompts (SPoT, Vu et al. 2022, §5): two cosines, each a mean over pairs of prompts.

    average   cos(mean row of P, mean row of Q)
    token     mean over i, j of cos(P_i, Q_j)

P, Q rows of two prompts, D d_model
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file


@dataclass(frozen=True)
class PromptMeans:
    """The two means of a prompt from which both cosines follow: of its rows, and of its rows scaled to length 1."""

    rows_D: tuple[float, ...]
    units_D: tuple[float, ...]

    @classmethod
    def of(cls, rows_PD: npt.NDArray[Any]) -> PromptMeans:
        rows_PD = rows_PD.astype(np.float64)
        lengths_P1 = np.linalg.norm(rows_PD, axis=1, keepdims=True)
        units_PD = rows_PD / np.maximum(lengths_P1, 1e-12)
        return cls(tuple(rows_PD.mean(axis=0).tolist()), tuple(units_PD.mean(axis=0).tolist()))

    @classmethod
    def read(cls, prompt: Path) -> PromptMeans | None:
        """Those of a prompt on disk; None if it cannot be read."""
        try:
            rows_PD = load_file(prompt / "prompt.safetensors")["prompt"]
        except (OSError, SafetensorError, KeyError):
            return None
        return cls.of(rows_PD) if rows_PD.ndim == 2 and rows_PD.size and bool(np.isfinite(rows_PD).all()) else None

    def similarity(self, other: PromptMeans) -> tuple[float, float]:
        """Similarity by average and by token.

        >>> a, b = PromptMeans.of(np.array([[1.0, 0.0], [0.0, 3.0]])), PromptMeans.of(np.array([[0.0, 2.0]]))
        >>> [round(found, 3) for found in a.similarity(b)]
        [0.949, 0.5]
        """
        norms = float(np.linalg.norm(self.rows_D) * np.linalg.norm(other.rows_D))
        return float(np.dot(self.rows_D, other.rows_D)) / max(norms, 1e-12), float(np.dot(self.units_D, other.units_D))


def similarities(prompts: Iterable[tuple[str, PromptMeans]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Similarity of each two tasks, and of the prompts of each task to one another if it has several.

    Args:
        prompts: task and means of each prompt; all of one frozen T5.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (first, a), (second, b) in itertools.combinations(prompts, 2):
        for key in {(first, second), (second, first)}:
            pairs.setdefault(key, []).append(a.similarity(b))
    return {
        key: (statistics.fmean(average for average, _ in found), statistics.fmean(token for _, token in found))
        for key, found in pairs.items()
    }
