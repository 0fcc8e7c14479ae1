"""Prompt initialization."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.methods import prompt_init as initializers

EMBEDDING = torch.arange(40.0)[:, None].expand(40, 3)  # row i is (i, i, i)


@pytest.mark.parametrize("length", [1, 20, 512])
@pytest.mark.parametrize(("name", "low"), [("uniform", -0.5), ("uniform_code", 0.0)])
def test_uniform_ranges(name: str, low: float, length: int) -> None:
    draw = getattr(initializers, name)
    rows = draw(length, 64, seed=1)
    assert rows.shape == (length, 64)
    assert rows.dtype == torch.float32
    assert low <= rows.min() < low + 0.06
    assert 0.44 < rows.max() < 0.5
    assert torch.equal(rows, draw(length, 64, seed=1))
    assert not torch.equal(rows, draw(length, 64, seed=2))


def test_vocabulary_samples_population_without_replacement() -> None:
    ids = initializers.vocabulary(EMBEDDING, 10, seed=0, population=range(10))[:, 0]
    assert sorted(ids.tolist()) == list(range(10))
    few = initializers.vocabulary(EMBEDDING, 5, seed=0, population=range(10))[:, 0]
    assert len(set(few.tolist())) == 5
    assert few.max() < 10
    assert few.tolist() != initializers.vocabulary(EMBEDDING, 5, seed=1, population=range(10))[:, 0].tolist()


def test_rows_are_drawn_from_the_first_pieces_without_sentinels_and_padding() -> None:
    t5: Any = SimpleNamespace(shared=SimpleNamespace(weight=EMBEDDING), shape=SimpleNamespace(d_model=3))
    tokenizer: Any = SimpleNamespace(size=30, sentinel_ids=(3, 29))
    few: Any = SimpleNamespace(prompt_init="vocabulary", prompt_length=8, init_population=8, seed=5)
    rows = initializers.initial_rows(t5, tokenizer, few, few.seed)
    assert sorted(rows[:, 0].tolist()) == [0, 1, 2, 4, 5, 6, 7, 8]
    c: Any = SimpleNamespace(prompt_init="vocabulary", prompt_length=4, init_population=5000, seed=5)
    sampled = initializers.sampled_rows(t5, tokenizer, c, 28)
    assert sorted(sampled[:, 0].tolist()) == [i for i in range(29) if i != 3]
    assert torch.equal(sampled[:4], initializers.initial_rows(t5, tokenizer, c, c.seed))


def test_prompt_longer_than_population_repeats_rows() -> None:
    ids = initializers.vocabulary(EMBEDDING, 512, seed=0)[:, 0]
    assert len(ids) == 512
    assert set(ids.tolist()) <= set(range(40))


def test_vocabulary_copies_rows_to_fp32() -> None:
    embedding = torch.nn.Parameter(EMBEDDING.bfloat16())
    rows = initializers.vocabulary(embedding, 4, seed=0)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad


def test_class_labels_then_vocabulary() -> None:
    rows = initializers.class_labels(EMBEDDING, [[10], [20, 30]], 6, seed=5, population=range(8))[:, 0]
    assert rows[:2].tolist() == [10.0, 25.0]
    assert len(set(rows[2:].tolist())) == 4
    assert rows[2:].max() < 8


def test_more_labels_than_rows_warns(caplog: pytest.LogCaptureFixture) -> None:
    rows = initializers.class_labels(EMBEDDING, [[1], [2], [3]], 2, seed=0)
    assert "3 labels but only 2 prompt rows; the last 1 labels start no row" in caplog.text
    assert rows[:, 0].tolist() == [1.0, 2.0]


def test_text_in_order_then_vocabulary() -> None:
    rows = initializers.from_ids(EMBEDDING, [7, 9, 7], 5, seed=0, population=range(6))[:, 0]
    assert rows[:3].tolist() == [7.0, 9.0, 7.0]
    assert rows[3:].max() < 6
    assert initializers.from_ids(EMBEDDING, [7, 9, 8], 2, seed=0)[:, 0].tolist() == [7.0, 9.0]


def test_text_longer_than_the_prompt_warns(caplog: pytest.LogCaptureFixture) -> None:
    initializers.from_ids(EMBEDDING, [7, 9, 8], 3, seed=0)
    assert not caplog.text
    initializers.from_ids(EMBEDDING, [7, 9, 8], 1, seed=0)
    assert "init_text has 3 pieces but only 1 prompt rows; the last 2 pieces start no row" in caplog.text


def test_from_prompt_copies() -> None:
    trained = torch.randn(4, 3)
    rows = initializers.from_prompt(trained, 4, 3)
    assert torch.equal(rows, trained)
    rows.zero_()
    assert trained.any()


def test_invalid_initialization_is_rejected() -> None:
    with pytest.raises(InputError, match=r"base/prompt: has 4 rows of width 3, but the new prompt has 9 rows"):
        initializers.from_prompt(torch.ones(4, 3), 9, 3, where="base/prompt")
    with pytest.raises(InputError, match="class_labels needs labels"):
        initializers.class_labels(EMBEDDING, [], 4, seed=0)
    with pytest.raises(InputError, match="class_labels needs labels"):
        initializers.class_labels(EMBEDDING, [[3], []], 4, seed=0)
    with pytest.raises(InputError, match="init_text"):
        initializers.from_ids(EMBEDDING, [], 4, seed=0)
