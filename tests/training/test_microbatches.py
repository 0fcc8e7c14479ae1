"""Packed rows through T5 and the Trainer: loss, gradients and training as with one example per row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.microbatching import CPU
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loop import gradients
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch, rank_microbatches
from t5_pipeline.training.trainer import Trainer

SHAPE = T5Config(
    vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip


class Documents:
    """Random text, much of it short."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.documents = [rng.integers(3, 100, n) for n in rng.integers(1, 60, 200)]
        self.lengths_N = np.array([len(document) for document in self.documents])

    def document(self, i: int) -> Any:
        return self.documents[i]


def batches(objective: str, packed: bool) -> LMBatches:
    if objective == "prefix_lm":
        return LMBatches(PrefixLM(Documents(), 3, 32), 16, 5, (32, 32) if packed else None)
    source = SpanCorruption(Documents(), 3, 24, sentinel_ids=range(119, 99, -1))
    # Wider than the longest example, as nearly all segments have their full length.
    return LMBatches(source, 16, 5, (100, 50) if packed else None)


def losses(model: T5, batch: TensorBatch) -> Tensor:
    loss_BT = token_loss(model(batch.inputs_BS, batch.targets_BT, batch.segments), batch.targets_BT, z_loss=1e-4)
    return batch_losses(loss_BT, batch.weights_B, batch.prompt_B)


def trainer(objective: str, packed: bool, optimizer: str = "adafactor") -> Trainer:
    model = init_t5(SHAPE, seed=1)
    model.set_dropout(0.0)
    config = TrainingConfig(
        steps=6, seed=2, optimizer=optimizer, precision="fp32", microbatch_size=2 if packed else 4, log_every=1
    )
    return Trainer(config, LaunchContext(), Accelerator(cpu=True), model, batches(objective, packed), losses)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world", [2, 3, 20])
def test_ranks_in_lockstep_have_as_many_microbatches_and_add_up_to_the_batch(world: int, packed: bool) -> None:
    """Also ranks without rows; the weights of all target tokens add up to 1."""
    batch = batches("prefix_lm", packed).at(4)
    for lockstep in (False, True):
        shares = [rank_microbatches(batch, rank, world, 3, CPU, lockstep) for rank in range(world)]
        assert not lockstep or len({len(share) for share in shares}) == 1
        counted = [((micro.targets_BT != 0).sum(dim=1), micro.weights_B) for share in shares for micro in share]
        weight = sum(float((tokens_B * weights_B).sum()) for tokens_B, weights_B in counted)
        tokens = sum(int(tokens_B[weights_B > 0].sum()) for tokens_B, weights_B in counted)
        assert (tokens, weight) == (batch.target_tokens, pytest.approx(1.0, rel=1e-5))


@pytest.mark.parametrize("microbatch_size", [0, 3])
@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
def test_packing_keeps_loss_and_gradients(objective: str, microbatch_size: int) -> None:
    found = []
    for packed in (False, True):
        one = trainer(objective, packed).state
        part = one.step_batch(batches(objective, packed), 4, microbatch_size)
        assert all((micro.segments is not None) is packed for micro in part.microbatches)
        assert all(len(micro.inputs_BS) <= (microbatch_size or 16) for micro in part.microbatches)
        loss = gradients(one, part, losses, 1)
        found.append((part.examples, part.tokens, loss, {n: p.grad for n, p in one.engine.model.named_parameters()}))
    (rows, tokens, loss, plain), (packed_rows, packed_tokens, packed_loss, together) = found
    assert packed_rows < 0.7 * rows
    assert packed_tokens == tokens
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
    for name, gradient in plain.items():
        assert (together[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_an_example_does_not_see_its_neighbors() -> None:
    """Changing all examples of a row but the first does not change the output for the first."""
    model = init_t5(SHAPE, seed=1)
    model.set_dropout(0.0)
    batch = TensorBatch.of(batches("prefix_lm", packed=True).at(0))
    assert batch.segments is not None
    in_BS, out_BT = batch.segments
    changed = [
        ids.where(numbers < 2, (ids + 7) % 90 + 3)
        for ids, numbers in ((batch.inputs_BS, in_BS), (batch.targets_BT, out_BT))
    ]
    assert not torch.equal(changed[0], batch.inputs_BS)
    first = out_BT == 1
    before, after = model(batch.inputs_BS, batch.targets_BT, batch.segments), model(*changed, batch.segments)
    torch.testing.assert_close(after[first], before[first], atol=1e-6, rtol=0)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
def test_packing_keeps_the_trajectory(objective: str, optimizer: str, tmp_path: Path) -> None:
    ends, logs = [], []
    for packed in (False, True):
        directory = tmp_path / str(packed)
        one = trainer(objective, packed, optimizer)
        with one.open(directory, "f", stop=StopSignal(LaunchContext()), progress=Progress("packing", 6)):
            one.run_to(6)
        ends.append(dict(one.state.engine.model.named_parameters()))
        logs.append([json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(logs[1], logs[0], rtol=1e-5)
    start = dict(init_t5(SHAPE, seed=1).named_parameters())
    for name, plain in ends[0].items():
        assert (ends[1][name] - plain).norm() <= 1e-5 * plain.norm(), name
        assert (ends[1][name] - plain).norm() <= 1e-3 * (plain - start[name]).norm(), name
