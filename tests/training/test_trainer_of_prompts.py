"""Trainer with a frozen T5 and a bank of prompts: only the prompts change, each as if it were alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import prompt_optimizer
from t5_pipeline.training.trainer import Trainer

SHAPE = T5Config(
    vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
LENGTHS = [3, 1, 7]


class Mixed:
    """At every step, the concatenated batches of each prompt's own source."""

    def __init__(self, small_run: ModuleType, prompts: list[int]) -> None:
        self.examples = small_run.Examples
        self.sources: list[tuple[int, Any]] = [(prompt, small_run.Source(batch_size=2 + prompt)) for prompt in prompts]

    def at(self, step: int) -> Any:
        parts = [(index, source.at(1000 * prompt + step)) for index, (prompt, source) in enumerate(self.sources)]
        columns = [[getattr(part, name) for _, part in parts] for name in ("inputs_BS", "targets_BT", "weights_B")]
        prompt_B = np.concatenate([np.full(len(part), index) for index, part in parts])
        return self.examples(*(np.concatenate(column) for column in columns), prompt_B)

    def ids(self, step: int) -> list[int]:
        return [number for _, source in self.sources for number in source.ids(step)]


def tuned(small_run: ModuleType, directory: Path, prompts: list[int], dropout: float = 0.0) -> PromptedT5:
    t5 = init_t5(SHAPE, seed=0)
    t5.set_dropout(dropout)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(length, 16, generator=generator) for length in LENGTHS]
    model = PromptedT5(t5, PromptBank([starts[prompt] for prompt in prompts]))
    config = TrainingConfig(steps=8, seed=1, learning_rate=0.3, precision="fp32", microbatch_size=4)

    def losses(model: PromptedT5, batch: TensorBatch) -> Tensor:
        loss_BT = token_loss(model(batch.prompt_B, batch.inputs_BS, batch.targets_BT), batch.targets_BT, 1e-4)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, len(prompts))

    trainer = Trainer(
        config,
        LaunchContext(),
        Accelerator(cpu=True),
        model,
        Mixed(small_run, prompts),
        losses,
        optimizer=lambda rows: prompt_optimizer("adafactor", rows[0], model.bank.row_prompt_R, 1e-5),
        cells=[str(prompt) for prompt in prompts],
    )
    with trainer.open(directory, "f", stop=StopSignal(LaunchContext()), progress=Progress("tune", 8)):
        trainer.run_to(8)
    return model


def test_the_t5_is_bit_identical_and_only_prompts_are_saved(small_run: ModuleType, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in init_t5(SHAPE, seed=0).state_dict().items()}
    model = tuned(small_run, tmp_path, [0, 1, 2], dropout=0.1)
    for name, p in model.t5.state_dict().items():
        assert torch.equal(p, before[name]), name
    assert all(p.grad is None for p in model.t5.parameters())
    kept = Checkpoints(tmp_path / "checkpoints", "f").at(8).tensors()
    numbers = {name: tensor.numel() for name, tensor in kept.items() if name != "meter"}
    bank = "bank.rows_RD"
    assert numbers == {f"model/{bank}": 11 * 16, f"optimizer/{bank}/mean_square": 11 * 16, f"optimizer/{bank}/step": 1}


@pytest.mark.parametrize("prompt", range(3))
def test_a_prompt_in_a_bank_equals_the_prompt_alone(small_run: ModuleType, tmp_path: Path, prompt: int) -> None:
    together = tuned(small_run, tmp_path / "together", [0, 1, 2])
    alone = tuned(small_run, tmp_path / "alone", [prompt])
    mine, other = together.bank.prompt(prompt), alone.bank.prompt(0)
    assert (mine - other).norm() <= 1e-5 * other.norm()
