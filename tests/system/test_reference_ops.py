"""Stages with reference operations take the same steps as with the fast ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_run import Tiny, metrics, refused, stage


def task(finished: Tiny, directory: Path) -> Path:
    path = directory / "about.yaml"
    path.write_text(
        f"name: about\ndata: {finished.data}/rows\ninputs: 'about: {{text}}'\ntargets: '{{label}}'\n"
        "labels: [files, numbers]\nmetrics: [accuracy]\n"
    )
    return path


@pytest.mark.parametrize("kind", ["lm_adapt", "prompt_tune", "prompt_mixture", "model_tune"])
def test_reference_ops_take_the_same_steps(finished: Tiny, tmp_path: Path, kind: str) -> None:
    """In fp32, with dropout, validation included."""
    about = task(finished, tmp_path)
    own: dict[str, list[object]] = {
        "lm_adapt": ["--tokens", finished.run / "prepare", "--segment-length", 48, "--validation-batches", 1],
        "prompt_tune": ["--task", about, "--prompt-length", 4, "--max-input-length", 32],
        "prompt_mixture": ["--task", about, "--prompt-length", 2, "--components", 2, "--max-input-length", 32],
        "model_tune": ["--tasks", about, "--max-input-length", 32],
    }
    common = ["--model", finished.run / "pretrain", "--steps", 4, "--batch-size", 4, "--precision", "fp32"]
    common += ["--threads", 1, "--log-every", 1, "--validate-every", 2, "--dropout", 0.1]
    for name, more in (("fast", []), ("plain", ["--reference-ops", "attention", "norm", "loss"])):
        said = stage(kind, *common, *own[kind], "--output-dir", tmp_path / name, *more)
        assert said.code == 0, said.err
    fast, plain = metrics(tmp_path / "fast"), metrics(tmp_path / "plain")
    assert len(fast) == len(plain) > 4
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-4)


@pytest.mark.parametrize(
    ("flag", "value"), [("reference-ops", ["attention"]), ("recompute", []), ("logits-precision", ["fp32"])]
)
def test_peft_tune_refuses_execution_settings(finished: Tiny, tmp_path: Path, flag: str, value: list[str]) -> None:
    said = stage(
        "peft_tune", "--model", finished.run / "pretrain", "--task", task(finished, tmp_path), "--method", "p_tuning",
        f"--{flag}", *value, "--output-dir", tmp_path / "out",
    )  # fmt: skip
    refused(said, rf"peft_tune\.py: unknown flag --{flag}; .*")
    assert not (tmp_path / "out").exists()
