"""What several test files need."""

from __future__ import annotations

import os
from pathlib import Path

# Tests are small: more threads would only wait for one another. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.tiny_run import Tiny, make

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shared() -> Path:
    """Real corpora, tasks and checkpoints that may lie beside the project; a test that needs them skips without."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared/data is not there")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A whole tiny pipeline, run once by `t5-pipeline run` (tests/tiny_run.py). No test changes it."""
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(finished: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the finished pipeline, to be changed."""
    return finished.copy(tmp_path)
