"""The end of a process."""

from __future__ import annotations

import atexit
import gc
from functools import cache


@cache
def exit_quickly() -> None:
    """Let this process end without a last garbage collection, which takes a second or more if it has imported torch.

    For commands, whose files and processes are closed by then: objects in reference cycles are not finalized.
    """
    atexit.register(gc.freeze)
