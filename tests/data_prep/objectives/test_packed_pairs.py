from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.packed_pairs import PackedPairs


@given(
    lengths=st.lists(st.integers(0, 30), max_size=200), length=st.integers(2, 20), seed=st.integers(0, 99), epoch=st.integers(0, 2)
)  # fmt: skip
def test_pairs_fill_encoder_and_decoder(
    token_list: Any, lengths: list[int], length: int, seed: int, epoch: int
) -> None:
    tokens = token_list(lengths[:128])
    objective = PackedPairs(tokens, seed, length)
    examples = objective.examples(epoch, np.arange(objective.count(epoch)))
    stream = [t for i, n in enumerate(lengths[:128]) if n for t in [*tokens.document(i).tolist(), 1]]
    segments = [stream[at : at + length] for at in range(0, len(stream) // length * length, length)]
    assert [[*x.tolist(), *y.tolist()] for x, y in examples] == segments[: len(segments) // 2 * 2]
    for (a_in, a_out), (b_in, b_out) in zip(examples[::2], examples[1::2], strict=True):
        assert 1 <= len(a_in) <= length - 1
        assert len(a_in) + len(b_in) == length
        assert len(a_out) + len(b_out) == length


def test_split_is_uniform(token_list: Any) -> None:
    objective = PackedPairs(token_list([15] * 8 * 1024), seed=3, length=16)
    splits = np.array([len(x) for x, _ in objective.examples(0, np.arange(0, objective.count(0), 2))])
    assert len(splits) == 4096
    expected = len(splits) / 15
    counts = np.bincount(splits, minlength=16)[1:]
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-squared, 14 degrees: p = 0.001
    again = np.array([len(x) for x, _ in objective.examples(1, np.arange(0, objective.count(1), 2))])
    assert abs(np.corrcoef(splits, again)[0, 1]) < 0.05


def test_bad_requests(token_list: Any) -> None:
    with pytest.raises(InputError, match="length: 1"):
        PackedPairs(token_list([5]), 0, 1)
    with pytest.raises(IndexError):
        PackedPairs(token_list([14]), 0, 5).examples(0, [2])
    assert PackedPairs(token_list([]), 0).count(0) == 0
