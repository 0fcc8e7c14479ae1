"""Small models and batches for the modeling tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.t5 import T5

SHAPES = {
    "gated_untied": T5Config(
        vocab_size=96, d_model=32, d_kv=16, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12,
    ),
    "relu_tied": T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, gated=False, activation="relu", tied=True,
    ),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> T5Config:
    return SHAPES[request.param]


@pytest.fixture
def model(shape: T5Config) -> T5:
    return init_t5(shape, seed=1).eval()


def token_rows(lengths: list[int], seed: int, vocabulary: int = 96, eos: int = 1, pad: int = 0) -> Tensor:
    """Random rows of these lengths, EOS last, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (len(lengths), max(lengths)), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length - 1] = eos
        ids[row, length:] = pad
    return ids


def token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy summed over the target tokens."""
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=0, reduction="sum"
    )


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + flat.tobytes())
    return digest.hexdigest()


def model_digest(directory: Path) -> str:
    """Digest of the model in a directory."""
    return tensors_digest(load_t5(directory).state_dict().items())
