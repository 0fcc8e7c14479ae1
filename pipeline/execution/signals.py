"""SIGTERM and SIGINT as a flag that a loop checks between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from t5_pipeline.config.launch import LaunchContext


class StopSignal:
    """A context that records SIGTERM and SIGINT instead of obeying them: `signum` is the first one, or 0.

    Repeated signals are ignored, because a runner forwards a signal that the terminal also sends to the whole process
    group, and the second one would kill the save that the first one asked for. Outside the main thread, where Python
    receives no signals, entering does nothing.

    If the launcher or runner has died, the process stops as if it had received SIGTERM.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, launch: LaunchContext) -> None:
        self._first = 0
        self._before: dict[signal.Signals, Any] = {}
        self._parent = launch.parent

    @property
    def signum(self) -> int:
        if not self._first and self._parent is not None and os.getppid() != self._parent:
            return signal.SIGTERM
        return self._first

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._record) for signum in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self._first = self._first or signum
