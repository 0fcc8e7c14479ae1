"""SIGTERM and SIGINT as a question that the loop asks between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """While it is entered, SIGTERM and SIGINT are noted instead of obeyed: `signum` is the first one, 0 before.

    Repeats are ignored: a runner that forwards a signal and the terminal that sends it to the whole group would
    otherwise kill the save that the first one asked for. Outside the main thread, where Python takes no signals,
    entering does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
