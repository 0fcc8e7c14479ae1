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
import socket
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import json_digest
from pipeline.digests import DigestCache
from pipeline.errors import InputError
from pipeline.manifest import Manifest, Started, read, read_started
from pipeline.recipe import Cell


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
        to = self.path / "superseded" / directory.relative_to(self.path) / fingerprint[:12]
        number = 1
        while to.exists():
            number += 1
            to = to.with_name(f"{fingerprint[:12]}-{number}")
        to.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(to)
        return to


class OutputDir(RunDir):
    """`--output-dir` of a stage that is run by hand without a recipe: the directory is its one cell."""

    def cell(self, cell: Cell) -> Path:
        return self.path


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


def read_job(directory: Path) -> dict[str, str]:
    """Cells of a job, id → fingerprint, as it was begun; empty where it was not."""
    path = directory / "job.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["cells"])
    except (OSError, ValueError, KeyError):
        return {}
