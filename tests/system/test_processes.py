"""Several processes launched by accelerate: they train as one, and a launch with fewer is rejected."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from t5_pipeline.execution.launcher import ranks
from tests.tiny_run import ROOT, Outcome, Tiny, accelerate_launch, listing, metrics, newest_checkpoint, stage

CPU_DDP = ROOT / "accelerate_configs" / "cpu_ddp.yaml"


def by_hand(finished: Tiny, output: Path) -> list[object]:
    """Flags of LM adaptation in fp32 without dropout; two processes cannot share its batch of 7 evenly."""
    return [
        "--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--steps", 10, "--batch-size", 7,
        "--segment-length", 48, "--precision", "fp32", "--threads", 1, "--log-every", 2, "--schedule", "constant",
        "--warmup-steps", 0, "--learning-rate", 0.02, "--validation-batches", 1, "--output-dir", output,
    ]  # fmt: skip


def test_two_processes_train_as_one(finished: Tiny, tmp_path: Path) -> None:
    launched = Outcome.forked(accelerate_launch(CPU_DDP, "lm_adapt", *by_hand(finished, tmp_path / "two")))
    assert launched.code == 0, launched.err
    assert launched.err.count("step 10/10") == 1, "one process logs for both"
    assert stage("lm_adapt", *by_hand(finished, tmp_path / "one")).code == 0
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = load_file(finished.run / "pretrain" / "model" / "model.safetensors")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        # Adafactor divides by the size of the gradient; if that is only rounding, steps differ by more.
        assert (weight - two[name]).norm() <= 2e-3 * weight.norm(), name
    assert any((weight - start[name]).norm() > 1e-2 * weight.norm() for name, weight in one.items())
    assert any(not weight.equal(two[name]) for name, weight in one.items()), "two processes add in another order"
    for mine, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    # The result does not depend on the number of processes: one process resumes the run of two.
    more = [*by_hand(finished, tmp_path / "two"), "--steps", 12]
    assert "step 12/12" in stage("lm_adapt", *more).err


@pytest.mark.parametrize("distributed_type", ["MULTI_CPU", "NO"])
def test_a_launch_that_silently_starts_one_process_is_rejected(
    finished: Tiny, tmp_path: Path, distributed_type: str
) -> None:
    configuration = yaml.safe_load(CPU_DDP.read_text()) | {"distributed_type": distributed_type}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(configuration))
    before = listing(tmp_path)
    launched = Outcome.forked(
        accelerate_launch(tmp_path / "one.yaml", "lm_adapt", *by_hand(finished, tmp_path / "out"))
    )
    assert launched.code != 0
    (said,) = [line for line in launched.err.splitlines() if line.startswith("error: ")]
    assert "accelerate started one process, but its configuration asks for several" in said
    assert "accelerate_configs/cpu_ddp.yaml" in said
    assert listing(tmp_path) == before


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_complete(path: Path) -> None:
    """accelerate reads each of them and leaves the precision to the stages."""
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(path))
    assert loaded.mixed_precision == "no"
    assert loaded.num_processes >= 1


@pytest.mark.parametrize("what", ["SIGTERM", "a rank killed", "the runner killed"])
def test_two_processes_under_the_runner_stop_and_resume(tiny: Tiny, what: str) -> None:
    """The runner passes SIGTERM to every rank, past accelerate. A rank that is killed ends the other. When the runner is
    killed, accelerate lives on, but the ranks save and exit."""
    steps = ("--set", f"lm_adapt.launch={CPU_DDP}", "--set", "lm_adapt.checkpoint_every=20", "--until", "lm_adapt")
    running = tiny.launch(*steps, "--set", "lm_adapt.steps=100000")
    while newest_checkpoint(tiny) < 40:
        assert running.poll() is None
        time.sleep(0.01)
    both = ranks(running.pid, "lm_adapt.py")
    assert len(both) == 2
    before = newest_checkpoint(tiny)
    processes = [psutil.Process(rank) for rank in both]
    os.kill(
        both[1] if what == "a rank killed" else running.pid, signal.SIGTERM if what == "SIGTERM" else signal.SIGKILL
    )
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    _, said = running.communicate(timeout=60)
    newest = newest_checkpoint(tiny)
    if what == "the runner killed":
        assert newest > before
        left = json.loads((tiny.run / ".state" / "lm_adapt.exit").read_text())
        assert left["message"].startswith(f"stopped by SIGTERM after step {newest:,}, which is saved")
    elif what == "SIGTERM":
        assert running.poll() == 128 + signal.SIGTERM, said
        assert f"■ lm_adapt: stopped by SIGTERM after step {newest:,}, which is saved; run the same command" in said
    else:
        assert running.poll() != 0, said
        assert running.poll() != 2 or "error: lost the connection to another process" in said
    again = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", newest + 2)
    assert again.code == 0, again.err
    assert tiny.manifests()["lm_adapt"].step == newest + 2
