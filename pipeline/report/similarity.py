"""Similarity of tasks by their prompts (SPoT, Vu et al. 2022, §5): two cosines, each a mean over pairs of prompts.

    average   cos(mean row of P, mean row of Q)
    token     mean over i, j of cos(P_i, Q_j)

P, Q rows of two prompts, D d_model, N prompts
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

from t5_pipeline.core.bounded import tensor_entries
from t5_pipeline.core.errors import InputError


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
        path = prompt / "prompt.safetensors"
        try:
            entry = tensor_entries(path).get("prompt")
            rows_PD = load_file(path)["prompt"] if entry and entry.dtype == "F32" and len(entry.shape) == 2 else None
        except (OSError, SafetensorError, InputError):
            return None
        return cls.of(rows_PD) if rows_PD is not None and rows_PD.size and np.isfinite(rows_PD).all() else None


def similarities(prompts: Iterable[tuple[str, PromptMeans]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Similarity of each two tasks, and of the prompts of each task to one another if it has several.

    Args:
        prompts: task and means of each prompt; all of one frozen T5.

    Returns:
        similarity by average and by token.

    >>> a, b = PromptMeans.of(np.array([[1.0, 0.0], [0.0, 3.0]])), PromptMeans.of(np.array([[0.0, 2.0]]))
    >>> [round(found, 3) for found in similarities([("a", a), ("b", b)])["a", "b"]]
    [0.949, 0.5]
    """
    tasks, means = zip(*prompts, strict=True)
    rows_ND, units_ND = np.array([one.rows_D for one in means]), np.array([one.units_D for one in means])
    rows_ND /= np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)
    cosines_NN2 = np.stack([rows_ND @ rows_ND.T, units_ND @ units_ND.T], axis=-1).tolist()
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for i, j in itertools.combinations(range(len(tasks)), 2):
        for key in {(tasks[i], tasks[j]), (tasks[j], tasks[i])}:
            pairs.setdefault(key, []).append(cosines_NN2[i][j])
    return {
        key: (statistics.fmean(average for average, _ in found), statistics.fmean(token for _, token in found))
        for key, found in pairs.items()
    }
