"""A tiny T5 with two prompts, and inputs for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5

SHAPE = T5Config(
    vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
INPUTS_BS = torch.tensor([[5, 9, 33, 1, 0, 0], [7, 1, 0, 0, 0, 0], [40, 41, 42, 43, 44, 1]])
PROMPT_B = torch.tensor([1, 0, 1])


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> PromptedT5:
    """With weights larger than at the start, so that different prompts give different answers."""
    t5 = init_t5(replace(SHAPE, tied=request.param), seed=3)
    with torch.no_grad():
        for name, p in t5.named_parameters():
            p.mul_(2.0 if "norm" not in name else 1.0)
    generator = torch.Generator().manual_seed(0)
    bank = PromptBank([torch.randn(length, 24, generator=generator) for length in (2, 5)])
    return PromptedT5(t5, bank).eval()
