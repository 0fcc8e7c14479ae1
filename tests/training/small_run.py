"""A training run small enough to be killed often: a few hundred weights, ragged examples, two prompts, dropout.

Train (also under `accelerate launch`):
    python small_run.py DIRECTORY '{"steps": 40, …}'
Kill by SIGKILL that many seconds after the first checkpoint of each start, then train to the end; print the number of
kills that hit:
    python small_run.py DIRECTORY '{"steps": 40, …}' --kills 0.01 0.05
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t5_pipeline.config.adaptation import LanguageModelConfig
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.core.errors import Interrupted
from t5_pipeline.data_prep.sampling.microbatching import CPU, Device
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.state import TrainState
from t5_pipeline.training.trainer import Trainer, Validation

VOCABULARY, WIDTH, LONGEST = 23, 8, 6


@dataclass(frozen=True)
class Examples:
    """Rows of a batch, padded with 0."""

    inputs_BS: Any
    targets_BT: Any
    weights_B: Any
    prompt_B: Any
    segments: None = None

    def __len__(self) -> int:
        return len(self.weights_B)

    @property
    def input_tokens(self) -> int:
        return int((self.inputs_BS != 0).sum())

    @property
    def target_tokens(self) -> int:
        return int((self.targets_BT != 0).sum())

    def rows(self, index: Any) -> Examples:
        return Examples(self.inputs_BS[index], self.targets_BT[index], self.weights_B[index], self.prompt_B[index])

    def shard(self, rank: int, world: int) -> Examples:
        return self.rows(slice(rank, None, world))

    def microbatches(self, size: int, device: Device = CPU) -> list[Examples]:
        size = size or len(self)
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]


class Source:
    """Batch `step` is a function of the step; in steps `poison` … `cured` − 1 a weight is NaN."""

    def __init__(self, batch_size: int = 5, poison: int = 1 << 60, cured: int = 1 << 60) -> None:
        self.batch_size = batch_size
        self.poison = poison
        self.cured = cured

    def ids(self, step: int) -> list[int]:
        return list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def at(self, step: int) -> Examples:
        rng = np.random.default_rng([7, step])
        shape = (self.batch_size, LONGEST)
        ids = [
            rng.integers(1, VOCABULARY, shape) * (np.arange(LONGEST) < rng.integers(1, LONGEST + 1, shape[:1])[:, None])
            for _ in range(2)
        ]
        weights_B = np.full(self.batch_size, 1 / np.count_nonzero(ids[1]), np.float32)
        if self.poison <= step < self.cured:
            weights_B[0] = np.nan
        return Examples(ids[0].astype(np.int32), ids[1].astype(np.int32), weights_B, np.arange(self.batch_size) % 2)


class SmallModel(nn.Module):
    """Mean of the inputs plus a prompt row and a position row, dropout, two matrices; and one frozen weight."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.prompts = nn.Embedding(2, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.inner = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, VOCABULARY)
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, prompt_B: Tensor, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_BD = self.tokens(inputs_BS).mean(dim=1) + self.prompts(prompt_B)
        hidden_BTD = hidden_BD.unsqueeze(1) + self.positions.weight[: targets_BT.shape[1]]
        logits_BTV: Tensor = self.out(torch.relu(self.inner(self.dropout(hidden_BTD))))
        return logits_BTV


def run(
    directory: Path,
    *,
    steps: int,
    dropout: float = 0.1,
    optimizer: str = "adafactor",
    log_every: int = 4,
    checkpoint_every: int = 3,
    microbatch_size: int = 2,
    batch_size: int = 5,
    poison: int = 1 << 60,
    cured: int = 1 << 60,
    at: int | None = None,
    seconds_per_step: float = 0.0,
    signal_at: int = 0,
    signal_rank: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    stops: tuple[int, ...] = (),
    keep_last: int = 2,
    keep_every: int = 0,
    skip: bool = False,
    others: Path | None = None,
) -> TrainState:
    """One process of the run, from its newest checkpoint to `steps`, in one call of run_to for each of `stops` too.

    Args:
        others: another directory of the run, of which `steps` is an earlier step.
    """
    torch.manual_seed(0)
    model = SmallModel(dropout)
    accelerator = Accelerator(cpu=True)
    config = LanguageModelConfig(
        tokens="none",
        steps=steps,
        seed=11,
        optimizer=optimizer,
        learning_rate=0.5,
        schedule="rsqrt",
        warmup_steps=10,
        weight_decay=1e-4,
        precision=precision,
        microbatch_size=microbatch_size,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        keep_last=keep_last,
        keep_every=keep_every,
        on_nonfinite="skip" if skip else "stop",
    )

    def losses(model: SmallModel, batch: TensorBatch) -> Tensor:
        loss_BT = token_loss(model(batch.prompt_B, batch.inputs_BS, batch.targets_BT), batch.targets_BT, z_loss=1e-4)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, prompts=2)

    def measure(state: TrainState) -> Mapping[str, float]:
        torch.rand(3)  # a validation may advance the generator
        return {"loss": float(model.out.weight.detach().square().sum())}

    trainer = Trainer(
        config,
        LaunchContext(),
        accelerator,
        model,
        Source(batch_size, poison, cured),
        losses,
        validation=Validation(measure, 6),
        cells=("a", "b"),
    )
    (schedule,) = trainer.schedules

    def slowly(step: int) -> float:
        time.sleep(seconds_per_step)
        if signal_at == step + 1 and accelerator.process_index == signal_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule(step)

    trainer.schedules = [slowly]
    with (
        StopSignal(LaunchContext()) as stop,
        Progress("small", steps, every=0) as progress,
        trainer.open(directory, f"dropout {dropout}", stop=stop, progress=progress),
    ):
        if others is None:
            trainer.resume(at)
        else:
            trainer.resume(at_most=steps, others=trainer.checkpoints_in(others, f"dropout {dropout}"))
        for end in (*stops, steps):
            trainer.run_to(end)
    return trainer.state


def newest(directory: Path) -> str:
    return max((path.name for path in (directory / "checkpoints").glob("step-*")), default="")


def main(directory: Path, settings: dict[str, Any], kills: list[float]) -> int:
    torch.set_num_threads(1)
    hits = 0
    if kills:
        with tempfile.TemporaryDirectory() as elsewhere:
            run(Path(elsewhere), steps=4)  # load lazy imports here, not in every child
    for delay in kills:
        saved = newest(directory)
        child = os.fork()
        if child == 0:
            run(directory, **settings)
            os._exit(0)
        while newest(directory) == saved:
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hits += os.WIFSIGNALED(status)
    print(hits)
    try:
        run(directory, **settings)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    return 0


if __name__ == "__main__":
    flag = sys.argv.index("--kills") if "--kills" in sys.argv else len(sys.argv)
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2]), [float(delay) for delay in sys.argv[flag + 1 :]]))
