"""Trainer: bit-identical after kills, independent of microbatches, ranks and calls, clear errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import t5_pipeline
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.core.errors import InputError, Interrupted
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.loop import dropout_seed
from t5_pipeline.training.microbatches import prefetch
from t5_pipeline.training.state import TrainState
from tests.forked import run_forked
from tests.training.checkpoints.saved import Saved, tensors_of

ROOT = Path(t5_pipeline.__file__).parents[1]
SMALL_RUN = Path(__file__).with_name("small_run.py")
TIMES = {"elapsed_s", "tokens_per_second"}


def rows(directory: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without times."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def last_tensors(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return Checkpoints(directory / "checkpoints", "dropout 0.1").at(step).tensors()


def assert_same_bits(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert torch.equal(one, others[name]), name


def command(directory: Path, settings: dict[str, Any], *more: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, str(SMALL_RUN), str(directory), json.dumps(settings), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(("optimizer", "precision"), [("adafactor", "fp32"), ("adafactor", "bf16"), ("adamw", "fp32")])
def test_a_resumed_run_is_bit_identical(small_run: ModuleType, tmp_path: Path, optimizer: str, precision: str) -> None:
    """Resumed within a log interval, and between two checkpoints."""
    whole: TrainState = small_run.run(tmp_path / "whole", steps=20, optimizer=optimizer, precision=precision)
    for steps in (5, 6, 13, 20):
        resumed: TrainState = small_run.run(tmp_path / "resumed", steps=steps, optimizer=optimizer, precision=precision)
    assert_same_bits(tensors_of(whole), tensors_of(resumed))
    assert rows(tmp_path / "whole") == rows(tmp_path / "resumed")
    assert [row["step"] for row in rows(tmp_path / "whole")] == [0, 4, 6, 8, 12, 12, 16, 18, 20]
    assert resumed.elapsed > 0


def test_a_killed_run_is_bit_identical(small_run: ModuleType, tmp_path: Path) -> None:
    """Every step is saved, and kills come up to 50 ms after a save: in steps, in saves, in pruning."""
    settings = {"steps": 150, "checkpoint_every": 1, "seconds_per_step": 0.01}
    small_run.run(tmp_path / "whole", steps=150)
    delays = [str(0.05 * (k * 0.618 % 1)) for k in range(20)]
    code, hits, said = run_forked(command(tmp_path / "killed", settings, "--kills", *delays), ROOT, environment())
    assert code == 0, said
    assert int(hits) == len(delays)
    assert_same_bits(last_tensors(tmp_path / "whole", 150), last_tensors(tmp_path / "killed", 150))
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_the_ends_of_calls_change_nothing(small_run: ModuleType, tmp_path: Path) -> None:
    whole = small_run.run(tmp_path / "whole", steps=12)
    stages = small_run.run(tmp_path / "calls", steps=12, stops=(5, 5, 7))
    assert_same_bits(tensors_of(whole), tensors_of(stages))
    assert rows(tmp_path / "whole") == rows(tmp_path / "calls")


def test_resuming_at_a_chosen_step_repeats_the_trajectory(small_run: ModuleType, tmp_path: Path) -> None:
    first = small_run.run(tmp_path, steps=14, keep_every=6)
    before = rows(tmp_path)
    again = small_run.run(tmp_path, steps=14, at=6)
    assert_same_bits(tensors_of(first), tensors_of(again))
    assert rows(tmp_path) == before


def test_damaged_checkpoints_of_an_earlier_step_are_not_needed(
    small_run: ModuleType, tmp_path: Path, log_messages: pytest.LogCaptureFixture
) -> None:
    """Training an earlier step again begins with another checkpoint of the run, or with step 0."""
    small_run.run(tmp_path / "whole", steps=14, keep_every=6)
    expected = tensors_of(small_run.run(tmp_path / "nine", steps=9))
    for _ in range(2):
        again = small_run.run(tmp_path / "again", steps=9, keep_last=1, others=tmp_path / "whole")
        assert_same_bits(tensors_of(again), expected)
        (checkpoint,) = (tmp_path / "again" / "checkpoints").iterdir()
        os.truncate(checkpoint / "state.json", 9)
        shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000006", ignore_errors=True)
    log_messages.clear()
    small_run.run(tmp_path / "again", steps=9, keep_last=1, others=tmp_path / "whole")
    (line,) = log_messages.messages
    assert re.fullmatch(r"\S+state.json: cannot be read \(.*\); using the checkpoint before it", line)


def test_microbatches_change_the_sum_by_rounding_only(small_run: ModuleType, tmp_path: Path) -> None:
    states = [small_run.run(tmp_path / str(size), steps=10, dropout=0.0, microbatch_size=size) for size in (0, 1, 3)]
    for name, p in states[0].engine.trained.items():
        for other in states[1:]:
            assert torch.allclose(p, other.engine.trained[name], rtol=1e-5, atol=1e-6), name


def test_only_trained_parameters_change_and_are_saved(small_run: ModuleType, tmp_path: Path) -> None:
    state = small_run.run(tmp_path, steps=3)
    assert torch.equal(state.engine.model.frozen, torch.ones(3))
    assert not [name for name in tensors_of(state) if "frozen" in name]
    assert len(state.engine.trained) == 7


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    seeds = {dropout_seed(seed, step, rank) for seed in range(10) for step in range(100) for rank in range(4)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_good_checkpoints(
    small_run: ModuleType, tmp_path: Path, log_every: int
) -> None:
    with pytest.raises(InputError, match="step 8: the loss is not finite"):
        small_run.run(tmp_path, steps=20, poison=7, log_every=log_every)
    assert Checkpoints(tmp_path / "checkpoints", "dropout 0.1").steps() == [3, 6]
    repaired = small_run.run(tmp_path, steps=20)
    assert_same_bits(tensors_of(repaired), tensors_of(small_run.run(tmp_path / "whole", steps=20)))


def test_steps_that_a_resumed_run_trains_again_are_listed_once(small_run: ModuleType, tmp_path: Path) -> None:
    """A run that was killed after it had listed steps that no checkpoint contains, within a line."""
    small_run.run(tmp_path, steps=6, poison=1, skip=True)
    listed = tmp_path / "nonfinite.jsonl"
    before = listed.read_text()
    assert [json.loads(line)["step"] for line in before.splitlines()] == [2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    listed.write_text(before + '{"step": 7, "los')
    small_run.run(tmp_path, steps=6, poison=1, skip=True)
    assert listed.read_text() == before
    assert not list(tmp_path.glob(".*"))


def test_on_a_signal_the_step_is_finished_and_saved(small_run: ModuleType, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        small_run.run(tmp_path, steps=20, checkpoint_every=100, signal_at=8)
    assert caught.value.exit_code == 143
    assert caught.value.step == 8
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same_bits(
        tensors_of(small_run.run(tmp_path, steps=20)), tensors_of(small_run.run(tmp_path / "whole", steps=20))
    )


def test_the_first_signal_counts_and_repeats_are_ignored() -> None:
    with StopSignal(LaunchContext()) as stop:
        assert stop.signum == 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), signum)
        assert stop.signum == signal.SIGINT


def test_another_model_or_other_settings_are_refused(small_run: ModuleType, tmp_path: Path) -> None:
    state = small_run.run(tmp_path, steps=3)
    with pytest.raises(InputError, match=r"fingerprint dropout 0\.1, now dropout 0\.5"):
        small_run.run(tmp_path, steps=3, dropout=0.5)
    tensors = tensors_of(state)
    bad = {**tensors, "model/out.bias": torch.ones(2)}
    with pytest.raises(InputError, match=r"out\.bias has shape \[2\], not \[23\]"):
        state.load(3, Saved(bad), state.scalars())
    with pytest.raises(InputError, match=r"out\.bias is missing"):
        state.load(3, Saved({n: t for n, t in tensors.items() if n != "model/out.bias"}), state.scalars())
    with pytest.raises(InputError, match="stranger is not in this model"):
        state.load(3, Saved({**tensors, "model/stranger": torch.ones(2)}), state.scalars())


LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


def test_two_processes_train_like_one(small_run: ModuleType, tmp_path: Path) -> None:
    """Batches that two processes cannot share evenly, under `accelerate launch` (`--multi_gpu` means several processes).

    SIGTERM reaches only the second process, and both stop after that step; one process resumes their checkpoint.
    """
    settings = {"steps": 20, "dropout": 0.0, "signal_at": 15, "signal_rank": 1}
    code, _, said = run_forked(command(tmp_path / "two", settings, launcher=LAUNCH), ROOT, environment())
    assert code != 0
    assert said.count("stopped by SIGTERM after step 15, which is saved") == 2, said
    alone = small_run.run(tmp_path / "one", steps=15, dropout=0.0)
    together = Checkpoints(tmp_path / "two" / "checkpoints", "dropout 0.0").at(15).tensors()
    for name, p in alone.engine.trained.items():
        assert (p - together[f"model/{name}"]).norm() <= 1e-6 * p.norm(), name
    alone = small_run.run(tmp_path / "one", steps=20, dropout=0.0)
    resumed = small_run.run(tmp_path / "two", steps=20, dropout=0.0)
    for name, p in alone.engine.trained.items():
        assert (p - resumed.engine.trained[name]).norm() <= 2e-6 * p.norm(), name
    for mine, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_prefetch_keeps_the_order_and_raises_errors() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 5:
            raise InputError("shard 3 is gone")
        return step

    ahead = prefetch(make, range(10), ahead=2)
    assert next(ahead) == 0
    with pytest.raises(InputError, match="shard 3"):
        list(ahead)
    assert made[:6] == list(range(6))
