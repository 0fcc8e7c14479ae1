"""Tuning of glibc malloc, so that freed tensors are reused instead of returned to the OS.

Page faults on fresh memory are the largest non-arithmetic cost of a training step on a CPU under Linux.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
# Environment variables with the same effect, before and since glibc 2.26.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("trim_threshold", "top_pad", "mmap_max", "mmap_threshold")


def keep_freed_memory() -> bool:
    """Reuse freed memory for later tensors instead of returning it to the OS; returns whether this took effect.

    By default glibc maps and unmaps every large block, and the kernel clears each page again, which slows copies into
    fresh memory many times. Results do not depend on it. The process's memory stays at its peak.

    Does nothing if the environment sets the same parameters, by MALLOC_MMAP_THRESHOLD_ and similar variables or by
    GLIBC_TUNABLES.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _VARIABLES) or any(f"malloc.{name}=" in tunables for name in _TUNABLES):
        return False
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 * 2**20)])
