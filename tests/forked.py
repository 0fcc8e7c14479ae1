"""Python commands as forks of a process that has imported torch, the engines and every stage.

Imports are most of the time of a tiny stage: seconds in each process of a launch. A command that runs here differs from
a real one only in how its processes start: they are forked, not executed. Its arguments, environment, working directory,
output, exit code, number of processes and command line in /proc are the same. So commands whose results count run here.
They do not see GPUs, whose libraries cannot be forked.
Real processes are started in tests/system (by_hand, slurm, wheel, the servers of documented) and stopped in
test_runner.py and test_slurm.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# Parameters of glibc's mallopt, by the variables that set them when a program starts.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}


class Forked:
    """A running `[PYTHON] [-u] SCRIPT ARGUMENTS…` or `PYTHON -m MODULE ARGUMENTS…`, with a few methods of Popen."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._files = [f"{self._place.name}/out", f"{self._place.name}/err"]
        self._process = _started(_run, command, directory, environment, *self._files)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def errors(self) -> str:
        """Its stderr until now."""
        file = Path(self._files[1])
        return file.read_text() if file.exists() else ""

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait; returns stdout and stderr."""
        self._process.join(timeout)
        assert self.poll() is not None, "timeout"
        with self._place:
            out, err = (Path(file).read_text() for file in self._files)
        return out, err


def run_forked(command: list[str], directory: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a command to its end; returns exit code, stdout and stderr."""
    process = Forked(command, directory, environment)
    said = process.communicate()
    code = process.poll()
    assert code is not None
    return code, *said


def call(function: Callable[..., Any], *arguments: object) -> tuple[Any, str, str]:
    """Call a function of a module in a fork, where Python commands that it starts are forks, too.

    Returns:
        Its result, stdout and stderr; those of its commands are among them.
    """
    receiving, sending = multiprocessing.get_context("forkserver").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as place:
        files = [f"{place}/out", f"{place}/err"]
        process = _started(_call, function, arguments, dict(os.environ), sending, *files)
        sending.close()
        with contextlib.suppress(EOFError):
            result, failure = receiving.recv()
            assert not failure, failure
        process.join()
        out, err = (Path(file).read_text() for file in files)
        assert process.exitcode == 0, err
        return result, out, err


def _started(target: Callable[..., None], *arguments: object) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked_imports"])
    process = context.Process(target=target, args=arguments)
    # The first one starts the server, which imports from this directory.
    with contextlib.chdir(Path(__file__).parents[1]), mock.patch.dict(os.environ, NO_GPU):
        process.start()
    return process


def _run(command: list[str], directory: Path, environment: dict[str, str], out: str, err: str) -> None:
    _prepare(out, err)
    os.chdir(directory)
    _become(command, environment)


def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], to: Any, out: str, err: str
) -> None:
    _prepare(out, err)
    os.environ.clear()
    os.environ.update(environment | NO_GPU)
    try:
        to.send((function(*arguments), ""))
    except BaseException:
        to.send((None, traceback.format_exc()))


def _prepare(out: str, err: str) -> None:
    """Write to files, and fork for Python commands."""
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    subprocess.Popen._execute_child = _fork_child  # type: ignore[attr-defined]


def _fork_child(self: Any, args: Any, *rest: Any) -> None:
    """In place of Popen's method: fork for Python scripts and modules."""
    words = [args] if isinstance(args, str | bytes | Path) else list(map(os.fspath, args))
    if words[0] != sys.executable or words[1] == "-c":
        _execute_child(self, args, *rest)
        return
    (_, _, _, _, cwd, env, _, _, _, p2cread, _, _, c2pwrite, _, errwrite, _, _, _, _, _, start_new_session, _) = rest
    self.pid = os.fork()
    if self.pid == 0:
        for descriptor, file in enumerate((p2cread, c2pwrite, errwrite)):
            if file != -1:
                os.dup2(file, descriptor)
        os.closerange(3, 4096)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if start_new_session:
            os.setsid()
        os.chdir(cwd or ".")
        _become(words, dict(os.environ if env is None else env))
    self._child_created = True
    self._close_pipe_fds(*rest[9:15])


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Run a command in this process, and exit."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment | NO_GPU)
        for name in _MALLOC.keys() & environment.keys():
            ctypes.CDLL(None).mallopt(_MALLOC[name], int(environment[name]))
        # They are others than when Python started: a pipe, for example, in which it could then not seek.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        words = [word for word in command if word not in (sys.executable, "-u")]
        _show([sys.executable, *words])
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _show(words: list[str]) -> None:
    """Overwrite the server's command line, which /proc shows for its forks, too."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = "\0".join(words).encode()[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, line, len(line))
