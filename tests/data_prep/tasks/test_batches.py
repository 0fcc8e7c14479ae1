from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import (
    EncodedTask,
)


def encoded(rows: int, name: str = "t") -> EncodedTask:
    inputs = [np.array([2 + i, 1], dtype=np.int32) for i in range(rows)]
    targets = [np.array([*[9] * (i % 5), 1], dtype=np.int32) for i in range(rows)]
    return EncodedTask(
        name,
        inputs,
        targets,
        [""] * rows,
        [""] * rows,
        None,
        None,
        counts=RowCounts(task="t", split="train", read=rows, used=rows),
    )


def test_rows_of_a_prompt_do_not_depend_on_other_prompts() -> None:
    tasks = [encoded(10), encoded(23), encoded(4)]
    together = TaskBatches(tasks, [4, 3, 9], [0, 1, 2])
    for step in (0, 1, 7, 100):
        union = together.at(step)
        assert union.prompt_B.tolist() == [0] * 4 + [1] * 3 + [2] * 9
        for c, (task, size) in enumerate(zip(tasks, (4, 3, 9), strict=True)):
            single = TaskBatches([task], [size], [c]).at(step)
            part = union.rows(np.flatnonzero(union.prompt_B == c))
            assert part.ids_B.tolist() == single.ids_B.tolist()
            assert part.targets_BT.tolist() == single.targets_BT.tolist()
            assert part.weights_B.tolist() == single.weights_B.tolist()


@given(rows=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 50))
def test_every_pass_contains_each_example_once(rows: int, size: int, seed: int) -> None:
    batches = TaskBatches([encoded(rows)], [size], [seed])
    ids = np.concatenate([batches.at(step).ids_B for step in range(-(-3 * rows // size))])
    for k in range(3):
        assert sorted(ids[k * rows : (k + 1) * rows].tolist()) == list(range(rows))


def test_passes_have_different_orders() -> None:
    batches = TaskBatches([encoded(30)], [30], [0])
    assert batches.at(0).ids_B.tolist() != batches.at(1).ids_B.tolist()


def test_prompts_that_take_turns_have_steps_of_their_own() -> None:
    """Of three prompts the first and last train in the even steps of the run, the other in the odd ones."""
    tasks = [encoded(10), encoded(23), encoded(4)]
    in_turn = TaskBatches(tasks, [4, 3, 9], [0, 1, 2], turn=lambda step: (step // 2, [1] if step % 2 else [0, 2]))
    at_once = TaskBatches(tasks, [4, 3, 9], [0, 1, 2])
    for step in (0, 1, 8, 9):
        found, whole = in_turn.at(step), at_once.at(step // 2)
        expected = whole.rows(np.flatnonzero((whole.prompt_B == 1) == (step % 2 == 1)))
        for name in ("prompt_B", "ids_B", "inputs_BS", "targets_BT", "weights_B"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()


def test_weights() -> None:
    mean = TaskBatches([encoded(10), encoded(10)], [4, 6], [0, 0]).at(3)
    for c in (0, 1):
        part = mean.rows(np.flatnonzero(mean.prompt_B == c))
        np.testing.assert_allclose(part.weights_B, 1 / part.target_tokens, rtol=1e-6)
    total = TaskBatches([encoded(10), encoded(10)], [4, 6], [0, 0], loss="sum").at(3)
    assert set(total.weights_B.tolist()) == {1.0}
    with pytest.raises(ValueError, match="one each per prompt"):
        TaskBatches([encoded(3)], [4], [0, 1])
