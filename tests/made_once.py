"""Objects that all workers of pytest-xdist share, because they take seconds to make."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from typing import TypeVar

import pytest

Made = TypeVar("Made")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], Made]) -> Made:
    """Under pytest-xdist, the first worker that needs it makes it, and the others read it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make()
    with (factory.getbasetemp().parent / name).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if content := file.read():
            found: Made = pickle.loads(content)
            return found
        made = make()
        pickle.dump(made, file)
        return made
