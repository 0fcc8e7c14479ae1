"""Faults of disks, bits, clocks and numbers during a run: the weights are the same, or there is a one-line error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.core.errors import InputError
from tests.tiny_run import Outcome, Tiny, listing, metrics, refused, stage, t5_pipeline


def flip(path: Path, index: int | None = None) -> None:
    """Flip one bit and keep size and modification time, like a failing disk."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2 if index is None else index)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="module")
def continued(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """lm_adapt continued from 8 to 12 steps without a fault. No test changes it."""
    tiny = finished.copy(tmp_path_factory.mktemp("continued"))
    assert more_steps(tiny).code == 0
    return tiny


def more_steps(tiny: Tiny, *more: object) -> Outcome:
    return stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", 12, *more)


def same_model(tiny: Tiny, other: Tiny) -> None:
    one, two = (t.manifests()["lm_adapt"].all_outputs() for t in (tiny, other))
    assert [record.digest for record in one] == [record.digest for record in two]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


# ------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize(("room", "place"), [(20_000, r"checkpoints/step-000000\d\d"), (700_000, "model")])
def test_a_full_disk(finished: Tiny, continued: Tiny, small_disk: Path, room: int, place: str) -> None:
    """While a checkpoint is saved, and while a model is published."""
    tiny = finished.copy(small_disk)
    checkpoints = tiny.run / "lm_adapt" / "checkpoints"
    before = listing(checkpoints)
    (small_disk / "other files").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - room))
    said = more_steps(tiny, "--log-every", 10**6, "--validate-every", 10**6)
    assert said.code == 2, said
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    full = rf"cannot write \S*{place} \(.*No space left on device.*\); free some space and run again"
    assert re.search(full, line), line
    assert "Traceback" not in said.err
    assert room > 20_000 or listing(checkpoints) == before
    (small_disk / "other files").unlink()
    assert more_steps(tiny).code == 0
    same_model(tiny, continued)


def test_a_read_only_disk(finished: Tiny, small_disk: Path) -> None:
    tiny = finished.copy(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused(more_steps(tiny), rf"cannot write {tiny.run}/lm_adapt \(Read-only file system\); choose another .*")
    refused(
        t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", "evaluate.limit=4"),
        rf"cannot write {tiny.run} \(Read-only file system\); choose another directory",
    )
    for command in (("status", tiny.run), ("verify", tiny.run), ("plan", tiny.recipe, "--run-dir", tiny.run)):
        assert t5_pipeline(*command).code == 0
    refused(t5_pipeline("report", tiny.run), rf"--output: cannot write {tiny.run}/report.html; give a file in .*")


@pytest.mark.parametrize("without", ["blocks", "inodes"])
def test_commands_on_a_full_disk(finished: Tiny, small_disk: Path, without: str) -> None:
    tiny = finished.copy(small_disk)
    (tiny.run / ".state" / "digests.json").unlink()
    prompt = next((tiny.run / "prompt_tune").glob("model=lm_adapt,*/prompt"))
    if without == "blocks":
        (small_disk / "other files").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    else:
        used = os.statvfs(small_disk)
        subprocess.run(["mount", "-o", f"remount,nr_inodes={used.f_files - used.f_ffree}", small_disk], check=True)
    assert t5_pipeline("status", tiny.run).code == 0
    assert t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run).code == 0
    said = r"cannot write \S+ \(.*No space left on device.*\); free some space and run again"
    refused(t5_pipeline("report", tiny.run), said)
    for form, name in (("npy", "a.npy"), ("peft", "adapter")):
        refused(t5_pipeline("prompts", "export", prompt, "--to", form, "--output", small_disk / name), said)
    before = listing(tiny.run)
    run = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", "evaluate.limit=4")
    assert (run.code, "Traceback" in run.err) == (2, False), run
    assert {name for name, of in listing(tiny.run).items() if before.get(name) != of} <= {str(tiny.run)}


def test_a_part_of_a_run_on_another_file_system(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(InputError, match=r"disk: is on another file system than .*; mount the whole run directory"):
        RunDir(tmp_path).refuse_links_out("disk", [])
    with pytest.raises(InputError, match=r"disk: is on another file system than"):
        RunDir(tmp_path.parent).refuse_links_out(tmp_path.name, [])


# -------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", "state.json"])
@pytest.mark.parametrize("fault", ["flipped", "cut"])
def test_a_damaged_checkpoint(tiny: Tiny, continued: Tiny, name: str, fault: str) -> None:
    """The previous one is used, this is logged, and the result is the same."""
    path = tiny.run / "lm_adapt" / "checkpoints" / "step-00000008" / name
    flip(path) if fault == "flipped" else os.truncate(path, path.stat().st_size - 9)
    said = more_steps(tiny)
    assert said.code == 0, said.err
    assert f"{path}: " in said.err
    assert "using the checkpoint before it" in said.err
    assert "using the checkpoint before it" in (tiny.run / "lm_adapt" / "log.txt").read_text()
    same_model(tiny, continued)
    assert metrics(tiny.run / "lm_adapt") == metrics(continued.run / "lm_adapt")


def test_a_published_model_with_a_flipped_bit(finished: Tiny, tiny: Tiny) -> None:
    """The damage is found on first use or by verify; the next run rebuilds a bit-identical model from checkpoints."""
    weights = tiny.run / "lm_adapt" / "model" / "model.safetensors"
    flip(weights)
    tune = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--set", "prompt_tune.learning_rate=0.2")
    said = stage("prompt_tune", *tune)
    assert said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert f"{tiny.run}/lm_adapt/model/model.safetensors: is damaged (block 0 of 1)" in line
    assert "run lm_adapt again" in line
    assert tiny.start().code == 0
    assert tiny.digests() == finished.digests()

    flip(weights)
    said = t5_pipeline("verify", tiny.run)
    assert said.code == 2
    assert "model/model.safetensors is damaged (block 0 of 1)" in said.out
    assert "1 of " in said.err
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    assert t5_pipeline("verify", tiny.run).code == 0
    assert tiny.digests() == finished.digests()


def test_a_published_prompt_that_was_cut_short(finished: Tiny, tiny: Tiny) -> None:
    path = next((tiny.run / "prompt_tune").glob("*/prompt/prompt.safetensors"))
    os.truncate(path, path.stat().st_size - 5)
    assert [line.split()[0] for line in tiny.plan()].count("continue") == 1
    assert tiny.start().code == 0
    assert tiny.digests() == finished.digests()


# ------------------------------------------------------------------------------------------------------------- clocks


def test_a_clock_set_back(finished: Tiny, tiny: Tiny, continued: Tiny) -> None:
    """All files are from the future; finished cells stay up to date, and training resumes as usual."""
    for path in tiny.run.rglob("*"):
        later = path.stat().st_mtime_ns + 400 * 86_400 * 10**9
        os.utime(path, ns=(later, later))
    assert "nothing to do" in t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run).err
    assert tiny.digests() == finished.digests()
    status = json.loads(t5_pipeline("status", tiny.run, "--json").out)
    assert {row["state"] for row in status} == {"up to date"}
    assert more_steps(tiny).code == 0
    same_model(tiny, continued)


# ------------------------------------------------------------------------------------------------------------ numbers


def explode(tiny: Tiny, output: Path, *more: object) -> Outcome:
    return stage(
        "lm_adapt", "--model", tiny.run / "pretrain", "--tokens", tiny.run / "prepare", "--steps", 6, "--batch-size", 4,
        "--segment-length", 48, "--precision", "fp32", "--threads", 1, "--log-every", 100, "--schedule", "constant",
        "--learning-rate", 1e30, "--warmup-steps", 0, "--optimizer", "adamw", "--checkpoint-every", 1,
        "--validation-batches", 1, "--validate-every", 100, "--output-dir", output, *more,
    )  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--validate-every", 2, "--checkpoint-every", 5)], ids=["", "then a validation"])
def test_a_loss_that_is_not_finite(finished: Tiny, tmp_path: Path, more: tuple[object, ...]) -> None:
    """By default training stops at once, naming the step and its examples; the previous checkpoint is kept."""
    said = explode(finished, tmp_path / "out", *more)
    refused(said, r"step 2: the (loss|gradient) is not finite \(examples: \S*/out/nonfinite.jsonl; .*")
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "nonfinite.jsonl").read_text().splitlines()]
    assert (row["step"], len(row["examples"]), row["skipped"]) == (2, 4, False)
    checkpoints = tmp_path / "out" / "checkpoints"
    assert more or [path.name for path in checkpoints.iterdir()] == ["step-00000001"]


def test_steps_with_nonfinite_losses_can_be_skipped(finished: Tiny, tmp_path: Path) -> None:
    said = explode(finished, tmp_path / "out", "--on-nonfinite", "skip", "--log-every", 3)
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "nonfinite.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 5, 6]
    assert [row.get("skipped") for row in metrics(tmp_path / "out")][-1] == 5
