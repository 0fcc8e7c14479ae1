"""The small run shared by the Trainer's tests."""

from __future__ import annotations

import importlib.util
import sys
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
