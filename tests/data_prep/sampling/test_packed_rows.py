"""T5's packed rows as the unit of a batch, compared with packing one example after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.objectives.documents import CHUNK
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.packed_rows import BLOCK, PackedRows
from tests.data_prep.sampling.test_packing import examples_of

L = 24


def next_fit(lengths: list[tuple[int, int]]) -> list[int]:
    """The row of each example: a row is closed by the first example that does not fit into it."""
    rows, row, room = [], -1, (0, 0)
    for inputs, targets in lengths:
        if row < 0 or inputs > room[0] or targets > room[1]:
            row, room = row + 1, (L, L)
        room = room[0] - inputs, room[1] - targets
        rows.append(row)
    return rows


documents = st.lists(st.integers(0, 120), min_size=1, max_size=80).filter(any)


@given(lengths=documents, seed=st.integers(0, 99), epoch=st.integers(0, 2))
def test_rows_are_those_of_next_fit_in_each_block(token_list: Any, lengths: list[int], seed: int, epoch: int) -> None:
    objective = PrefixLM(token_list(lengths), seed, L)
    rows = PackedRows(objective, seed, (L, L))
    count = rows.count(epoch)
    members = [rows.examples_of(epoch, [row]).tolist() for row in range(count)]
    order = [index for row in members for index in row]
    assert sorted(order) == list(range(objective.count(epoch)))
    inputs, targets = objective.lengths(epoch, order)
    found = [row for row, indices in enumerate(members) for _ in indices]
    first = 0
    for block in range(-(-len(order) // BLOCK)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        assert sorted(order[part]) == list(range(len(order))[part])
        expected = next_fit(list(zip(inputs[part].tolist(), targets[part].tolist(), strict=True)))
        assert [row - first for row in found[part]] == expected
        first += expected[-1] + 1
    assert first == count
    backwards = rows.examples_of(epoch, np.arange(count)[::-1]).tolist()
    assert backwards == [index for row in members[::-1] for index in row]


class Equal:
    """30 examples of one length."""

    def count(self, epoch: int) -> int:
        return 30

    def lengths(self, epoch: int, index_N: Any) -> tuple[Any, Any]:
        return np.full(len(index_N), 30), np.full(len(index_N), 2)


def test_an_example_longer_than_a_row_has_its_own() -> None:
    assert PackedRows(Equal(), 0, (8, 8)).count(0) == 30


def test_order_differs_by_epoch() -> None:
    rows = PackedRows(Equal(), 0, (60, 8))
    orders = [rows.examples_of(epoch, np.arange(15)).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]


def batches(tokens: Any, size: int = 16, *, packed: bool = True, seed: int = 3) -> LMBatches:
    objective = PrefixLM(tokens, 5, L)
    return LMBatches(objective, size, seed, (L, L) if packed else None, PackedRows(objective, seed, (L, L)))


def test_steps_have_the_given_number_of_rows_and_lose_no_example(token_list: Any) -> None:
    """Also from epoch to epoch, whose numbers of rows differ."""
    tokens = token_list([5, 70, 0, 33, 12, 9, 41] * 60)
    source, rows = PrefixLM(tokens, 5, L), PackedRows(PrefixLM(tokens, 5, L), 3, (L, L))
    counts = [rows.count(epoch) for epoch in range(3)]
    assert len(set(counts)) > 1
    made = batches(tokens)
    steps = sum(counts) // 16
    ids = [i for step in range(steps) for i in made.ids(step)]
    assert len(ids) == len(set(ids))
    whole = sum(source.count(epoch) for epoch in range(2))
    assert set(range(whole)) <= set(ids)
    assert all(len(made.at(step)) <= 16 for step in (0, 1, steps - 1))  # packed again, into fewer rows
    loose = batches(tokens, packed=False).at(4)
    assert len(loose) == len(made.ids(4)) > 16
    assert sorted(examples_of(loose)) == sorted(examples_of(made.at(4)))
    assert made.at(4).weights_B[0] == pytest.approx(1 / made.at(4).target_tokens)


def test_steps_do_not_depend_on_earlier_steps(token_list: Any) -> None:
    tokens = token_list([2 * CHUNK + 3000, 400, 90])
    onward = batches(tokens, 512)
    wanted = [onward.at(step) for step in range(12)]
    for step in (11, 0, 7):
        alone = batches(tokens, 512).at(step)
        assert alone.inputs_BS.tolist() == wanted[step].inputs_BS.tolist()
        assert alone.targets_BT.tolist() == wanted[step].targets_BT.tolist()
        assert sorted(part for rank in range(3) for part in alone.shard(rank, 3).ids_B) == sorted(wanted[step].ids_B)


def test_the_papers_batch_on_documents_as_in_c4(token_list: Any) -> None:
    """2,048 rows of 512 + 512: 1.14 times 2^20 ids for lognormal lengths of mean 427, steady within 2%."""
    lengths = np.random.default_rng(0).lognormal(np.log(427) - 0.5, 1, 20_000).astype(int) + 1
    objective = PrefixLM(token_list(lengths.tolist()), 0)
    made = LMBatches(objective, 2048, 0, None, PackedRows(objective, 0, (512, 512)))
    ids = []
    for step in range(6):
        inputs, targets = objective.lengths(0, np.array(made.ids(step)))
        ids.append(int(inputs.sum() + targets.sum()) / 2**20)
    np.testing.assert_allclose(ids, 1.14, rtol=0.02)
    batch = made.at(0)
    assert batch.input_tokens + batch.target_tokens == ids[0] * 2**20
