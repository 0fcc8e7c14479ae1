"""Start a stage as processes of its own, pass signals on to every rank, and bring its exit code back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from t5_pipeline.config.launch import LaunchConfig, read_launch_config
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.packaged import SHIPPED, or_packaged

RUNNER = "T5_PIPELINE_RUNNER"
"""In the environment of a stage that the runner launched: the runner's process id."""
ENGINE, PROCESSES, DEVICE = "T5_PIPELINE_ENGINE", "T5_PIPELINE_PROCESSES", "T5_PIPELINE_DEVICE"
"""In the same environment: the engine, the number of processes and the device (cpu, gpu) that the launch configuration
asks for; of the device nothing where there is no such configuration."""


def stage_script(kind: str) -> Path:
    """The script of a stage kind, as it is installed."""
    return SHIPPED / "stages" / f"{kind}.py"


def command(kind: str, launch: str | None, arguments: list[str]) -> list[str]:
    """The command line of a stage: plain Python on one process, `accelerate launch` where a configuration is named.

    Raises:
        InputError: the configuration file is missing, no stage can train under it, or it needs other machines, too.
    """
    script = str(stage_script(kind))
    if launch is None:
        return [sys.executable, script, *arguments]
    path = or_packaged(Path(launch))
    if not path.is_file():
        raise InputError(f"{launch}: there is no such accelerate configuration; see accelerate_configs/")
    if (machines := read_launch_config(launch).machines) > 1:
        raise InputError(
            f"{launch}: num_machines: is {machines}, and a runner starts processes on its own machine only; start the"
            " stage on each of them with `accelerate launch`, as accelerate_configs/slurm.sbatch does"
        )
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), script, *arguments]


def launch(kind: str, configuration: str | None, arguments: list[str], exit_file: Path) -> tuple[int, str]:
    """Run a stage to its end.

    SIGTERM and SIGINT are passed on to its ranks. The launcher in between is spared: on SIGTERM it would kill ranks
    that are saving a checkpoint. A stage that was past stopping ends as it would have; the code then still says that
    the caller was told to stop.

    Args:
        exit_file: where the stage leaves its own code and message; a launcher in between may swallow them.

    Returns:
        The stage's exit code, and its last message where it left one.
    """
    exit_file.unlink(missing_ok=True)
    # The stage then stops by itself, its checkpoint saved, should this process be killed.
    asked = LaunchConfig() if configuration is None else read_launch_config(configuration)
    environment = {**os.environ, RUNNER: str(os.getpid()), ENGINE: asked.engine, PROCESSES: str(asked.processes)}
    environment.pop(DEVICE, None)
    if configuration is not None:
        environment[DEVICE] = "cpu" if asked.cpu else "gpu"
    with _noting_signals() as told:
        process = subprocess.Popen(command(kind, configuration, arguments), start_new_session=True, env=environment)
        script, passed_on = stage_script(kind).name, False
        while (code := _wait(process)) is None:
            # A launcher may need seconds to start its ranks: a signal waits for them.
            if told and not passed_on:
                for pid in ranks(process.pid, script):
                    passed_on = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, told[0])
    message = ""
    with contextlib.suppress(OSError, ValueError):
        left: dict[str, Any] = json.loads(exit_file.read_text(encoding="utf-8"))
        code, message = int(left["code"]), str(left["message"])
    if code == 0 and told:
        return 128 + told[0], "done, and told to stop; run the same command to go on"
    return (128 - code if code < 0 else code), message


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that come meanwhile, in their order."""
    told: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        told.append(signum)

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def ranks(pid: int, script: str) -> list[int]:
    """Processes at or below `pid` that run the stage's script themselves, and do not launch it."""
    import psutil

    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                if any(Path(word).name == script for word in line) and "accelerate.commands.launch" not in line:
                    found.append(process.pid)
    return found
