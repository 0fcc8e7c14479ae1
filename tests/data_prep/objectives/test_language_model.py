from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.language_model import LM, FullLM

lengths = st.lists(st.integers(0, 30), max_size=200)


@given(lengths=lengths, target_length=st.integers(2, 20))
def test_lm_has_eos_after_every_segment(token_list: Any, lengths: list[int], target_length: int) -> None:
    tokens = token_list(lengths)
    objective = LM(tokens, 0, target_length)
    examples = objective.examples(0, np.arange(objective.count(0)))
    assert all(x.tolist() == [1] and y[-1] == 1 and len(y) <= target_length for x, y in examples)
    stream = [t for i in range(len(lengths)) for t in tokens.document(i).tolist()]
    assert [t for _, y in examples for t in y[:-1].tolist()] == stream


@given(lengths=lengths, target_length=st.integers(1, 20))
def test_full_lm_has_eos_only_after_documents(token_list: Any, lengths: list[int], target_length: int) -> None:
    tokens = token_list(lengths)
    objective = FullLM(tokens, 0, target_length)
    examples = objective.examples(0, np.arange(objective.count(0)))
    assert all(x.tolist() == [1] and len(y) <= target_length for x, y in examples)
    stream = [t for i, n in enumerate(lengths) if n for t in [*tokens.document(i).tolist(), 1]]
    assert [t for _, y in examples for t in y.tolist()] == stream


def test_target_length_too_short(token_list: Any) -> None:
    with pytest.raises(InputError, match="target_length: 1"):
        LM(token_list([5]), 0, 1)
    with pytest.raises(InputError, match="target_length: 0"):
        FullLM(token_list([5]), 0, 0)
