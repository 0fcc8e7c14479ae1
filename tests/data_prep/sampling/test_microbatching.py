"""Microbatches compared with all alternatives, and their padding for realistic lengths."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.sampling.microbatching import (
    CPU,
    CPU_BF16_WEIGHTS,
    GPU,
    Device,
    device_of,
    min_padding_microbatches,
)

widths = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=9).map(
    lambda rows: [(8 * n, 8 * m) for n, m in sorted(rows)]
)


def cost(rows: list[tuple[int, int]], parts: list[tuple[int, int]], device: Device) -> float:
    total = 0
    for begin, end in parts:
        positions = (end - begin) * (max(n for n, _ in rows[begin:end]) + max(m for _, m in rows[begin:end]))
        if positions > device.at_once and end - begin > 1:
            return float("inf")
        total += positions + device.per_pass
    return total


@given(rows=widths, device=st.sampled_from([CPU, CPU_BF16_WEIGHTS]))
def test_no_other_division_is_cheaper(rows: list[tuple[int, int]], device: Device) -> None:
    found = min_padding_microbatches([n for n, _ in rows], [m for _, m in rows], device)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(rows)
    inner = range(1, len(rows))
    least = min(
        cost(rows, list(itertools.pairwise([0, *places, len(rows)])), device)
        for count in range(len(rows))
        for places in itertools.combinations(inner, count)
    )
    assert cost(rows, found, device) == least


def test_only_a_trained_t5_in_bf16_has_expensive_passes_on_a_cpu() -> None:
    assert device_of("cpu", "bf16", trains_weights=True) is CPU_BF16_WEIGHTS
    assert device_of("cpu", "bf16", trains_weights=False) is CPU
    assert device_of("cpu", "fp32", trains_weights=True) is CPU
    assert device_of("cuda", "bf16", trains_weights=True) is GPU


def test_no_rows() -> None:
    assert min_padding_microbatches([], []) == []


def test_realistic_lengths_need_little_padding() -> None:
    lengths = np.sort(np.random.default_rng(0).lognormal(np.log(110), 0.6, 32).astype(int).clip(20, 512))
    rows = -(-lengths // 8) * 8
    parts = min_padding_microbatches(rows, [8] * 32)
    padded = sum((end - begin) * rows[end - 1] for begin, end in parts)
    assert padded < 1.25 * lengths.sum()
    assert padded < 0.6 * 32 * rows[-1]
    assert len(parts) <= 32 * rows[-1] // CPU.per_pass
