"""Where things lie in a run directory, and who may write there.

RUN/recipe.yaml                     the recipe with its overrides
RUN/report.html
RUN/STAGE/                          a stage without a matrix is one cell
    manifest.json  started.json     finished, begun
    metrics.jsonl  log.txt
    checkpoints/                    to go on from
    model/ tokens/ scores/          what it publishes
    steps/000500/model/             what it published on its way
RUN/STAGE/CELL/                     a cell of a stage with a matrix: manifest.json, prompt/, …
RUN/STAGE/jobs/ID/                  prompts that train together: job.json, metrics.jsonl, log.txt, checkpoints/
RUN/superseded/                     results of settings that the recipe no longer has
RUN/.state/                         locks, exit codes of stages, digests of outside data
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.manifest import Manifest, Started, read, read_started
from t5_pipeline.config.recipe import Cell
from t5_pipeline.core.checksums import json_digest
from t5_pipeline.core.errors import InputError


def step_name(step: int) -> str:
    """`000500`: sorts as numbers do up to a million steps and beyond."""
    return f"{step:06d}"


class RunDir:
    """The directory of one pipeline run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / ".state"
        self.digests = DigestCache(self.state / "digests.json")

    def cell(self, cell: Cell) -> Path:
        return self.path / cell.stage / cell.id if cell.axes else self.path / cell.stage

    def manifest(self, cell: Cell) -> Manifest | None:
        return read(self.cell(cell))

    def started(self, cell: Cell) -> Started | None:
        return read_started(self.cell(cell))

    def job(self, cells: dict[str, str], first: Cell) -> Path:
        """Where cells (id → fingerprint) that train together keep their checkpoints and metrics."""
        if not first.axes:
            return self.cell(first)
        return self.path / first.stage / "jobs" / json_digest(cells)[:10]

    def archive(self, directory: Path, fingerprint: str) -> Path:
        """Move results of other settings out of the way. Nothing is deleted; the user decides when."""
        to = _free(self.path / "superseded" / directory.relative_to(self.path) / fingerprint[:12])
        to.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(to)
        return to

    def restore(self, directory: Path, archived: Path) -> None:
        """Undo `archive`, unless results have come of what took the place."""
        remove_vain({directory: False})
        if not directory.exists():
            archived.rename(directory)


class OutputDir(RunDir):
    """`--output-dir` of a stage that is run by hand without a recipe: the directory is its one cell."""

    def cell(self, cell: Cell) -> Path:
        return self.path

    def archive(self, directory: Path, fingerprint: str) -> Path:
        place = directory.resolve()
        to = _free(place.with_name(f"{place.name}.superseded-{fingerprint[:12]}"))
        to.mkdir()
        self._move(directory, to)
        return to

    def restore(self, directory: Path, archived: Path) -> None:
        if any(_is_result(path, directory) for path in directory.rglob("*")):
            return
        for path in directory.iterdir():
            if path != self.state:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._move(archived, directory)
        archived.rmdir()

    def _move(self, source: Path, to: Path) -> None:
        for path in list(source.iterdir()):
            if path.name != self.state.name:  # the lock in it is held
                path.rename(to / path.name)


def _free(path: Path) -> Path:
    """The path, or where there is something, the same with a number."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


@contextlib.contextmanager
def lock(path: Path, directory: Path) -> Iterator[None]:
    """Hold the lock file `path` that guards `directory`; it is let go when the process ends, however it ends.

    Raises:
        InputError: another process holds it, or the directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another directory") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            raise InputError(f"{directory}: is in use by {holder}; wait for it, or choose another directory") from None
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


# What is written before a first result.
_BOOKKEEPING = ("recipe.yaml", "started.json", "job.json", "log.txt")


def absent(*directories: Path) -> dict[Path, bool]:
    """Those directories that are not there or hold nothing, and whether they are there."""
    return {path: path.is_dir() for path in directories if not path.is_dir() or not any(path.iterdir())}


def remove_vain(directories: dict[Path, bool]) -> None:
    """Put directories that were `absent` back as they were, unless a result lies there: bad input leaves no trace."""
    for directory, was_there in directories.items():
        if directory.is_dir() and not any(_is_result(path, directory) for path in directory.rglob("*")):
            shutil.rmtree(directory)
            if was_there:
                directory.mkdir()


def _is_result(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    if path.is_dir() or ".state" in parts or any(part.endswith(".tmp") for part in parts):
        return False
    return path.name not in _BOOKKEEPING and path.stat().st_size > 0


def read_job(directory: Path) -> dict[str, str]:
    """Cells of a job, id → fingerprint, as it was begun; empty where it was not."""
    path = directory / "job.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["cells"])
    except (OSError, ValueError, KeyError):
        return {}
