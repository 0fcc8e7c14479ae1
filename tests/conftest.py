"""Shared fixtures and settings of Hypothesis and torch."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

# Tests are small, so more threads would only slow them down. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nor need each of those processes compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from hypothesis import settings

from tests.made_once import made_once
from tests.tiny_run import Tiny, listing, make

torch.set_num_threads(1)
# Modules and tests stay to the end: the collector does not visit them while they are loaded, nor later.
gc.disable()

# The same examples everywhere, and no deadline, because machines may be slow or busy.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

ROOT = Path(__file__).parent.parent

# Each worker starts with one of these; the second then builds the finished pipeline.
LONGEST = ("cost/test_memory.py", "data_prep/shards/test_local_workers.py", "system/test_wheel.py")
LONG = ("system", "stages", "execution", "serving")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but the tests of GPUs: the others compare bits, or count what a CPU does."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that the workers end at the same time."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT / "tests")
        if (name := path.as_posix()) in LONGEST:
            return LONGEST.index(name)
        return len(LONGEST) + (path.parts[0] not in LONG)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers on one thread, independent of earlier tests: a command sets its own number."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Path:
    """Real corpora, tasks and checkpoints outside the project; tests that need them are skipped without."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared/data does not exist")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A whole tiny pipeline, run once by `t5-pipeline run` (tests/tiny_run.py). No test changes it.

    Under pytest-xdist, the first worker that needs it runs it, and the others copy it.
    """
    place = tmp_path_factory.mktemp("tiny")
    made = made_once(tmp_path_factory, "tiny", lambda: make(place))
    return made if made.run.is_relative_to(place) else made.copy(place)


@pytest.fixture
def tiny(finished: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the finished pipeline, to be changed."""
    return finished.copy(tmp_path)


@pytest.fixture
def unchanged(tmp_path: Path) -> Callable[[], None]:
    """Called after a refusal: everything below tmp_path is as it was when this was first called."""
    before: dict[str, tuple[int, int]] = {}

    def check() -> None:
        if not before:
            before.update(listing(tmp_path))
            return
        after = listing(tmp_path)
        assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()

    return check
