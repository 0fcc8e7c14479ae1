"""Batches of several tasks for one model."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import EncodedTask
from t5_pipeline.data_prep.tasks.mixture import CYCLE, MixedTaskBatches, mixing_counts


def task(rows: int, first: int) -> EncodedTask:
    """Rows identified by their only input token."""
    ids = [np.array([first + i, 1], dtype=np.int32) for i in range(rows)]
    return EncodedTask(
        "t",
        ids,
        ids,
        [""] * rows,
        [""] * rows,
        None,
        None,
        counts=RowCounts(task="t", split="train", read=rows, used=rows),
    )


@given(rows=st.lists(st.integers(1, 10**7), min_size=1, max_size=12), limit=st.integers(1, 10**6))
def test_slots_of_a_cycle_are_proportional_to_the_rates(rows: list[int], limit: int) -> None:
    counts = mixing_counts(rows, "proportional", limit)
    assert counts.sum() == CYCLE
    assert counts.min() >= 1
    capped = np.minimum(rows, limit)
    assert np.abs(counts / CYCLE - capped / capped.sum()).max() <= (len(rows) + 1) / CYCLE
    equal = mixing_counts(rows, "equal", limit)
    assert equal.max() - equal.min() <= 1


def test_rows_come_once_per_pass_and_at_the_rate_of_their_task() -> None:
    batches = MixedTaskBatches([task(30, 100), task(10, 1000)], batch_size=8, seed=3)
    drawn = [int(token) for step in range(10) for token in batches.at(step).inputs_BS[:, 0]]
    for first, rows in ((100, 30), (1000, 10)):
        mine = [token - first for token in drawn if first <= token < first + rows]
        for begin in range(0, len(mine) - rows, rows):
            assert sorted(mine[begin : begin + rows]) == list(range(rows))
    many = Counter(int(token) >= 1000 for step in range(CYCLE // 8) for token in batches.at(step).inputs_BS[:, 0])
    assert many == {False: 12288, True: 4096}


def test_a_pass_over_more_rows_than_a_cycle_has_slots_continues_in_the_next_cycle() -> None:
    batches = MixedTaskBatches([task(3 * CYCLE, 2)], batch_size=64, seed=3)
    drawn = [int(token) for cycle in range(3) for token in batches.at(cycle * CYCLE // 64).inputs_BS[:, 0]]
    assert len(set(drawn)) == 3 * 64


def test_cycles_have_different_orders_and_ids_name_the_rows() -> None:
    batches = MixedTaskBatches([task(30, 100), task(30, 1000)], batch_size=64, seed=3)
    of_cycles = []
    for step in (0, CYCLE // 64):
        batch = batches.at(step)
        assert batch.ids_B.tolist() == [t - 100 if t < 1000 else t - 970 for t in batch.inputs_BS[:, 0].tolist()]
        of_cycles.append((batch.ids_B >= 30).tolist())
    assert of_cycles[0] != of_cycles[1]


def test_steps_do_not_depend_on_earlier_steps() -> None:
    tasks = [task(7, 100), task(5, 200), task(300, 1000)]
    one, other = (MixedTaskBatches(tasks, batch_size=16, seed=1, mixing="equal") for _ in range(2))
    forward = [one.at(step) for step in range(1030)]
    for step in (1029, 1024, 3, 0):
        assert (other.at(step).inputs_BS == forward[step].inputs_BS).all()
        assert (other.at(step).ids_B == forward[step].ids_B).all()
    differs = MixedTaskBatches(tasks, batch_size=16, seed=2, mixing="equal").at(0)
    assert not np.array_equal(differs.ids_B, forward[0].ids_B)
