"""Mixtures by rate: shares, order, and batches as a function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.objectives.documents import Example
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.mixed_batches import BLOCK, MixedBatches, Places, seed_of

# The smallest share is 1/1018, and one of 1/1024 is allowed.
RATES = st.lists(st.floats(0.0118, 2), min_size=1, max_size=7)


class Numbered:
    """Examples that name their objective and index."""

    def __init__(self, name: int, size: int) -> None:
        self.name, self.size = name, size

    def count(self, epoch: int) -> int:
        return self.size

    def examples(self, epoch: int, index_N: np.ndarray) -> list[Example]:
        return [(np.array([self.name, 10 + i], np.int32), np.array([20 + epoch, 1], np.int32)) for i in index_N]


def mixed(rates: list[float], seed: int, batch_size: int = 8, sizes: tuple[int, ...] = (50, 30, 40)) -> MixedBatches:
    parts = [LMBatches(Numbered(k + 2, sizes[k]), batch_size, seed_of(seed, k)) for k in range(len(rates))]
    return MixedBatches(parts, Places(rates, seed), batch_size)


@given(RATES, st.integers(0, 100), st.integers(0, 20 * BLOCK))
def test_shares_are_those_of_the_rates(rates: list[float], seed: int, place: int) -> None:
    """Among the first p places an objective of share q has q·p examples: exactly at the ends of blocks."""
    places = Places(rates, seed)
    share_K = np.array(rates) / sum(rates)
    found_K, next_K = places.before(place), places.before(place + 1)
    assert found_K.sum() == place
    assert sorted((next_K - found_K).tolist()) == [0] * (len(rates) - 1) + [1]
    blocks = place // BLOCK
    assert np.abs(places.before(blocks * BLOCK) - share_K * blocks * BLOCK).max(initial=0) <= 1
    # Within a block the draws are without replacement, so they vary less than independent ones.
    assert (np.abs(found_K - share_K * place) <= 6 * np.sqrt(BLOCK * share_K * (1 - share_K)) + 2).all()


def test_blocks_follow_one_another() -> None:
    """Blocks whose shares differ by rounding: the last place of each takes one example, too."""
    places = Places([1, 1, 1], seed=0)
    for end in range(BLOCK, 7 * BLOCK, BLOCK):
        assert sorted((places.before(end) - places.before(end - 1)).tolist()) == [0, 0, 1]


def owners(seed: int, first: int = 0) -> list[int]:
    """The objective at each of 200 places."""
    places = Places([1, 1], seed)
    return [int((places.before(p + 1) - places.before(p)).argmax()) for p in range(first, first + 200)]


def test_order_within_blocks_is_random() -> None:
    assert 70 < np.count_nonzero(np.diff(owners(3))) < 130  # half of the 199 neighbors differ
    assert owners(3) != owners(4)
    assert owners(3) != owners(3, BLOCK)


def test_objectives_have_different_seeds() -> None:
    assert len({seed_of(seed, number) for seed in (0, 1) for number in range(4)}) == 8


def test_batches_are_a_function_of_the_step() -> None:
    ordered = [mixed([3, 1, 2], seed=1).at(step) for step in (0, 7, 400)]
    again = mixed([3, 1, 2], seed=1)
    for step, batch in zip((400, 7, 0), reversed(ordered), strict=True):
        assert np.array_equal(again.at(step).inputs_BS, batch.inputs_BS)
        assert again.ids(step) == batch.ids_B.tolist()
    assert not np.array_equal(mixed([3, 1, 2], seed=2).at(7).inputs_BS, ordered[1].inputs_BS)


def test_every_objective_takes_its_examples_in_turn() -> None:
    """One pass of an objective has each of its examples once, and ids never repeat."""
    batches = mixed([3, 1, 2], seed=5)
    seen: list[tuple[int, int, int]] = []
    ids: list[int] = []
    for step in range(60):
        batch = batches.at(step)
        assert len(batch) == 8
        ids += batch.ids_B.tolist()
        seen += [
            (int(x[0]), int(y[0]) - 20, int(x[1]) - 10) for x, y in zip(batch.inputs_BS, batch.targets_BT, strict=True)
        ]
    assert len(set(ids)) == len(ids) == 480
    for name, size, share in ((2, 50, 3 / 6), (3, 30, 1 / 6), (4, 40, 2 / 6)):
        mine = [(epoch, index) for k, epoch, index in seen if k == name]
        assert len(mine) == pytest.approx(480 * share, abs=40)
        assert sorted(index for epoch, index in mine if epoch == 0) == list(range(size))
