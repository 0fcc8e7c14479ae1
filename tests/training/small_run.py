"""A training run small enough to be killed often: a few hundred weights, ragged examples, two prompts, dropout.

Train, also under `accelerate launch`:
    python small_run.py DIRECTORY '{"steps": 40, …}'
SIGKILL that many seconds after each start's first checkpoint, then once more to the end; prints how many kills hit:
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

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.core.errors import Interrupted
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.distributed import make_engine
from t5_pipeline.training.distributed.collectives import HostCollectives
from t5_pipeline.training.loop import resume, train
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.nonfinite import OnNonFinite
from t5_pipeline.training.optimizers import model_optimizer
from t5_pipeline.training.schedules import learning_rate
from t5_pipeline.training.state import TrainState

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

    def microbatches(self, size: int, device: str = "cpu") -> list[Examples]:
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
    """Mean of the inputs, a prompt's row and a position's row, dropout, two matrices; one frozen weight beside them."""

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
) -> TrainState:
    """One process of the run, from its newest checkpoint to `steps`, by way of the ends `stops` of single calls."""
    torch.manual_seed(0)
    model = SmallModel(dropout)
    accelerator = Accelerator(cpu=True)
    engine = make_engine(
        LaunchContext(), accelerator, model, lambda trained: model_optimizer(optimizer, trained, 1e-4), precision
    )
    state = TrainState(engine)
    checkpoints = Checkpoints(
        directory / "checkpoints",
        f"dropout {dropout}",
        keep_last=keep_last,
        keep_every=keep_every,
        control_group=HostCollectives(accelerator.process_index, accelerator.num_processes),
    )
    on_nonfinite = OnNonFinite("skip" if skip else "stop", directory if accelerator.is_main_process else None)

    def losses(model: SmallModel, batch: TensorBatch) -> Tensor:
        loss_BT = token_loss(model(batch.prompt_B, batch.inputs_BS, batch.targets_BT), batch.targets_BT, z_loss=1e-4)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, prompts=2)

    def validate() -> Mapping[str, float]:
        torch.rand(3)  # a validation may use the generator as it likes
        return {"loss": float(model.out.weight.detach().square().sum())}

    def slowly(step: int) -> float:
        time.sleep(seconds_per_step)
        if signal_at == step + 1 and accelerator.process_index == signal_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate("rsqrt", peak=0.5, warmup_steps=10)(step)

    name = "metrics.jsonl" if accelerator.is_main_process else f"metrics-{accelerator.process_index}.jsonl"
    with (
        StopSignal(LaunchContext()) as stop,
        MetricsLog(directory / name) as metrics,
        Progress("small", steps, every=0) as progress,
    ):
        resume(state, checkpoints, metrics, at=at)
        for end in (*stops, steps):
            train(
                state,
                Source(batch_size, poison, cured),
                steps=end,
                loss_fn=losses,
                schedule=slowly,
                seed=11,
                checkpoints=checkpoints,
                metrics=metrics,
                progress=progress,
                stop=stop,
                on_nonfinite=on_nonfinite,
                microbatch_size=microbatch_size,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                validate=validate,
                validate_every=6,
                cells=("a", "b"),
            )
    return state


def newest(directory: Path) -> str:
    return max((path.name for path in (directory / "checkpoints").glob("step-*")), default="")


def main(directory: Path, settings: dict[str, Any], kills: list[float]) -> int:
    torch.set_num_threads(1)
    hits = 0
    if kills:
        with tempfile.TemporaryDirectory() as elsewhere:
            run(Path(elsewhere), steps=4)  # what is imported late is imported here, not in every child
    for delay in kills:
        saved = newest(directory)
        child = os.fork()
        if child == 0:
            run(directory, **settings)
            os._exit(0)
        while newest(directory) == saved:
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "it came to its end before it was killed"
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
