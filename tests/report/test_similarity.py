"""Similarity of prompts against the definition, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5_pipeline.report.similarity import PromptMeans, similarities


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_two_cosines_averaged_over_pairs_of_prompts() -> None:
    rng = np.random.default_rng(0)
    prompts = [(task, rng.normal(size=(length, 6)) + 1) for task, length in (("a", 3), ("b", 5), ("a", 2))]
    found = similarities((task, PromptMeans.of(rows)) for task, rows in prompts)
    (_, a), (_, b), (_, c) = prompts

    def by_token(p: Any, q: Any) -> float:
        return float(np.mean([cosine(x, y) for x in p for y in q]))

    expected = np.mean([[cosine(p.mean(0), b.mean(0)), by_token(p, b)] for p in (a, c)], axis=0)
    assert found["a", "b"] == found["b", "a"] == pytest.approx(tuple(expected))
    assert found["a", "a"] == pytest.approx((cosine(a.mean(0), c.mean(0)), by_token(a, c)))
    assert ("b", "b") not in found


def test_unreadable_prompts_are_left_out(tmp_path: Path) -> None:
    assert PromptMeans.read(tmp_path) is None
    for rows in (np.array([[np.nan, 1.0]], np.float32), np.zeros(3, np.float32)):
        save_file({"prompt": rows}, tmp_path / "prompt.safetensors")
        assert PromptMeans.read(tmp_path) is None
    (tmp_path / "prompt.safetensors").write_bytes(b"{}")
    assert PromptMeans.read(tmp_path) is None
