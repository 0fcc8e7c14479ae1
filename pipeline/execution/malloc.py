"""How the C library hands memory back: on Linux the largest cost of a training step on a CPU that is no arithmetic."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
# How the environment sets these and their like, before glibc 2.26 and since.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("trim_threshold", "top_pad", "mmap_max", "mmap_threshold")


def keep_freed_memory() -> bool:
    """Have freed tensors reused by later ones, instead of given back to the system page by page; True where it took.

    glibc maps every large block anew and unmaps it when it is freed, and the system then clears each page again: copies
    into fresh memory ran at 2 GB/s that way and at 32 GB/s this way. No result depends on it. The process keeps what
    it once had, so its memory stays at its peak.

    It does nothing where the environment sets what it would: the variables of glibc that end in an underscore
    (MALLOC_MMAP_THRESHOLD_ and its like), or GLIBC_TUNABLES with glibc.malloc.mmap_threshold and its like.
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
