"""Cache of digests of data outside a run directory, so that `plan` does not read the corpus again."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.checksums import file_digest, json_digest
from t5_pipeline.core.printable import say
from t5_pipeline.data_prep.corpora.documents import corpus_files
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_DOCS, STDLIB_KINDS
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.splits import STRATIFIED_ORDER, split_slice
from t5_pipeline.data_prep.tokenizer.sources import vocabulary_files

_BUILT_IN = (STDLIB_DOCS, STDLIB_KINDS)
_LONG = 10 * 10**9  # bytes that take so long to read that a person wonders what happens


class DigestCache:
    """Digests by path, size and modification time, in a JSON file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, list[Any]] = {}
        self._saved = True
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                entries = read_json(path)
                self.entries = entries if isinstance(entries, dict) else {}

    def of_corpus(self, location: str) -> str:
        """Digest of a corpus: its files' contents, a hub data set's name, or Python's version for the built-in one.

        Files of a folder that `prepare` does not read, such as notes and hidden files, do not count.
        """
        return self._of_data(location, corpus_files)

    def of_vocabulary(self, location: str) -> str:
        """Digest of a vocabulary: the contents of a file, or of those of a folder that can matter; or a hub name."""
        return self._of_data(location, vocabulary_files)

    def _of_data(self, location: str, files_of: Callable[[Path], list[Path]]) -> str:
        if location in _BUILT_IN:
            return f"{location} of Python {platform.python_version()}"
        path = Path(location)
        if not path.exists():
            return f"hub:{location}"
        files = files_of(path) if path.is_dir() else [path]
        base = path if path.is_dir() else path.parent
        return json_digest([[str(p.relative_to(base)), digest] for p, digest in self._of_files(path, files).items()])

    def of_task(self, task: TaskConfig) -> str:
        """Digest of a task's rows: of the files of its splits only, and of the order of stratified slices."""
        found = self._of_splits(task)
        parts = [split_slice(split)[1] for split in task.splits.values()]
        stratified = any(part is not None and part.order == "stratified" for part in parts)
        return json_digest([found, STRATIFIED_ORDER]) if stratified else found

    def _of_splits(self, task: TaskConfig) -> str:
        if task.data in _BUILT_IN or not Path(task.data).exists():
            return self.of_corpus(task.data)
        files = dict(sorted(task.files().items()))
        digests = self._of_files(Path(task.data), files.values())
        return json_digest([[split, file.name, digests[file]] for split, file in files.items()])

    def of_artifact(self, artifact: str, path: Path) -> str:
        """Digest of an input from outside the run; the name for a model on the hub.

        Raises:
            InputError: if a directory does not contain such an artifact.
        """
        if not path.is_dir():
            return f"hub:{path}"
        files = sorted(p for p in path.rglob("*") if p.is_file())
        digest = self._known(path, files)
        if digest is None:
            _announce(path, files)
            digest = self._compute(path, lambda: artifact_digest(artifact, path), files)
        self._save()
        return digest

    def _of_files(self, source: Path, files: Iterable[Path]) -> dict[Path, str]:
        """The digest of each file of a corpus, a vocabulary or a task."""
        found = {file: self._known(file, [file]) for file in files}
        _announce(source, [file for file, digest in found.items() if digest is None])
        digests = {
            file: self._compute(file, partial(file_digest, file), [file]) if digest is None else digest
            for file, digest in found.items()
        }
        self._save()
        return digests

    def _compute(self, path: Path, compute: Callable[[], str], files: list[Path]) -> str:
        """A digest that is not known yet."""
        stamp, digest = _stamp(files), compute()
        self.entries[str(path.resolve())] = [stamp, digest]
        self._saved = False
        return digest

    def _known(self, path: Path, files: list[Path]) -> str | None:
        """The digest of a path, if it was computed when its files were as they are now."""
        known = self.entries.get(str(path.resolve()))
        return str(known[1]) if isinstance(known, list) and len(known) == 2 and known[0] == _stamp(files) else None

    def _save(self) -> None:
        """Write new digests, once the run directory exists."""
        if not self._saved and self.path is not None and self.path.parent.is_dir():
            with contextlib.suppress(OSError):  # a cache; `plan` also works on a full or read-only disk
                write_text(self.path, json.dumps(self.entries))
            self._saved = True


def _stamp(files: list[Path]) -> list[list[Any]]:
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _announce(path: Path, files: list[Path]) -> None:
    """Say that files are read for their digests, if that takes long."""
    size = sum(file.stat().st_size for file in files)
    if size >= _LONG:
        say(f"{path}: reading {size / 1e9:,.0f} GB to compute the checksum, once")
