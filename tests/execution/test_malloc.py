"""Reuse of freed memory: with glibc, a second large block causes no page faults."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from t5_pipeline.execution.malloc import keep_freed_memory
if not keep_freed_memory():
    sys.exit(77)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_freed_memory_is_reused() -> None:
    done = _counted({})
    if done.returncode == 77:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**26 // resource.getpagesize() // 10


@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_in_the_environment_take_precedence(setting: dict[str, str]) -> None:
    assert _counted(setting).returncode == 77
    assert _counted({"MALLOC_ARENA_MAX": "2"}).returncode == _counted({}).returncode


def _counted(setting: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run FAULTS without other malloc settings in the environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False, env=env | setting
    )
