from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.objectives.documents import CHUNK, cache_recent, locate, random_chunks, with_eos


@given(lengths=st.lists(st.integers(0, 5 * CHUNK), max_size=20), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_chunks_start_at_multiples_of_the_chunk_size(lengths: list[int], seed: int, epoch: int) -> None:
    starts, sizes = random_chunks(np.array(lengths, dtype=np.int64), seed, epoch)
    for length, start, size in zip(lengths, starts.tolist(), sizes.tolist(), strict=True):
        assert start % CHUNK == 0
        assert size == min(CHUNK, length - start)
        assert size > 0 or length == 0


def test_chunks_are_uniform_and_redrawn_each_epoch() -> None:
    lengths = np.full(3000, 3 * CHUNK + 7)
    starts, _ = random_chunks(lengths, seed=0, epoch=0)
    counts = np.bincount(starts // CHUNK, minlength=4)
    assert ((counts - 750) ** 2 / 750).sum() < 16.3  # chi-squared, 3 degrees: p = 0.001
    assert (random_chunks(lengths, 0, 1)[0] != starts).any()
    assert (random_chunks(lengths, 1, 0)[0] != starts).any()


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=30).filter(any))
def test_locate_inverts_counting(counts: list[int]) -> None:
    owner, offset = locate(np.cumsum(counts), np.arange(sum(counts)))
    assert list(zip(owner.tolist(), offset.tolist(), strict=True)) == [
        (i, j) for i, count in enumerate(counts) for j in range(count)
    ]
    with pytest.raises(IndexError):
        locate(np.cumsum(counts), [sum(counts)])
    with pytest.raises(IndexError):
        locate(np.cumsum(counts), [-1])


def test_with_eos_truncates_before_eos() -> None:
    assert with_eos(np.arange(10, 20), 1, 5).tolist() == [10, 11, 12, 13, 1]
    assert with_eos(np.arange(10, 12, dtype=np.uint16), 1, 5).tolist() == [10, 11, 1]
    assert with_eos(np.array([], dtype=np.uint16), 1, 5).tolist() == [1]
    assert with_eos(np.array([7]), 1, 5).dtype == np.int32


def test_recent_results_are_cached() -> None:
    computed: list[int] = []

    def compute(key: int) -> int:
        computed.append(key)
        return key * 10

    of_epoch = cache_recent(compute)
    assert [of_epoch(k) for k in (0, 1, 0, 1, 2, 1, 0)] == [0, 10, 0, 10, 20, 10, 0]
    assert computed == [0, 1, 2, 0]


class Yielding(int):
    """A key that lets another thread run whenever it is looked up."""

    def __hash__(self) -> int:
        time.sleep(0)
        return int.__hash__(self)


def test_threads_share_recent_results() -> None:
    """The ids of a non-finite step are computed while later batches are prefetched."""
    of_epoch = cache_recent(lambda key: key * 10)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(of_epoch, [Yielding(k % 7) for k in range(2000)])) == [k % 7 * 10 for k in range(2000)]
