from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.documents import CHUNK
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import Batch, LMBatches, collate, padded


def examples(lengths: list[tuple[int, int]]) -> Batch:
    return collate([(np.arange(1, n + 1), np.arange(1, m + 1)) for n, m in lengths])


lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


def real_rows(batch: Batch) -> list[tuple[int, list[int], list[int], float, int]]:
    return [
        (int(i), [t for t in x if t], [t for t in y if t], float(w), int(p))
        for i, x, y, w, p in zip(
            batch.ids_B,
            batch.inputs_BS.tolist(),
            batch.targets_BT.tolist(),
            batch.weights_B,
            batch.prompt_B,
            strict=True,
        )
    ]


@given(lengths=lengths)
def test_collate(lengths: list[tuple[int, int]]) -> None:
    batch = examples(lengths)
    assert len(batch) == len(lengths)
    assert batch.input_tokens == sum(n for n, _ in lengths)
    assert batch.target_tokens == sum(m for _, m in lengths)
    assert batch.inputs_BS.shape[1] == -(-max(n for n, _ in lengths) // 8) * 8
    assert batch.targets_BT.shape[1] == -(-max(m for _, m in lengths) // 8) * 8
    assert batch.inputs_BS.dtype == batch.targets_BT.dtype == batch.prompt_B.dtype == np.int32
    assert batch.weights_B.dtype == np.float32
    assert batch.ids_B.dtype == np.int64
    np.testing.assert_allclose(batch.weights_B, 1 / batch.target_tokens, rtol=1e-6)
    assert [(len(x), len(y)) for _, x, y, _, _ in real_rows(batch)] == lengths


@given(lengths=lengths, size=st.integers(0, 12))
def test_microbatches_contain_each_row_once(lengths: list[tuple[int, int]], size: int) -> None:
    batch = examples(lengths)
    parts = batch.microbatches(size)
    rows = [row for part in parts for row in real_rows(part)]
    assert sorted(rows) == sorted(real_rows(batch))
    assert all(len(part) <= (size or len(batch)) for part in parts)
    assert all(part.inputs_BS.shape[1] % 8 == 0 for part in parts)
    if size:
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        padded = sum(part.inputs_BS.size for part in parts)
        assert padded <= batch.inputs_BS.size


@given(lengths=lengths, world=st.integers(1, 5))
def test_each_row_has_one_rank(lengths: list[tuple[int, int]], world: int) -> None:
    batch = examples(lengths)
    parts = [batch.shard(rank, world) for rank in range(world)]
    assert sorted(row for part in parts for row in real_rows(part)) == sorted(real_rows(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_have_equal_work() -> None:
    rng = np.random.default_rng(0)
    batch = examples([(int(n), 3) for n in rng.integers(1, 512, 256)])
    work = [batch.shard(rank, 4).input_tokens for rank in range(4)]
    assert max(work) / min(work) < 1.02


def test_rank_without_rows_has_an_empty_batch() -> None:
    empty = examples([(3, 3)]).shard(1, 2)
    assert len(empty) == 0
    assert empty.inputs_BS.shape == (0, 8)
    assert len(empty.microbatches(4)) == 1


def test_rows_are_trimmed_and_keep_their_weights() -> None:
    batch = examples([(3, 20), (30, 2), (9, 9)])
    part = batch.rows([2, 0])
    assert part.inputs_BS.shape == (2, 16)
    assert part.targets_BT.shape == (2, 24)
    assert part.ids_B.tolist() == [2, 0]
    assert part.weights_B.tolist() == batch.weights_B[[2, 0]].tolist()


def test_pad_without_sequences() -> None:
    assert padded([], 0).shape == (0, 8)


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
def test_every_epoch_contains_each_example_once(token_list: Any, objective: str) -> None:
    tokens = token_list([30, 5, 0, 77, 12])
    make = {
        "prefix_lm": lambda: PrefixLM(tokens, 1, 9),
        "span_corruption": lambda: SpanCorruption(tokens, 1, 9, sentinel_ids=range(10**9 - 1, 10**9 - 101, -1)),
    }[objective]
    source = make()
    count = source.count(0)
    batches = LMBatches(make(), 7, seed=2)
    ids = np.concatenate([batches.at(step).ids_B for step in range(3 * count)])
    for epoch in range(21):
        assert sorted(ids[epoch * count : (epoch + 1) * count].tolist()) == list(
            range(epoch * count, (epoch + 1) * count)
        )
    orders = {tuple((ids[e * count : (e + 1) * count] - e * count).tolist()) for e in range(4)}
    assert len(orders) == 4


def test_steps_do_not_depend_on_earlier_steps(token_list: Any) -> None:
    """Even if a long document makes the epochs differ in length."""
    tokens = token_list([2 * CHUNK + 3000, 400, 90])
    onward = LMBatches(PrefixLM(tokens, 5, 512), 16, seed=3)
    counts = [PrefixLM(tokens, 5, 512).count(epoch) for epoch in range(8)]
    assert len(set(counts)) > 1
    wanted = [onward.at(step) for step in range(sum(counts) // 16)]
    for step in (len(wanted) - 1, 0, 40, 3):
        alone = LMBatches(PrefixLM(tokens, 5, 512), 16, seed=3).at(step)
        assert real_rows(alone) == real_rows(wanted[step])
    ids = np.concatenate([batch.ids_B for batch in wanted])
    assert max(Counter(ids.tolist()).values()) == 1


def test_batch_larger_than_the_corpus(token_list: Any) -> None:
    batches = LMBatches(PrefixLM(token_list([5, 5]), 0, 6), 7, seed=0)
    assert sorted(batches.at(0).ids_B.tolist()) == [0, 1, 2, 3, 4, 5, *batches.at(0).ids_B[-1:].tolist()]
    assert len(batches.at(3)) == 7


def test_weights_of_the_global_batch(token_list: Any) -> None:
    batch = LMBatches(PrefixLM(token_list([50] * 9), 0, 11), 8, seed=0).at(4)
    total = sum(
        float(row[3]) * len(row[2]) for part in (batch.shard(rank, 3) for rank in range(3)) for row in real_rows(part)
    )
    assert total == pytest.approx(1.0, rel=1e-6)


def test_corpus_without_examples(token_list: Any) -> None:
    with pytest.raises(InputError, match="too little text for one example"):
        LMBatches(PrefixLM(token_list([0]), 0), 8, seed=0)
