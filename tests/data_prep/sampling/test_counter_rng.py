from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform, uniform_int

GOLDEN = [2077725254831383378, 16152480502485553545, 5641218701975866635]
GOLDEN_PAIR = 1789851989028803481


def test_known_bits() -> None:
    """All results depend on the bits, so they must never change with a version or platform."""
    assert bits(0, "golden", [0, 1, 2**40]).tolist() == GOLDEN
    assert int(bits(123, "golden", 7, 3)) == GOLDEN_PAIR


@given(seed=st.integers(0, 2**64), index=st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_draws_depend_only_on_their_own_index(seed: int, index: list[int]) -> None:
    together = bits(seed, "stream", index)
    assert together.tolist() == [int(bits(seed, "stream", i)) for i in index]


def test_seed_stream_and_each_counter_matter() -> None:
    draws = [
        int(bits(*arguments))
        for arguments in [
            (0, "a", 1),
            (1, "a", 1),
            (0, "b", 1),
            (0, "a", 2),
            (0, "a", 1, 0),
            (0, "a", 0, 1),
            (0, "a", 1, 1),
        ]
    ]
    assert len(set(draws)) == len(draws)


def test_counters_broadcast() -> None:
    table = bits(5, "t", np.arange(3)[:, None], np.arange(4)[None, :])
    assert table.shape == (3, 4)
    assert int(table[2, 3]) == int(bits(5, "t", 2, 3))
    assert bits(5, "t", np.zeros((0,), dtype=np.int64)).shape == (0,)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 2**63))
def test_uniform_int_is_the_high_word_of_the_product(words: list[int], n: int) -> None:
    assert uniform_int(np.array(words, dtype=np.uint64), n).tolist() == [word * n >> 64 for word in words]


@pytest.mark.parametrize("n", [2, 6, 100])
def test_uniform_int_is_uniform(n: int) -> None:
    draws = 200 * n
    counts = np.bincount(uniform_int(bits(1, "chi", np.arange(draws)), n), minlength=n)
    statistic = ((counts - 200) ** 2 / 200).sum()
    assert abs(statistic - (n - 1)) < 4 * np.sqrt(2 * (n - 1)) + 4


def test_bits_are_balanced_and_neighbors_are_independent() -> None:
    words = bits(2, "avalanche", np.arange(20_000))
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64)
    assert np.abs(ones.mean(axis=0) - 0.5).max() < 0.02
    flipped = np.unpackbits((words[1:] ^ words[:-1]).view(np.uint8)).reshape(-1, 64)
    assert np.abs(flipped.mean(axis=0) - 0.5).max() < 0.02


def test_uniform_is_in_the_unit_interval() -> None:
    u = uniform(bits(3, "u", np.arange(100_000)))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert float(uniform(np.array([2**64 - 1], dtype=np.uint64))[0]) < 1
