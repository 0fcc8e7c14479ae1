"""The small run and captured log messages, shared by the tests of training."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def small_run() -> ModuleType:
    """tests/training/small_run.py as a module: a real training run of a model with a few hundred weights."""
    path = Path(__file__).with_name("small_run.py")
    spec = importlib.util.spec_from_file_location("small_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log_messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Captured log messages; the logger of stages does not propagate by default."""
    logger = logging.getLogger("t5-pipeline")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.WARNING):
        yield caplog
    logger.propagate = before
