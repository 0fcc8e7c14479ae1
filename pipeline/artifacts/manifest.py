"""The manifest of a cell, written last: a cell is finished if its manifest exists and matches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any, ClassVar

from pydantic import Field

from t5_pipeline.config.references import InputRef
from t5_pipeline.core.checksums import block_sha256
from t5_pipeline.core.paths import below, inside
from t5_pipeline.core.records import Record
from t5_pipeline.data_prep.tasks.counts import RowCounts

NAME = "manifest.json"
STARTED = "started.json"


class InputRecord(Record):
    """One input: the stage that made it (None if it came from outside the run), its path and its digest."""

    stage: str | None = None
    cell: str | None = None
    step: int | None = None
    path: str
    digest: str

    @property
    def ref(self) -> InputRef:
        """The stage, cell and step that made it, or else its path."""
        return InputRef(self.stage, self.cell, self.step) if self.stage is not None else InputRef(path=self.path)


class OutputRecord(Record):
    path: str
    digest: str


class FileRecord(Record):
    size: int
    mtime_ns: int
    blocks: list[str]


class Started(Record):
    """A cell that was started: its checkpoints belong to these settings and inputs only.

    Attributes:
        environment: command, commit and hardware, as text.
    """

    file_name: ClassVar[str] = STARTED
    what: ClassVar[str] = "the directory of a cell"
    repair: ClassVar[str] = "move its directory away and run again"
    indent: ClassVar[int] = 1

    format: int = 1
    stage: str
    kind: str
    cell: dict[str, Any] = Field(default_factory=dict)
    fingerprint: str
    parts: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, list[InputRecord]] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    started: str


class Manifest(Started):
    """A finished cell: its settings and inputs, its outputs, the checksums of its files, and the rows that it read."""

    file_name: ClassVar[str] = NAME

    step: int | None = None
    steps_published: dict[int, OutputRecord] = Field(default_factory=dict)
    outputs: dict[str, OutputRecord]
    files: dict[str, FileRecord]
    facts: dict[str, Any] = Field(default_factory=dict)
    rows: list[RowCounts] = Field(default_factory=list)
    finished: str
    seconds: float

    def all_outputs(self) -> list[OutputRecord]:
        return [*self.outputs.values(), *self.steps_published.values()]

    def output_after(self, step: int | None, artifact: str) -> OutputRecord | None:
        """The artifact after a step of training, or the only one of a stage that does not train; None if not published.

        Args:
            step: None if the stage does not train.
        """
        return self.outputs.get(artifact) if step in (None, self.step) else self.steps_published.get(step)

    @property
    def training_seconds(self) -> float:
        """The cell's share of `seconds`, which it spent in one process with the cells that were trained together."""
        cells = self.facts.get("cells_together")
        return self.seconds / cells if type(cells) is int and cells > 0 else self.seconds

    @property
    def stored_bytes(self) -> int:
        """Bytes of the outputs, as `stored_bytes` counts them; published steps do not count."""
        places = tuple(f"{output.path}/" for output in self.outputs.values())
        return stored_bytes({name: file.size for name, file in self.files.items() if name.startswith(places)})


def stored_bytes(sizes: Mapping[str, int]) -> int:
    """Bytes that an artifact stores: those of its tensors, or of all its files if it has no tensors.

    Args:
        sizes: bytes of its files, by name.
    """
    tensors = [size for name, size in sizes.items() if name.endswith(".safetensors")]
    return sum(tensors or sizes.values())


def read(directory: Path) -> Manifest | None:
    """The manifest in a cell's directory; None if the cell has not finished.

    Raises:
        InputError: if the file is damaged, or contains a path that leads out of the directory.
    """
    manifest = Manifest.load_or_none(directory)
    if manifest is not None:
        where = directory / NAME
        for record in manifest.all_outputs():
            inside(directory, record.path, where)
        for folder in {Path(below(name, where)).parent.as_posix() for name in manifest.files}:
            inside(directory, folder, where)
    return manifest


def read_started(directory: Path) -> Started | None:
    """The record of a cell's start; None if it was never started."""
    return Started.load_or_none(directory)


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
    """Files that differ from what was published, and how: the quick check of every run.

    A file with the recorded size and modification time counts as unchanged. If only the time differs (a copied run),
    its checksums decide.
    """
    changed = {}
    for name, record in manifest.files.items():
        try:
            stat = (directory / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            changed[name] = "is missing"
            continue
        same = stat.st_size == record.size and S_ISREG(stat.st_mode)
        if not same or (stat.st_mtime_ns != record.mtime_ns and block_sha256(directory / name) != record.blocks):
            changed[name] = "was changed"
    return changed


def unknown_files(directory: Path, place: str, known: Iterable[str]) -> list[str]:
    """Files below `place` that are not among the `known` ones; all names are relative to `directory`."""
    files = [path for path in (directory / place).rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({path.relative_to(directory).as_posix() for path in files} - set(known))


def renew_times(directory: Path, manifest: Manifest) -> None:
    """Record the current modification times of files whose bytes are unchanged, so that they are not read again."""
    files = {
        name: record.model_copy(update={"mtime_ns": (directory / name).stat().st_mtime_ns})
        for name, record in manifest.files.items()
    }
    if files != manifest.files:
        manifest.model_copy(update={"files": files}).save(directory)


def damaged_files(directory: Path, manifest: Manifest, output: str = "") -> dict[str, str]:
    """Files whose bytes differ from what was published, and how. Reads every file.

    Args:
        output: path of an output within the directory; only its files are read (default: all files).
    """
    files = {name: of for name, of in manifest.files.items() if not output or name.startswith(f"{output}/")}
    return damaged_records(directory, files)


def damaged_records(directory: Path, files: Mapping[str, FileRecord]) -> dict[str, str]:
    """Files whose bytes differ from their records, and how. Reads every file."""
    damaged = {}
    for name, record in files.items():
        path = directory / name
        if not path.is_file():
            damaged[name] = "is missing"
        elif path.stat().st_size > record.size:
            damaged[name] = "is damaged (longer than it was)"
        elif (found := block_sha256(path)) != record.blocks:
            block = next((i for i, (a, b) in enumerate(zip(found, record.blocks, strict=False)) if a != b), len(found))
            damaged[name] = f"is damaged (block {block} of {len(record.blocks)})"
    return damaged


def mark_damaged(directory: Path, names: Iterable[str]) -> None:
    """Give damaged files a new modification time, so that the quick check of the next run finds and rebuilds them."""
    for name in names:
        with contextlib.suppress(OSError):
            os.utime(directory / name, follow_symlinks=False)
