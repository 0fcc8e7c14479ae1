"""The record of a finished cell. It is written last: where it stands and matches, the work is done."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import block_sha256
from t5_pipeline.core.errors import InputError

NAME = "manifest.json"
STARTED = "started.json"


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


AnyRecord = TypeVar("AnyRecord", bound=Record)


class InputRecord(Record):
    """One input as it was: the stage that made it (none where it came from outside), where it lay, its digest."""

    stage: str | None = None
    cell: str | None = None
    step: int | None = None
    path: str
    digest: str


class OutputRecord(Record):
    path: str
    digest: str


class FileRecord(Record):
    size: int
    mtime_ns: int
    blocks: list[str]


class Started(Record):
    """What a cell that has begun is: its checkpoints belong to this and nothing else."""

    format: int = 1
    stage: str
    kind: str
    cell: dict[str, Any] = {}
    fingerprint: str
    parts: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, list[InputRecord]] = {}
    versions: dict[str, str] = {}
    started: str


class Manifest(Started):
    """A finished cell: what it was made from, what it published, and what its files were."""

    step: int | None = None
    steps_published: dict[int, OutputRecord] = {}
    outputs: dict[str, OutputRecord]
    files: dict[str, FileRecord]
    facts: dict[str, Any] = {}
    finished: str
    seconds: float

    def all_outputs(self) -> list[OutputRecord]:
        return [*self.outputs.values(), *self.steps_published.values()]


def read(directory: Path) -> Manifest | None:
    """The manifest of a cell's directory; None where the cell has not been finished.

    Raises:
        InputError: the file is there and is not a manifest.
    """
    return _read(directory / NAME, Manifest)


def read_started(directory: Path) -> Started | None:
    """What the cell in this directory began as; None where nothing has begun."""
    return _read(directory / STARTED, Started)


def _read(path: Path, cls: type[AnyRecord]) -> AnyRecord | None:
    try:
        return cls.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise InputError(f"{path}: {key}: {problem['msg']}; move the directory away and run again") from None


def write(directory: Path, record: Started) -> None:
    """Write `manifest.json` or `started.json`, whichever the record is."""
    name = NAME if isinstance(record, Manifest) else STARTED
    write_text(directory / name, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def record_files(directory: Path, outputs: list[str]) -> dict[str, FileRecord]:
    """Size, modification time and block checksums of every file below the outputs of a cell."""
    found = {}
    for output in outputs:
        for path in sorted((directory / output).rglob("*")):
            if path.is_file():
                stat = path.stat()
                name = path.relative_to(directory).as_posix()
                found[name] = FileRecord(size=stat.st_size, mtime_ns=stat.st_mtime_ns, blocks=block_sha256(path))
    return found


def changed_files(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Files that are not as they were published, and what is wrong with them: the quick look of every run.

    Size and modification time are trusted. A file with another time alone (a copied run) is read: its bytes decide.
    """
    changed = {}
    for name, record in manifest.files.items():
        try:
            stat = (directory / name).stat()
        except FileNotFoundError:
            changed[name] = "is missing"
            continue
        same_bytes = stat.st_mtime_ns == record.mtime_ns or block_sha256(directory / name) == record.blocks
        if stat.st_size != record.size or not same_bytes:
            changed[name] = "was changed"
    return changed


def renew_times(directory: Path, manifest: Manifest) -> None:
    """Take on the modification times of files whose bytes are those that were published, so they are not read again."""
    for name, record in manifest.files.items():
        record.mtime_ns = (directory / name).stat().st_mtime_ns
    if read(directory) != manifest:
        write(directory, manifest)


def damaged_files(directory: Path, manifest: Manifest, below: str = "") -> list[str]:
    """Files (those of one output, where its place is given) whose bytes are not those that were published: reads them.

    A damaged file gets a new modification time, so that the quick look of the next run sees it too and mends it.
    """
    damaged = []
    for name, record in manifest.files.items():
        path = directory / name
        if below and not name.startswith(below + "/"):
            continue
        if not path.exists():
            damaged.append(f"{name} is missing")
        elif (found := block_sha256(path)) != record.blocks:
            block = next((i for i, (a, b) in enumerate(zip(found, record.blocks, strict=False)) if a != b), len(found))
            damaged.append(f"{name} differs from what was published (block {block} of {len(record.blocks)})")
            with contextlib.suppress(OSError):
                os.utime(path)
    return damaged
