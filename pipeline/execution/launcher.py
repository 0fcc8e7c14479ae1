"""Stage processes: start them, forward signals to every rank, and return the exit code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from t5_pipeline.artifacts.run_dir import is_locked
from t5_pipeline.config.launch import read_launch_config, runner_environment
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.packaged import SHIPPED, or_packaged
from t5_pipeline.core.printable import say

_ORPHANS_EXIT_S = 60.0

_LAUNCHER = "t5_pipeline.execution.accelerate_launch"


def stage_script(kind: str) -> Path:
    """The script of a stage kind, as it is installed."""
    return SHIPPED / "stages" / f"{kind}.py"


def command(kind: str, launch: str | None, arguments: list[str], where: str = "launch") -> list[str]:
    """The command line of a stage: plain Python, or `accelerate launch` with a configuration.

    Args:
        where: setting that names the configuration, for errors.

    Raises:
        InputError: if the configuration is missing or unsupported, or asks for several machines.
    """
    script = str(stage_script(kind))
    if launch is None:
        return [sys.executable, script, *arguments]
    if (machines := read_launch_config(launch, where).machines) > 1:
        raise InputError(
            f"{launch}: num_machines: is {machines}, but a run starts processes on this machine only; start the stage"
            " on every machine with `accelerate launch`, as accelerate_configs/slurm.sbatch does"
        )
    return [sys.executable, "-m", _LAUNCHER, "--config_file", str(or_packaged(Path(launch))), script, *arguments]


def launch(kind: str, configuration: str | None, arguments: list[str], exit_file: Path) -> tuple[int, str]:
    """Run a stage to its end.

    SIGTERM and SIGINT are forwarded to its ranks. The launcher is not signaled, because on SIGTERM it would kill ranks
    that are still saving. If the stage had already finished, the exit code still reports the signal.

    Args:
        exit_file: where the stage writes its exit code and message, because accelerate's launcher hides them.

    Returns:
        The stage's exit code, and its last message (empty if it wrote none).
    """
    asked = None if configuration is None else read_launch_config(configuration)
    with _alive(exit_file) as lock, _recorded_signals() as received:
        exit_file.unlink(missing_ok=True)  # only now: the processes of a killed runner also write it
        environment = {**os.environ, **runner_environment(lock, asked)}
        process = subprocess.Popen(command(kind, configuration, arguments), start_new_session=True, env=environment)
        script, forwarded = stage_script(kind).name, False
        while (code := _wait(process)) is None:
            # The launcher may need seconds to start its ranks; wait for them before forwarding.
            if received and not forwarded:
                for pid in ranks(process.pid, script):
                    forwarded = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, received[0])
    message = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        left: dict[str, Any] = read_json(exit_file)
        code, message = int(left["code"]), str(left["message"])
    if code == 0 and received:
        name = signal.Signals(received[0]).name
        return 128 + received[0], f"finished, then stopped by {name}; run the same command to resume"
    return (128 - code if code < 0 else code), message


@contextlib.contextmanager
def _alive(exit_file: Path) -> Iterator[Path]:
    """Hold the lock of a new file, by which the ranks know that this process lives; yields the file.

    If the file of an earlier runner is left and the stage is still locked, waits for its ranks to save and exit.
    """
    prefix = f"{exit_file.stem}.runner."
    left = [path for path in exit_file.parent.iterdir() if path.name.startswith(prefix)]
    stage_lock, deadline = exit_file.with_suffix(".lock"), time.monotonic() + _ORPHANS_EXIT_S
    if left and is_locked(stage_lock):
        say(f"waiting for the processes of {exit_file.stem} whose runner was killed; they save and exit")
        while is_locked(stage_lock) and time.monotonic() < deadline:
            time.sleep(0.1)
    for path in left:
        path.unlink(missing_ok=True)
    file = exit_file.with_name(f"{prefix}{os.getpid()}")
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # the file system does not support locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """Record SIGTERM and SIGINT instead of obeying them; yields the list of those received.

    Outside the main thread, where Python receives no signals, it records nothing.
    """
    received: list[int] = []

    def record(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    recorded = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, record) for s in recorded}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def ranks(pid: int, script: str) -> list[int]:
    """Process ids of the ranks: `pid` and its descendants that run the stage's script, without the launcher."""
    import psutil

    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                if any(Path(word).name == script for word in line) and _LAUNCHER not in line:
                    found.append(process.pid)
    return found
