"""How the C library hands memory back: on Linux the largest cost of a training step on a CPU that is no arithmetic."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have freed tensors reused by later ones, instead of given back to the system page by page; True where it took.

    glibc maps every large block anew and unmaps it when it is freed, and the system then clears each page again: copies
    into fresh memory ran at 2 GB/s that way and at 32 GB/s this way. No result depends on it. The process keeps what
    it once had, so its memory stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 * 2**20)])
