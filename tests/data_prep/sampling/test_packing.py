from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import Batch, LMBatches, collate_packed
from t5_pipeline.data_prep.sampling.packing import first_fit

lengths = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=40)
Pairs = list[tuple[list[int], list[int]]]


def numbered(lengths: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Examples without any common id."""
    ids = iter(range(1, 1_000_000))
    return [tuple(np.array([next(ids) for _ in range(n)]) for n in pair) for pair in lengths]  # type: ignore[misc]


def examples_of(batch: Batch) -> Pairs:
    """The examples of a batch, packed or not, row by row."""
    if batch.segments is None:
        found = zip(batch.inputs_BS, batch.targets_BT, strict=True)
        return [(x[x != 0].tolist(), y[y != 0].tolist()) for x, y in found]
    return [
        (x[i == k].tolist(), y[j == k].tolist())
        for x, y, i, j in zip(batch.inputs_BS, batch.targets_BT, *batch.segments, strict=True)
        for k in range(1, i.max() + 1)
    ]


@given(lengths=lengths)
def test_packed_rows_are_not_too_long(lengths: list[tuple[int, int]]) -> None:
    row_N = first_fit([n for n, _ in lengths], [m for _, m in lengths], (24, 12))
    assert sorted(set(row_N.tolist())) == list(range(row_N.max() + 1))
    for row in range(row_N.max() + 1):
        members = [pair for pair, of in zip(lengths, row_N, strict=True) if of == row]
        assert sum(n for n, _ in members) <= 24
        assert sum(m for _, m in members) <= 12


def test_too_long_example_has_its_own_row() -> None:
    assert first_fit([30, 2, 3], [1, 1, 1], (8, 8)).tolist() == [0, 1, 1]


@given(lengths=lengths, size=st.integers(0, 9), world=st.integers(1, 3))
def test_no_example_is_lost_or_duplicated(lengths: list[tuple[int, int]], size: int, world: int) -> None:
    """In the global batch and its shards and microbatches; each token weighs 1/(target tokens of the global batch)."""
    examples = numbered(lengths)
    batch = collate_packed(examples, np.arange(len(examples)) + 100, (24, 12))
    parts = [part for rank in range(world) for part in batch.shard(rank, world).microbatches(size)]
    wanted = sorted((x.tolist(), y.tolist()) for x, y in examples)
    assert sorted(examples_of(batch)) == wanted
    assert sorted(example for part in parts for example in examples_of(part)) == wanted
    assert all(len(part) <= (size or len(batch)) for part in parts)
    tokens = sum(m for _, m in lengths)
    assert batch.target_tokens == tokens
    for part in (batch, *parts):
        np.testing.assert_allclose(part.weights_B, 1 / tokens, rtol=1e-6)
        assert part.segments is None or [s.shape for s in part.segments] == [
            part.inputs_BS.shape,
            part.targets_BT.shape,
        ]
        for ids, numbers in zip((part.inputs_BS, part.targets_BT), part.segments or (), strict=False):
            assert ((ids != 0) == (numbers != 0)).all()


def test_examples_of_a_row_keep_the_order_of_the_batch() -> None:
    batch = collate_packed(numbered([(2, 1), (3, 1), (1, 1)]), [7, 8, 9], (8, 8))
    assert batch.inputs_BS.tolist() == [[1, 2, 4, 5, 6, 8, 0, 0]]
    assert batch.targets_BT.tolist() == [[3, 7, 9, 0, 0, 0, 0, 0]]
    assert batch.segments is not None
    assert batch.segments[0].tolist() == [[1, 1, 2, 2, 2, 3, 0, 0]]
    assert batch.ids_B.tolist() == [7]
    padded = collate_packed(numbered([(2, 1), (3, 1), (1, 1)]), [7, 8, 9], (8, 8), pad=99)
    assert padded.inputs_BS.tolist() == [[1, 2, 4, 5, 6, 8, 99, 99]]
    assert padded.targets_BT.tolist() == [[3, 7, 9, 99, 99, 99, 99, 99]]


def test_no_packing_if_it_saves_little() -> None:
    assert collate_packed(numbered([(20, 9)] * 11 + [(1, 1)]), np.arange(12), (24, 12)).segments is None
    assert collate_packed(numbered([(20, 9)] * 8 + [(1, 1)] * 2), np.arange(10), (24, 12)).segments is not None


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
def test_packing_keeps_the_examples_of_a_step(token_list: Any, objective: str) -> None:
    tokens = token_list([30, 5, 0, 77, 12, 3, 3, 9] * 40)
    if objective == "prefix_lm":
        source: Any = PrefixLM(tokens, 1, 40)
        widths = (40, 40)
    else:
        source = SpanCorruption(tokens, 1, 40, sentinel_ids=range(10**9 - 1, 10**9 - 101, -1))
        widths = (80, 4 * source.target_length)
    plain, packed = LMBatches(source, 24, 2), LMBatches(source, 24, 2, widths)
    for step in (0, 3, 17, 500):
        one, other = plain.at(step), packed.at(step)
        assert sorted(examples_of(one)) == sorted(examples_of(other))
        assert one.weights_B[0] == other.weights_B[0]
        assert len(other) < 0.9 * len(one)
        again = LMBatches(source, 24, 2, widths).at(step)
        assert again.inputs_BS.tolist() == other.inputs_BS.tolist()


def test_packing_a_batch_of_two_thousand(token_list: Any) -> None:
    """Lengths as in C4, mostly below 512 tokens: rows are five sixths full."""
    lengths = np.random.default_rng(0).lognormal(5.6, 1.1, 4000).astype(int) + 5
    batches = LMBatches(PrefixLM(token_list(lengths.tolist()), 0, 512), 2048, 0, (512, 512))
    began = time.process_time()
    batch = batches.at(0)
    assert time.process_time() - began < 2
    assert (batch.input_tokens + batch.target_tokens) / (batch.inputs_BS.size + batch.targets_BT.size) > 0.8
