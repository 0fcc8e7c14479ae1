from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.objectives.concatenated import GROUP, ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import CHUNK


def streams(tokens: Any, lengths: list[int], eos: int | None) -> list[list[int]]:
    """The concatenated documents of each group, computed independently."""
    ends = [] if eos is None else [eos]
    return [
        [t for i in range(start, min(start + GROUP, len(lengths))) if lengths[i] for t in [*tokens.document(i).tolist(), *ends]]
        for start in range(0, len(lengths), GROUP)
    ]  # fmt: skip


@given(
    lengths=st.lists(st.integers(0, 30), max_size=300),
    segment=st.integers(1, 25),
    eos=st.sampled_from([None, 1]),
)
def test_no_token_is_lost_or_duplicated(token_list: Any, lengths: list[int], segment: int, eos: int | None) -> None:
    tokens = token_list(lengths)
    documents = ConcatenatedDocuments(tokens, 0, segment, eos)
    expected = [
        stream[at : at + segment] for stream in streams(tokens, lengths, eos) for at in range(0, len(stream), segment)
    ]
    assert documents.count(0) == len(expected)
    assert [t.tolist() for t in documents.segments(0, np.arange(len(expected)))] == expected
    full = [s for s in expected if len(s) == segment]
    assert documents.count_full(0) == len(full)
    assert [t.tolist() for t in documents.full_segments(0, np.arange(len(full)))] == full
    with pytest.raises(IndexError):
        documents.segments(0, [len(expected)])


@pytest.mark.parametrize("eos", [None, 1])
def test_long_document_contributes_one_random_chunk(token_list: Any, eos: int | None) -> None:
    tokens = token_list([10, 2 * CHUNK + 5, 20])
    documents = ConcatenatedDocuments(tokens, 1, 512, eos)
    starts = set()
    for epoch in range(12):
        stream = np.concatenate(documents.segments(epoch, np.arange(documents.count(epoch))))
        start = int(stream[10 + (eos is not None)]) - 1_000_003
        starts.add(start)
        parts = [tokens.document(0), tokens.document(1)[start : start + CHUNK], tokens.document(2)]
        assert stream.tolist() == [t for part in parts for t in [*part.tolist(), *([] if eos is None else [eos])]]
    assert starts == {0, CHUNK, 2 * CHUNK}
