"""Command, commit and hardware in manifests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.execution.environment import commit, environment

ROOT = Path(__file__).parents[2]


def test_environment_is_text_without_empty_entries() -> None:
    found = environment(LaunchContext(engine="ddp", processes=2))
    assert {"command", "system", "processor", "memory"} <= set(found)
    assert all(isinstance(text, str) and text for text in found.values())
    assert found["processes"] == "2 (ddp)"
    assert found["processor"].endswith(("cores", "core"))


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a Git checkout")
def test_commit_is_that_of_the_checkout() -> None:
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert commit() in (head, f"{head}, modified")
