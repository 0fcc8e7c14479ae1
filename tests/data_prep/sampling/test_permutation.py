from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.sampling.permutation import Permutation


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_is_a_bijection(n: int, seed: int) -> None:
    assert np.sort(Permutation(n, seed)(np.arange(n))).tolist() == list(range(n))


@given(n=st.integers(1, 2**50), seed=st.integers(0, 9), index=st.lists(st.integers(0, 2**50), max_size=9))
def test_parts_equal_the_whole(n: int, seed: int, index: list[int]) -> None:
    here = [i % n for i in index]
    shuffled = Permutation(n, seed)
    assert shuffled(np.array(here, dtype=np.int64)).tolist() == [int(shuffled(i)) for i in here]
    assert all(0 <= int(shuffled(i)) < n for i in here)


def test_orders_of_four_are_uniform() -> None:
    orders = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(2400))
    assert len(orders) == 24
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 49.7  # chi-squared, 23 degrees: p = 0.001


def test_neighbors_are_separated() -> None:
    n = 10_000
    order = Permutation(n, 3)(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(order)) < 100) < 0.04  # 0.02 for a random order


def test_seed_and_stream_matter() -> None:
    index = np.arange(50)
    orders = [Permutation(50, seed, stream)(index).tolist() for seed in (0, 1) for stream in ("a", "b")]
    assert len({tuple(order) for order in orders}) == 4


def test_shape_is_kept_and_invalid_indices_are_rejected() -> None:
    assert Permutation(6, 0)(np.arange(6).reshape(2, 3)).shape == (2, 3)
    with pytest.raises(IndexError):
        Permutation(6, 0)([6])
    with pytest.raises(IndexError):
        Permutation(6, 0)([-1])
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0, 0)
