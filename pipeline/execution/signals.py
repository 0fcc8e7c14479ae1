"""SIGTERM and SIGINT as a question that the loop asks between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from t5_pipeline.execution.launcher import RUNNER

# Read now: an Accelerator adds names of its own to the environment when it is made.
_LAUNCHED = RUNNER in os.environ or any(name.startswith("ACCELERATE_") for name in os.environ)


class StopSignal:
    """While it is entered, SIGTERM and SIGINT are noted instead of obeyed: `signum` is the first one, 0 before.

    Repeats are ignored: a runner that forwards a signal and the terminal that sends it to the whole group would
    otherwise kill the save that the first one asked for. Outside the main thread, where Python takes no signals,
    entering does nothing.

    A process whose launcher or runner is gone counts as told to stop: nothing else could tell it any more.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[signal.Signals, Any] = {}
        self._parent = os.getppid() if _LAUNCHED else None

    @property
    def signum(self) -> int:
        if not self._noted and self._parent is not None and os.getppid() != self._parent:
            return signal.SIGTERM
        return self._noted

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = self._noted or signum
