"""Held-out loss and bits per byte."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t5_pipeline.config.stage import Precision
from t5_pipeline.data_prep.sampling.batches import collate
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.language_model import bits_per_byte, held_out_loss
from t5_pipeline.training.state import TrainState

SHAPE = T5Config(
    vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip


@pytest.mark.parametrize("pad", [0, 1])
def test_bits_per_byte_of_two_batches(pad: int) -> None:
    """Padding and rows of weight 0 do not count: 1 nat for each of 4 tokens, on 3 + 5 bytes of text."""
    eos = 1 - pad
    bytes_V = np.array([0, 0, 3, 5])  # pad and eos, two pieces
    batches = [
        SimpleNamespace(targets_BT=np.array([[2, eos, pad], [3, 3, 3]]), weights_B=np.array([0.5, 0.0])),
        SimpleNamespace(targets_BT=np.array([[3, eos, pad]]), weights_B=np.array([0.5])),
    ]
    assert bits_per_byte(1.0, batches, bytes_V, pad) == pytest.approx(4 / np.log(2) / 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "frozen", "parts"), [("bf16", False, 1), ("bf16", True, 2), ("fp32", False, 2), ("fp32", True, 2)]
)
def test_microbatches_are_larger_where_a_pass_is_expensive(precision: Precision, frozen: bool, parts: int) -> None:
    t5, cpu = init_t5(SHAPE, seed=0), torch.device("cpu")
    t5.shared.requires_grad_(not frozen)
    scope = ForwardScope(t5, precision, "cpu")
    state = TrainState(Replicated(scope, lambda p: torch.optim.SGD(p, 0.0), ProcessGroup.alone(), cpu))
    lengths = [(8, 8)] * 4 + [(96, 8)]  # in one pass, padding costs 4 · 88 positions
    batch = collate([(np.ones(inputs, np.int32), np.ones(targets, np.int32)) for inputs, targets in lengths])
    assert len(state.share(batch, 0)) == parts


@pytest.mark.parametrize("reference", [False, True])
def test_held_out_loss_is_the_mean_cross_entropy_of_all_target_tokens(reference: bool) -> None:
    """Without dropout and z-loss; a row of weight 0, as ranks without rows get, does not count."""
    t5, cpu = init_t5(SHAPE, seed=0), torch.device("cpu")
    t5.set_dropout(0.5)
    scope = ForwardScope(t5, "fp32", "cpu")
    state = TrainState(Replicated(scope, lambda p: torch.optim.SGD(p, 0.0), ProcessGroup.alone(), cpu))
    examples = [
        (np.array([5, 9, 1]), np.array([6, 7, 8, 9, 1])),
        (np.array([4, 1]), np.array([8, 1])),
        (np.array([1]), np.array([3, 1])),
    ]
    batches = [collate(examples[:2]), collate(examples, [0.2, 0.0, 0.2])]
    found = held_out_loss(state, batches, microbatch_size=2, reference=reference)
    t5.eval()
    total = tokens = 0.0
    for inputs, targets in (examples[0], examples[1], examples[0], examples[2]):
        logits = t5(torch.tensor(inputs)[None], torch.tensor(targets)[None])[0]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").detach())
        tokens += len(targets)
    assert found == pytest.approx(total / tokens, rel=1e-5)
