"""SIGTERM and SIGINT as a flag that a loop checks between two steps."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from t5_pipeline.config.launch import LaunchContext

_ASK_EVERY = 1.0  # seconds; a lock on a network file system takes a message


class StopSignal:
    """A context that records SIGTERM and SIGINT instead of obeying them: `signum` is the first one, or 0.

    Repeated signals are ignored, because a runner forwards a signal that the terminal also sends to the whole process
    group, and the second one would kill the save that the first one asked for. Outside the main thread, where Python
    receives no signals, entering does nothing.

    If the launcher or runner has died, the process stops as if it had received SIGTERM. The runner is not the parent of
    a rank that a launcher started; while it lives, it keeps a file and holds its lock.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, launch: LaunchContext) -> None:
        self._first = 0
        self._before: dict[signal.Signals, Any] = {}
        self._parent = launch.parent
        self._runner = launch.runner
        self._lock: int | None = None
        self._asked_at = -math.inf

    @property
    def signum(self) -> int:
        if not self._first and self._is_orphaned():
            self._first = signal.SIGTERM
        return self._first

    def _is_orphaned(self) -> bool:
        if self._parent is not None and os.getppid() != self._parent:
            return True
        now = time.monotonic()
        if self._lock is None or now - self._asked_at < _ASK_EVERY:
            return False
        self._asked_at = now
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # the runner holds it, or the file system does not support locks
            return False
        return True

    def __enter__(self) -> StopSignal:
        # Kept open, because the file may be removed.
        if self._runner is not None:
            try:
                self._lock = os.open(self._runner, os.O_RDONLY)
            except FileNotFoundError:
                self._first = self._first or signal.SIGTERM
            except OSError:
                pass  # whether the runner lives is unknown
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._record) for signum in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self._first = self._first or signum
