from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.documents import CHUNK, random_chunks
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM, prefix_lengths, shortest_prefix
from t5_pipeline.data_prep.sampling.counter_rng import bits


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    segment_length=st.integers(2, 12),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_no_token_is_lost_or_duplicated(
    token_list: Any, lengths: list[int], segment_length: int, seed: int, epoch: int
) -> None:
    tokens = token_list(lengths)
    objective = PrefixLM(tokens, seed, segment_length)
    examples = objective.examples(epoch, np.arange(objective.count(epoch)))
    measured = objective.lengths(epoch, np.arange(objective.count(epoch)))
    assert [(len(x), len(y)) for x, y in examples] == list(zip(*(side.tolist() for side in measured), strict=True))
    assert all(inputs[-1] == 1 and targets[-1] == 1 for inputs, targets in examples)
    assert all(1 <= len(side) <= segment_length for example in examples for side in example)
    # Documents in order, in segments of L−1 tokens; only the last of a document may be shorter.
    rejoined = np.concatenate([np.concatenate([x[:-1], y[:-1]]) for x, y in examples]) if examples else np.array([])
    assert rejoined.tolist() == [t for i in range(len(lengths)) for t in tokens.document(i).tolist()]
    sizes = [len(x) + len(y) - 2 for x, y in examples]
    assert sizes == [min(segment_length - 1, n - start) for n in lengths for start in range(0, n, segment_length - 1)]
    for (x, y), size in zip(examples, sizes, strict=True):
        assert (len(x) - 1 >= 1) == (size > 1)  # only a segment of one token has an empty input
        assert len(y) - 1 >= 1


@given(index=st.lists(st.integers(0, 10**9), min_size=1, max_size=9), epoch=st.integers(0, 2))
def test_examples_depend_only_on_seed_epoch_and_index(token_list: Any, index: list[int], epoch: int) -> None:
    objective = PrefixLM(token_list([30, 5, 0, 77]), 3, 9)
    index = [i % objective.count(epoch) for i in index]
    together = objective.examples(epoch, index)
    for i, (x, y) in zip(index, together, strict=True):
        [(x_alone, y_alone)] = PrefixLM(token_list([30, 5, 0, 77]), 3, 9).examples(epoch, [i])
        assert x.tolist() == x_alone.tolist()
        assert y.tolist() == y_alone.tolist()


def test_only_one_chunk_of_a_long_document_is_used(token_list: Any) -> None:
    tokens = token_list([2 * CHUNK + 100, 10])
    objective = PrefixLM(tokens, seed=0)
    seen = set()
    for epoch in range(12):
        count = objective.count(epoch)
        first, _ = objective.examples(epoch, [0])[0]
        start = int(first[0]) - 3
        seen.add(start)
        chunk = min(CHUNK, 2 * CHUNK + 100 - start)
        assert count == -(-chunk // 511) + 1
        examples = objective.examples(epoch, np.arange(count - 1))
        read = np.concatenate([np.concatenate([x[:-1], y[:-1]]) for x, y in examples])
        assert read.tolist() == tokens.document(0)[start : start + chunk].tolist()
    assert seen == {0, CHUNK, 2 * CHUNK}


def test_examples_of_any_groups_are_those_of_the_whole_corpus(token_list: Any) -> None:
    """Documents are read by groups of 128, of which a request names a few; those with long documents are recounted."""
    lengths = np.full(600, 40)
    lengths[[127, 128, 300, 511, 599]] = CHUNK + 1, CHUNK + 3000, 2 * CHUNK, 3 * CHUNK + 700, CHUNK
    objective, tokens = PrefixLM(token_list(lengths.tolist()), seed=2), token_list(lengths.tolist())
    counts = set()
    for epoch in range(4):
        expected = [
            tokens.document(i)[start:stop][at : at + 511].tolist()
            for i, (start, size) in enumerate(zip(*random_chunks(lengths, 2, epoch), strict=True))
            for stop in [start + size]
            for at in range(0, size, 511)
        ]
        assert objective.count(epoch) == len(expected)
        counts.add(len(expected))
        for index in ([len(expected) - 1], [len(expected) - 1, 200], range(0, len(expected), 3)):
            found = [[*x[:-1].tolist(), *y[:-1].tolist()] for x, y in objective.examples(epoch, index)]
            assert found == [expected[i] for i in index]
    assert len(counts) > 1


@pytest.mark.parametrize(("length", "density"), [(2, 0.5), (11, 0.5), (11, 0.25), (12, 0.4), (512, 0.5)])
def test_prefix_length_is_uniform(length: int, density: float) -> None:
    """k ~ U{m..M}: chi-squared with a fixed seed."""
    least = int(shortest_prefix([length], density)[0])
    values = length - least
    draws = 400 * values
    k = prefix_lengths(bits(11, "law", np.arange(draws)), np.full(draws, length), density)
    assert k.min() >= least
    assert k.max() <= length - 1
    counts = np.bincount(k - least, minlength=values)
    statistic = ((counts - 400) ** 2 / 400).sum()
    degrees = values - 1
    assert statistic <= degrees + 3.1 * np.sqrt(2 * degrees) + 3.3  # about p = 0.001


def test_prefix_length_of_examples_is_uniform(token_list: Any) -> None:
    objective = PrefixLM(token_list([16] * 6000), seed=5, segment_length=17)
    k = np.array([len(x) - 1 for x, _ in objective.examples(0, np.arange(6000))])
    counts = np.bincount(k, minlength=16)[1:]
    assert counts.sum() == 6000
    assert ((counts - 400) ** 2 / 400).sum() < 36.1  # 14 degrees: p = 0.001
    again = np.array([len(x) - 1 for x, _ in objective.examples(1, np.arange(6000))])
    assert abs(np.corrcoef(k, again)[0, 1]) < 0.05


def test_shortest_prefix_formula() -> None:
    for density in (0.05, 0.1, 0.25, 0.3, 0.45, 0.5):
        for length in range(1, 200):
            most = length - 1
            product = float(np.float32(1 - 2 * density) * np.float32(most))
            assert shortest_prefix([length], density)[0] == min(most, max(1, round(product)))
    # tf.round of float32 products; in float64 these three are on the other side of a half.
    assert [int(shortest_prefix(length, rho)) for length, rho in ((46, 0.15), (16, 0.35), (36, 0.45))] == [32, 4, 4]


@pytest.mark.parametrize("density", [0.51, 1.0, 0.0, -0.1])
def test_invalid_density(token_list: Any, density: float) -> None:
    with pytest.raises(InputError, match="density"):
        PrefixLM(token_list([5]), 0, density=density)


def test_segment_length_too_short(token_list: Any) -> None:
    with pytest.raises(InputError, match="segment_length: 1"):
        PrefixLM(token_list([5]), 0, segment_length=1)


def test_no_documents(token_list: Any) -> None:
    assert PrefixLM(token_list([]), 0).count(0) == 0
    assert PrefixLM(token_list([0, 0]), 0).count(0) == 0
    with pytest.raises(IndexError):
        PrefixLM(token_list([0]), 0).examples(0, [0])
