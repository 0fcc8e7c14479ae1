"""Layout of a run directory, its locks, and rollback of failed runs.

RUN/recipe.yaml                     the recipe with its overrides
RUN/report.html
RUN/STAGE/                          a stage without a matrix is one cell
    started.json  manifest.json     written when the cell starts and when it finishes
    working.json                    checksums of results before the manifest
    metrics.jsonl  log.txt
    checkpoints/                    for resuming
    model/ tokens/ scores/          its outputs
    steps/000500/model/             outputs of intermediate steps
RUN/STAGE/CELL/                     a cell of a stage with a matrix: manifest.json, prompt/, …
RUN/STAGE/jobs/ID/                  prompts trained together: job.json, metrics.jsonl, log.txt, checkpoints/
RUN/superseded/                     results with settings that are no longer in the recipe
RUN/.state/                         locks, exit codes of stages, digests of external data, lines of the recipe's keys
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from t5_pipeline.artifacts import working
from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.manifest import Manifest, Started, read, read_started
from t5_pipeline.config.recipe import Cell
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.checksums import json_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import inside, refuse_links_out
from t5_pipeline.core.printable import say

_STATE = ".state"
# Files and directories of stages beside their outputs.
_WORKING = (
    "steps", "checkpoints", "trackers", "vocabulary", "tokens.partial", "metrics.jsonl", "nonfinite.jsonl", "log.txt",
)  # fmt: skip
_BOOKKEEPING = ("recipe.yaml", "started.json", "working.json", "job.json", "log.txt")  # written before the first result

_PATIENCE = 0.5
"""Seconds to wait for a lock."""


def step_name(step: int) -> str:
    """Directory name of a step, in numerical order when sorted: `000500`."""
    return f"{step:06d}"


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint of a step: `step-00000500`."""
    return f"step-{step:08d}"


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps that have a checkpoint in a directory of checkpoints, ascending, intact or not."""
    if not directory.is_dir():
        return []
    names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in directory.iterdir())
    return sorted(int(name[1]) for name in names if name)


class RunDir:
    """The directory of one pipeline run.

    Raises:
        InputError: if a place in it is a link that leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}: the name of a run directory must be UTF-8; choose another directory") from None
        if path.parts[:1] == ("~",):  # the shell does not expand it in --run-dir=~/runs
            raise InputError(f"{path}: ~ is not expanded here; write the whole path")
        self.state = inside(path, _STATE, path)
        self.digests = DigestCache(self.state / "digests.json")

    def cell(self, cell: Cell) -> Path:
        return inside(self.path, f"{cell.stage}/{cell.id}" if cell.axes else cell.stage, self.path)

    def job_directories(self, stage: str) -> dict[tuple[str, str], Path]:
        """The newest directory of a stage's jobs, with their logs, for each cell and fingerprint.

        Jobs with other settings, whose results were archived, keep their logs.
        """
        return {pair: directory for directory in self.jobs(stage) for pair in read_job(directory).items()}

    def jobs(self, stage: str) -> list[Path]:
        """The directories of a stage's jobs, the one that was started last at the end."""
        records = (self.path / stage).glob("jobs/*/job.json")
        return [path.parent for path in sorted(records, key=lambda path: (path.stat().st_mtime_ns, path))]

    def log_directory(self, cell: Cell, jobs: Mapping[tuple[str, str], Path]) -> Path | None:
        """The directory with the logs of a cell's present results; None if it was never started.

        Args:
            jobs: the `job_directories` of its stage.
        """
        if not cell.axes:
            return self.cell(cell)
        started = self.manifest(cell) or self.started(cell)
        return jobs.get((cell.id, started.fingerprint)) if started else None

    def written_by(self, stage: str, outputs: Sequence[str]) -> list[str]:
        """The entries of this directory in which a stage writes and deletes."""
        return [stage, "superseded", _STATE]

    def refuse_foreign(self, cell: Cell) -> None:
        """Check that a cell replaces only what it made.

        Raises:
            InputError: if something else is where the cell would write.
        """
        place, manifest = self.cell(cell), self.manifest(cell)
        names = list(cell.settings.outputs)
        if self.started(cell) is None and manifest is None:
            names += _WORKING
        made = {*working.results(place), *(manifest.outputs if manifest else ())}
        for name in names:
            if name not in made and os.path.lexists(place / name):
                raise InputError(
                    f"{place / name}: already exists and has no manifest of this program;"
                    " choose another directory, or move it away"
                )

    def set_aside(self, place: Path) -> Path:
        """Rename a directory that a result is about to replace, and return its new path."""
        to = _unused(place.with_name(f"{place.name}.superseded"))
        place.rename(to)
        return to

    def refuse_links_out(self, stage: str, outputs: Sequence[str]) -> None:
        """Check that a stage changes nothing outside this directory, and can rename what it writes.

        Raises:
            InputError: if a symbolic link leads out of it, or a part of it is on another file system.
        """
        refuse_links_out(self.path, self.written_by(stage, outputs))

    def manifest(self, cell: Cell) -> Manifest | None:
        return read(self.cell(cell))

    def started(self, cell: Cell) -> Started | None:
        return read_started(self.cell(cell))

    def job(self, cells: dict[str, str], first: Cell) -> Path:
        """Directory for the checkpoints and metrics of cells (id → fingerprint) that train together, in this order."""
        if not first.axes:
            return self.cell(first)
        return inside(self.path, f"{first.stage}/jobs/{json_digest([*cells.items()])[:10]}", self.path)

    def archive(self, directory: Path, fingerprint: str) -> Path:
        """Move results of other settings to superseded/ and return their new place. Nothing is ever deleted."""
        name = f"superseded/{directory.relative_to(self.path)}/{fingerprint[:12]}"
        to = _unused(inside(self.path, name, self.path))
        to.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(to)
        return to


class OutputDir(RunDir):
    """`--output-dir` of a stage that runs without a recipe: the directory is its only cell."""

    def cell(self, cell: Cell) -> Path:
        return self.path

    def written_by(self, stage: str, outputs: Sequence[str]) -> list[str]:
        return [_STATE, *outputs, *_WORKING]

    def archive(self, directory: Path, fingerprint: str) -> Path:
        place = directory.resolve()
        to = _unused(place.with_name(f"{place.name}.superseded-{fingerprint[:12]}"))
        to.mkdir()
        _move_contents(directory, to)
        return to


class Rollback:
    """A context that undoes what a run created if it ends in an InputError: bad input leaves no trace.

    Archived results are moved back. Directories that did not exist or were empty before are removed or emptied, unless
    they contain results by then.

    Args:
        directories: those that the run may create.
    """

    def __init__(self, *directories: Path) -> None:
        self._existed = {path: path.is_dir() for path in directories if not path.is_dir() or not any(path.iterdir())}
        self._archived: list[tuple[Path, Path]] = []

    def archive(self, run_dir: RunDir, directory: Path, fingerprint: str) -> Path:
        """`run_dir.archive`, to be undone with the rest."""
        to = run_dir.archive(directory, fingerprint)
        self._archived.append((directory, to))
        return to

    def undo(self) -> None:
        for directory, archived in self._archived:
            if not _has_results(directory):
                directory.mkdir(parents=True, exist_ok=True)
                _empty(directory, keep=_STATE)
                _move_contents(archived, directory)
                archived.rmdir()
        for directory, existed in self._existed.items():
            if directory.is_dir() and not _has_results(directory):
                _empty(directory)  # itself it may be a link, a mount point, or the current directory
                if not existed:
                    directory.rmdir()

    def __enter__(self) -> Rollback:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            self.undo()


def _empty(directory: Path, keep: str = "") -> None:
    """Remove everything in a directory, except the entry named `keep`."""
    for path in list(directory.iterdir()):
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _move_contents(source: Path, to: Path) -> None:
    for path in list(source.iterdir()):
        if path.name != _STATE:  # the lock in it is held
            path.rename(to / path.name)


def _has_results(directory: Path) -> bool:
    """Whether anything beyond bookkeeping has been written."""
    for path in directory.rglob("*"):
        parts = path.relative_to(directory).parts
        unfinished = _STATE in parts or any(part.endswith(".tmp") for part in parts)
        if path.is_file() and not unfinished and path.name not in _BOOKKEEPING and path.stat().st_size > 0:
            return True
    return False


def _unused(path: Path) -> Path:
    """The path, with a number appended if it exists already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


@contextlib.contextmanager
def lock(path: Path, directory: Path) -> Iterator[Callable[[], None]]:
    """Lock `directory` and the file `path`. The kernel releases both when the process ends.

    The lock of the directory survives the deletion of the file; the lock of the file works across hosts on network
    file systems that support it.

    Yields:
        A function that locks the directory again if it was moved away and created once more.

    Raises:
        InputError: if another process holds one of the locks, or the directory cannot be written.
    """
    with contextlib.ExitStack() as held:

        def hold(place: Path, flags: int) -> tuple[int, OSError | None]:
            descriptor = os.open(place, flags, 0o644)
            held.callback(os.close, descriptor)
            try:
                _flock(descriptor)
            except BlockingIOError:
                holder = _beginning(path) if path.is_file() else ""
                raise InputError(
                    f"{directory}: is in use by {holder or 'another process'}; wait for it, or choose another directory"
                ) from None
            except OSError as error:
                return descriptor, error
            return descriptor, None

        def hold_directory() -> None:
            directory.mkdir(parents=True, exist_ok=True)
            if not locked or not os.path.samestat(os.fstat(locked[-1]), directory.stat()):
                locked.append(hold(directory, os.O_RDONLY | os.O_DIRECTORY)[0])

        locked: list[int] = []
        try:
            hold_directory()
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, unsupported = hold(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            raise InputError(f"cannot write {directory} ({error.strerror}); choose another directory") from None
        if unsupported is not None:
            say(
                f"warning: {directory}: the file system does not support locks ({unsupported.strerror});"
                " do not start a second run in this directory"
            )
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode(), 0)
        yield hold_directory


def _flock(descriptor: int) -> None:
    """Take a lock, for which `is_locked` of another process may have asked at this moment: it releases it at once."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1000).decode(errors="replace").strip()


def is_locked(*places: Path) -> bool:
    """Whether a living process holds the lock of one of these files and directories."""
    for place in places:
        with contextlib.suppress(OSError):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
    return False


def read_job(directory: Path) -> dict[str, str]:
    """Cells of a job, id → fingerprint; empty if it was never started."""
    path = directory / "job.json"
    try:
        return {str(cell): str(fingerprint) for cell, fingerprint in read_json(path)["cells"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
