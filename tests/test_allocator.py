"""Freed memory is used again: on Linux with glibc no page of a second large block is new."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from pipeline.allocator import keep_freed_memory
if not keep_freed_memory():
    sys.exit(77)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_a_second_block_takes_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**26 // resource.getpagesize() // 10
