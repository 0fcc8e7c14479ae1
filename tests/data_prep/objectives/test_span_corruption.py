from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import GROUP
from t5_pipeline.data_prep.objectives.span_corruption import (
    SpanCorruption,
    fitting_length,
    noise_counts,
    noise_mask,
    part_starts,
    replace_spans,
    tokens_length,
)
from t5_pipeline.data_prep.sampling.counter_rng import bits

SIZE = 10**9  # vocabulary size; all sentinels are above every token of `token_list`
SENTINEL_IDS = range(SIZE - 1, SIZE - 101, -1)


@pytest.mark.parametrize(
    ("input_length", "tokens", "targets"),
    [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)],
)
def test_lengths_agree_with_t5(input_length: int, tokens: int, targets: int) -> None:
    assert tokens_length(input_length) == (tokens, targets)


@given(
    input_length=st.integers(9, 1809),
    density=st.sampled_from([0.15, 0.3, 0.5, 0.6]),
    span=st.sampled_from([2.0, 3.0, 8.0]),
)
def test_tokens_length_is_the_largest_that_fits(input_length: int, density: float, span: float) -> None:
    tokens, targets = tokens_length(input_length, density, span)
    noise, spans = noise_counts(tokens, density, span)
    assert tokens - noise + spans + 1 <= input_length
    assert targets == noise + spans + 1
    more, more_spans = noise_counts(tokens + 1, density, span)
    assert tokens + 1 - more + more_spans + 1 > input_length or density == 0.5


def test_a_hundred_sentinels_suffice_up_to_input_length_1809(token_list: Any) -> None:
    SpanCorruption(token_list([5]), 0, 1809, sentinel_ids=range(32_099, 31_999, -1))
    with pytest.raises(InputError, match=r"input_length: 1810 needs up to 101 sentinels, and the vocabulary has 100"):
        SpanCorruption(token_list([5]), 0, 1810, sentinel_ids=range(32_099, 31_999, -1))
    with pytest.raises(
        InputError, match=r"needs up to \d+ sentinels, and the vocabulary has 0; add 100 by the `sentinel` stage"
    ):
        SpanCorruption(token_list([5]), 0, 64, sentinel_ids=[])


FLOAT32_LENGTHS = [190, 350, 390, 670, 710, 750, 790, 830, *range(1310, 1671, 40)]


def test_counts_are_rounded_in_float32_as_in_tensorflow() -> None:
    """TensorFlow multiplies in float32: half a token becomes a little more, and 28.5 rounds to 29."""
    assert noise_counts(190) == (29, 10)
    assert noise_counts(710)[0] == 107
    differ = [length for length in range(4, 2000) if noise_counts(length)[0] != round(length * 0.15)]
    assert differ == FLOAT32_LENGTHS
    assert all(noise_counts(length)[0] == round(length * 0.15) + 1 for length in differ)


@pytest.mark.parametrize("input_length", [172, 316, 604])
def test_targets_fit_where_float32_masks_one_token_more(token_list: Any, input_length: int) -> None:
    objective = SpanCorruption(token_list([3000]), 0, input_length, sentinel_ids=range(32_099, 31_999, -1))
    assert objective.segment in FLOAT32_LENGTHS
    for inputs, targets in objective.examples(0, range(3000 // objective.segment)):
        assert (len(inputs), len(targets)) == (input_length, objective.target_length)


@given(length=st.integers(1, 300), density=st.floats(0.01, 0.9), span=st.floats(1, 10), seed=st.integers(0, 99))
def test_mask_has_the_given_numbers_of_tokens_and_spans(length: int, density: float, span: float, seed: int) -> None:
    mask = noise_mask(seed, 0, np.arange(5), length, density, span)
    noise, spans = noise_counts(length, density, span)
    assert mask.shape == (5, length)
    assert not mask[:, 0].any()
    if length > 1:
        assert (mask.sum(axis=1) == noise).all()
        assert ((mask[:, 1:] & ~mask[:, :-1]).sum(axis=1) == spans).all()
        assert mask[:, -1].all()


def test_compositions_are_uniform() -> None:
    """9 items into 4 runs: 56 compositions, chi-squared with a fixed seed."""
    rows = 56 * 200
    starts = part_starts(bits(1, "composition", np.arange(rows)[:, None], np.arange(8)[None, :]), 4)
    assert (starts.sum(axis=1) == 4).all()
    assert starts[:, 0].all()
    counts = Counter(tuple(np.flatnonzero(row).tolist()) for row in starts)
    assert set(counts) == {(0, *rest) for rest in combinations(range(1, 9), 3)}
    assert len(counts) == comb(8, 3)
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 93.2  # 55 degrees: p = 0.001


def test_masks_are_uniform() -> None:
    """12 tokens, 4 hidden in 2 spans: 3 · 7 masks; kept and hidden runs are split independently."""
    rows = 21 * 300
    masks = Counter(map(tuple, noise_mask(4, 0, np.arange(rows), 12, 0.33, 2.0).tolist()))
    assert noise_counts(12, 0.33, 2.0) == (4, 2)
    assert len(masks) == 21
    assert sum((count - 300) ** 2 / 300 for count in masks.values()) < 45.3  # 20 degrees: p = 0.001


def test_runs_of_both_kinds_differ_by_epoch() -> None:
    """The first kept and the first hidden run of a mask, of 1 to 9 tokens each, are independent of other epochs."""
    masks = [noise_mask(4, epoch, np.arange(2000), 20, 0.5, 5.0) for epoch in (0, 1)]
    kept = [mask.argmax(axis=1) for mask in masks]
    hidden = [
        (~mask & (np.arange(20) > start[:, None])).argmax(axis=1) - start
        for mask, start in zip(masks, kept, strict=True)
    ]
    assert abs(np.corrcoef([*kept, *hidden]) - np.eye(4)).max() < 0.08


def test_parts_of_one_item() -> None:
    assert part_starts(np.zeros((2, 0), dtype=np.uint64), 1).tolist() == [[True], [True]]
    assert part_starts(np.array([[5, 3]], dtype=np.uint64), 3).tolist() == [[True, True, True]]


def restore(inputs: list[int], targets: list[int], first: int, sentinels: int) -> list[int]:
    """Put the hidden spans back token by token, an independent implementation."""
    spans: dict[int, list[int]] = {}
    current = -1
    for token in targets[:-1]:
        if first - sentinels < token <= first:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    tokens: list[int] = []
    for token in inputs[:-1]:
        tokens += spans.pop(token) if token in spans else [token]
    # If a mask ends with a kept run, its complement has one more sentinel, with an empty span.
    assert all(not span for span in spans.values())
    return tokens


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=300),
    input_length=st.integers(9, 40),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 2),
)
def test_no_token_is_lost_or_duplicated(
    token_list: Any, lengths: list[int], input_length: int, seed: int, epoch: int
) -> None:
    tokens = token_list(lengths)
    objective = SpanCorruption(tokens, seed, input_length, sentinel_ids=SENTINEL_IDS)
    examples = objective.examples(epoch, np.arange(objective.count(epoch)))
    restored = [restore(x.tolist(), y.tolist(), SIZE - 1, 100) for x, y in examples]
    stream = [t for i in range(len(lengths)) for t in tokens.document(i).tolist()]
    assert [t for segment in restored for t in segment] == stream
    # Each group of 128 documents is cut into T tokens; its last segment may be shorter.
    sizes = [sum(lengths[start : start + GROUP]) for start in range(0, len(lengths), GROUP)]
    T = objective.segment
    assert [len(segment) for segment in restored] == [min(T, size - s) for size in sizes for s in range(0, size, T)]
    for x, y in examples:
        assert len(x) <= input_length
        assert len(y) <= objective.target_length
        assert x.dtype == y.dtype == np.int32
        assert x[-1] == y[-1] == 1
        if len(x) + len(y) - 2 > 2:
            sentinels = [t for t in x.tolist() if t > SIZE - 101]
            assert sentinels == [SIZE - 1 - j for j in range(len(sentinels))]
            assert [t for t in y.tolist() if t > SIZE - 101] == sentinels


def test_full_segments_fill_inputs_and_targets(token_list: Any) -> None:
    objective = SpanCorruption(token_list([1137]), 0, 512, sentinel_ids=range(32_099, 31_999, -1))
    (x, y), (x_2, _), _ = objective.examples(0, [0, 1, 2])
    assert (len(x), len(y), len(x_2)) == (512, 114, 512)


def test_examples_depend_only_on_seed_epoch_and_index(token_list: Any) -> None:
    lengths = [50, 3, 0, 200, 41] * 40
    objective = SpanCorruption(token_list(lengths), 7, 64, sentinel_ids=SENTINEL_IDS)
    index = np.array([5, 0, 17, 5, objective.count(2) - 1])
    for i, (x, y) in zip(index, objective.examples(2, index), strict=True):
        [(x_alone, y_alone)] = SpanCorruption(token_list(lengths), 7, 64, sentinel_ids=SENTINEL_IDS).examples(2, [i])
        assert x.tolist() == x_alone.tolist()
        assert y.tolist() == y_alone.tolist()


def test_epochs_and_seeds_hide_other_tokens(token_list: Any) -> None:
    inputs = [
        [
            x.tolist()
            for x, _ in SpanCorruption(token_list([5000]), seed, 64, sentinel_ids=SENTINEL_IDS).examples(
                epoch, [0, 1, 2]
            )
        ]
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert inputs[0] != inputs[1] != inputs[2] != inputs[0]


def test_one_token(token_list: Any) -> None:
    """T = 1 uses T' = 2 and a truncated mask, so nothing is hidden."""
    [(x, y)] = SpanCorruption(token_list([1]), 0, 16, sentinel_ids=[99]).examples(0, [0])
    assert x.tolist() == [3, 1]
    assert y.tolist() == [99, 1]


def test_replace_spans_from_the_first_token() -> None:
    tokens = np.array([[1, 2, 3, 4, 5]], dtype=np.int32)
    mask = np.array([[True, False, True, True, False]])
    assert replace_spans(tokens, mask, [50, 49]).tolist() == [[50, 2, 49, 5]]


def test_no_documents(token_list: Any) -> None:
    assert SpanCorruption(token_list([]), 0, sentinel_ids=range(32_099, 31_999, -1)).count(0) == 0
    assert SpanCorruption(token_list([0]), 0, sentinel_ids=range(32_099, 31_999, -1)).count(0) == 0


@pytest.mark.parametrize(("density", "mean_span"), [(0.5, 3), (0.15, 3), (0.5, 1.5)])
def test_spans_do_not_outnumber_sentinels(density: float, mean_span: float) -> None:
    spans = {n: noise_counts(tokens_length(n, density, mean_span)[0], density, mean_span)[1] for n in range(8, 129)}
    for sentinels in (3, 10, 30, 100):
        assert fitting_length(128, density, mean_span, sentinels) == max(n for n in spans if spans[n] <= sentinels)
    with pytest.raises(InputError, match="mixture: the vocabulary has 0 sentinels"):
        fitting_length(512, 0.5, 3, 0)
