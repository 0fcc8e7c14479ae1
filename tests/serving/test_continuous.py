"""Texts that join and leave a running batch get the tokens that they get alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t5_pipeline.evaluation.decoding import Continuations, Decoding
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.serving.continuous import RunningBatch, Text

LENGTHS = [3, 9, 1, 6, 4, 12, 2, 5]
MOST = [4, 12, 1, 7, 3, 9, 12, 2]


@pytest.fixture(scope="module", params=["untied", "tied"])
def t5(request: pytest.FixtureRequest) -> T5:
    # A scaled head makes the texts end at different lengths.
    shape = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=6, tied=request.param == "tied")  # fmt: skip
    return init_t5(shape, seed=2).eval()


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 128, (1, length), generator=generator) for length in LENGTHS]


@torch.no_grad()
def alone(t5: T5, ids_1S: Tensor, most: int) -> list[int]:
    texts = Continuations(BareT5(t5), t5.encode(t5.embed(ids_1S), None), None)
    ids: list[int] = Decoding().decode(texts, most, [0])[0].tolist()
    return ids


def encoded(t5: T5, ids_1S: Tensor) -> Tensor:
    return t5.encode(t5.embed(ids_1S), None)[0]


@torch.no_grad()
@pytest.mark.parametrize("schedule", [[0] * 8, [0, 0, 1, 1, 2, 5, 6, 20], [0, 3, 3, 3, 4, 4, 4, 9]])
def test_texts_that_join_at_any_step_equal_texts_alone(t5: T5, schedule: list[int]) -> None:
    batch: RunningBatch[int] = RunningBatch(t5)
    found: dict[int, list[int]] = {}
    for step in range(60):
        joining = [i for i, at in enumerate(schedule) if at == step]
        if joining:
            batch.join([Text(i, MOST[i]) for i in joining], [encoded(t5, inputs()[i]) for i in joining])
        for text in batch.step():
            found[text.owner] = text.ids
    assert found == {i: alone(t5, ids_1S, MOST[i]) for i, ids_1S in enumerate(inputs())}
    assert len(batch) == 0


@torch.no_grad()
def test_leaving_changes_no_other_text(t5: T5) -> None:
    batch: RunningBatch[int] = RunningBatch(t5)
    for i in (1, 3, 5):
        batch.join([Text(i, MOST[i])], [encoded(t5, inputs()[i])])
        batch.step()
    batch.keep([row for row, text in enumerate(batch.texts) if text.owner != 3])
    found = {}
    while len(batch):
        found |= {text.owner: text.ids for text in batch.step()}
    for i in found:
        assert found[i] == alone(t5, inputs()[i], MOST[i])
    assert 3 not in found


@torch.no_grad()
def test_texts_that_cannot_join_change_nothing(t5: T5) -> None:
    batch: RunningBatch[int] = RunningBatch(t5)
    batch.join([Text(1, MOST[1])], [encoded(t5, inputs()[1])])
    batch.step()
    with pytest.raises(RuntimeError):  # the encoder's output has a column too many
        batch.join([Text(2, 5)], [torch.zeros(3, t5.shape.d_model + 1)])
    found = {}
    while len(batch):
        found |= {text.owner: text.ids for text in batch.step()}
    assert found == {1: alone(t5, inputs()[1], MOST[1])}


@torch.no_grad()
def test_memory_shrinks_when_long_texts_leave(t5: T5) -> None:
    batch: RunningBatch[int] = RunningBatch(t5)
    batch.eos = -1  # none ends early
    # 12 and 10 share a part; 2 has one of its own.
    most = {12: 3, 2: 9, 10: 9}
    texts = [Text(length, most[length]) for length in most]
    batch.join(texts, [encoded(t5, torch.full((1, length), 5)) for length in most])

    def shapes() -> list[tuple[int, ...]]:
        parts = batch._cache.layer(0).encoded
        assert isinstance(parts, list)
        return [tuple(part.keys.shape[:3]) for part in parts]

    assert shapes() == [(2, 4, 12), (1, 4, 2)]
    for _ in range(4):
        batch.step()
    assert shapes() == [(1, 4, 10), (1, 4, 2)]
    batch.keep([row for row, text in enumerate(batch.texts) if text.owner == 2])
    assert shapes() == [(1, 4, 2)]


@torch.no_grad()
def test_a_text_that_overflows_changes_no_other_text(t5: T5) -> None:
    """Long and NaN, it is the first of a part in which the others are padded."""
    others = [1, 5, 3]  # 9, 12 and 6 tokens
    batch: RunningBatch[int] = RunningBatch(t5)
    bad = torch.full((11, t5.shape.d_model), torch.nan)
    batch.join([Text(-1, 12), *(Text(i, MOST[i]) for i in others)], [bad, *(encoded(t5, inputs()[i]) for i in others)])
    found = {}
    while len(batch):
        found |= {text.owner: text.ids for text in batch.step()}
    assert {i: found[i] for i in others} == {i: alone(t5, inputs()[i], MOST[i]) for i in others}
