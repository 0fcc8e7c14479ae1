"""Sizes shared with the cost model, compared with what the code does."""

from __future__ import annotations

import pytest
import torch

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.layers import CrossAttentionLayer
from t5_pipeline.modeling.limits import attends_without_keys


@pytest.mark.parametrize("queries", [1, 4, 5, 9])
def test_cross_attention_projects_keys_for_many_queries(queries: int) -> None:
    shape = T5Config(vocab_size=8, d_model=12, d_kv=8, d_ff=16, num_heads=3)
    layer, projected = CrossAttentionLayer(shape), []
    layer.EncDecAttention.k.register_forward_hook(lambda *_: projected.append(True))
    layer(torch.zeros(2, queries, 12), torch.zeros(2, 7, 12), None)
    assert bool(projected) != attends_without_keys(queries, shape.d_kv)
