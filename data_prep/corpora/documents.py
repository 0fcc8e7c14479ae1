"""Corpora as documents, divided into chunks that can be read independently.

The division depends only on the files and on `chunk_bytes`. Concatenated in the order of their paths, the files form a
byte range, which is cut every `chunk_bytes`; a document belongs to the chunk in which it begins. JSON lines are cut by
bytes and .parquet files by rows (sizes from the metadata); .txt files, JSON lists and compressed files are never cut. A
hub data set is divided into the shards of `datasets`, usually its files.

Only the current document is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.decontamination import Decontamination
from t5_pipeline.data_prep.corpora.files import (
    compression,
    file_format,
    line_number,
    lines,
    lines_from,
    read_text,
)
from t5_pipeline.data_prep.corpora.hub import hub_shards, may_be_on_hub, shard_rows
from t5_pipeline.data_prep.corpora.json_rows import is_blank, is_json_list, json_file, json_row
from t5_pipeline.data_prep.corpora.parquet import column_bytes, parquet_rows
from t5_pipeline.data_prep.corpora.row import MISSING, Row, check_unicode, type_name
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_DOCS, documents

CHUNK_BYTES = 2**28
# Small corpora are cut finer, so that every core has work.
_MIN_CHUNKS = 64
_MIN_CHUNK_BYTES = 2**22
_POSITIONS_PER_FILE = 2**40

_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_KNOWN = f"{', '.join(_SUFFIXES)} (all but the last also as .gz or .zst)"


@dataclass(frozen=True)
class Document:
    """A text and its position in the corpus: 2⁴⁰ × the index of its file + its first byte or row in that file.

    The position does not depend on the division into chunks; the first document has position 0.
    """

    text: str
    position: int


class Chunk(Protocol):
    """A run of documents, the unit of work that becomes one shard. It can be sent to another process."""

    @property
    def name(self) -> str:
        """Names the documents, in the same way every time."""

    def documents(self) -> Iterator[Document]: ...


def corpus_chunks(
    location: str | Path,
    *,
    text_field: str = "text",
    config: str | None = None,
    split: str = "train",
    chunk_bytes: int = CHUNK_BYTES,
) -> list[Chunk]:
    """The chunks of a corpus, in order; each document is in exactly one.

    Args:
        location: a .txt file (one document), a .jsonl, .ndjson, .json or .parquet file (one document per row), all but
            the last also as .gz or .zst; a folder of these, read in the order of their paths; "stdlib-docs"; or a
            `datasets` hub name. Other files of a folder are skipped (see `skipped_files`).
        text_field: the field of a row that contains the text; "doc.text" is field `text` of the object `doc`.
        config: configuration of a hub data set.
        split: split of a hub data set.
        chunk_bytes: bytes per chunk; for .parquet, uncompressed bytes of the text column. Reduced for corpora of fewer
            than 64 chunks, but not below 4 MiB.

    Raises:
        InputError: if there is nothing to read.
    """
    if str(location) == STDLIB_DOCS:
        return [StdlibPages()]
    path = Path(location)
    if path.is_dir():
        files = corpus_files(path)
        if not files:
            raise InputError(f"corpus {path}: contains no {_KNOWN} file; check the path")
        _check_copies(path, files)
        return _cut(path, [file.relative_to(path).as_posix() for file in files], text_field, chunk_bytes)
    if path.is_file():
        if not corpus_files(path):
            raise InputError(f"corpus {path}: has an unknown suffix; use {_KNOWN}")
        return _cut(path.parent, [path.name], text_field, chunk_bytes)
    if not may_be_on_hub(str(location)):
        raise InputError(f"corpus {location} does not exist; check the path")
    shards = hub_shards(str(location), config, split)
    return [HubShard(str(location), config, split, text_field, index, shards) for index in range(shards)]


def _check_copies(path: Path, files: list[Path]) -> None:
    """Refuse a file beside its compressed copy, whose documents would be read twice."""
    plain: dict[Path, Path] = {}
    for file in files:
        if (other := plain.setdefault(file.with_suffix("") if compression(file) else file, file)) != file:
            names = " and ".join(str(one.relative_to(path)) for one in (other, file))
            raise InputError(f"corpus {path}: {names} differ only in compression; remove one")


def corpus_files(path: Path) -> list[Path]:
    """The files that a corpus folder or file consists of, in order; empty if there is none."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in found if _is_corpus_file(file, path.parent if path.is_file() else path)]


def skipped_files(location: str | Path) -> list[str]:
    """Files and linked folders of a corpus folder that `corpus_chunks` does not read, except hidden ones."""
    path = Path(location)
    if not path.is_dir():
        return []
    found = [file for file in sorted(path.rglob("*")) if file.is_symlink() or file.is_file()]
    names = [file.relative_to(path) for file in found if not _is_corpus_file(file, path)]
    return [name.as_posix() for name in names if not _is_hidden(name)]


def first_texts(chunks: Iterable[Chunk], characters: int, *, without: Iterable[str], corpus: str) -> Iterator[str]:
    """The texts at the start of a corpus, `characters` in total, skipping documents that contain a text of `without`.

    Raises:
        InputError: if there are none; names the setting `corpus`.
    """
    held_out = Decontamination(without)
    left = characters
    for document in (document for chunk in chunks for document in chunk.documents()):
        if left <= 0:
            return
        if not held_out.found_in(document.text):
            left -= len(document.text)
            yield document.text
    if left == characters:
        raise InputError(f"corpus: {corpus} contains no text to train a vocabulary on; give one that does")


# ---------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FileSpan:
    """The documents of a file that begin at `start` … `stop`−1, in bytes (JSON lines) or rows (.parquet); None: all."""

    file: int
    name: str
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return self.name if self.stop is None else f"{self.name} {self.start}-{self.stop}"


@dataclass(frozen=True)
class FileChunk:
    """Spans of files in one folder."""

    root: Path
    text_field: str
    spans: tuple[FileSpan, ...]

    @property
    def name(self) -> str:
        first, last = self.spans[0], self.spans[-1]
        return str(first) if first is last else f"{first} to {last}"

    def documents(self) -> Iterator[Document]:
        for span in self.spans:
            for at, text in self._texts(span):
                yield Document(text, span.file * _POSITIONS_PER_FILE + at)

    def _texts(self, span: FileSpan) -> Iterator[tuple[int, str]]:
        path = self.root / span.name
        match file_format(path):
            case ".txt":
                yield 0, read_text(path)
            case ".parquet":
                for at, row in parquet_rows(path, [self.text_field], span.start, span.stop or 0):
                    yield at, text_of(row, self.text_field)
            case ".json" if is_json_list(path):
                for at, row in enumerate(json_file(path)):
                    yield at, text_of(row, self.text_field)
            case _ if compression(path):
                for number, line in enumerate(lines(path), 1):
                    if not is_blank(line):
                        yield number - 1, text_of(json_row(line, path, number), self.text_field)
            case _:
                yield from self._texts_of_lines(path, span)

    def _texts_of_lines(self, path: Path, span: FileSpan) -> Iterator[tuple[int, str]]:
        for at, line in lines_from(path, span.start, span.stop):
            if not is_blank(line):
                try:
                    # The line number matters only for the byte order mark of the first line and for errors.
                    text = text_of(json_row(line, path, 1 if at == 0 else 2), self.text_field)
                except InputError:
                    text = text_of(json_row(line, path, line_number(path, at)), self.text_field)
                yield at, text


def _cut(root: Path, names: list[str], text_field: str, chunk_bytes: int) -> list[Chunk]:
    root = root.absolute()  # a worker may have another working directory
    weights = [_weights(root / name, text_field) for name in names]
    total = sum(weight for of_file in weights for weight, _ in of_file)
    size = min(chunk_bytes, max(_MIN_CHUNK_BYTES, total // _MIN_CHUNKS))
    found: dict[int, list[FileSpan]] = {}
    begin = 0
    for file, (name, of_file) in enumerate(zip(names, weights, strict=True)):
        first = 0
        for weight, units in of_file:
            if units is None:
                found.setdefault(begin // size, []).append(FileSpan(file, name))
            else:
                for chunk, start, stop in _ranges(begin, weight, units, size):
                    spans = found.setdefault(chunk, [])
                    if spans and spans[-1].file == file:  # extend the span of the previous row group
                        start = spans.pop().start - first
                    spans.append(FileSpan(file, name, first + start, first + stop))
                first += units
            begin += weight
    return [FileChunk(root, text_field, tuple(spans)) for spans in found.values()]


def _ranges(begin: int, weight: int, units: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(chunk, start, stop) for `units` bytes or rows that take `weight` bytes of the corpus, starting at byte `begin`.

    >>> list(_ranges(begin=0, weight=25, units=25, size=10))
    [(0, 0, 10), (1, 10, 20), (2, 20, 25)]
    >>> list(_ranges(begin=5, weight=100, units=4, size=60))  # rows of 25 bytes at 5, 30, 55 and 80
    [(0, 0, 3), (1, 3, 4)]
    """
    for chunk in range(begin // size, (begin + weight) // size + 1):
        start, stop = (
            min(max(-(-(edge * size - begin) * units // max(1, weight)), 0), units) for edge in (chunk, chunk + 1)
        )
        if start < stop:
            yield chunk, start, stop


def _weights(path: Path, text_field: str) -> Sequence[tuple[int, int | None]]:
    """(bytes, number of bytes or rows at which to cut; None: uncut) of a file, for Parquet of each row group."""
    if file_format(path) == ".parquet":
        return column_bytes(path, text_field)
    size = path.stat().st_size
    whole = compression(path) or file_format(path) == ".txt" or (file_format(path) == ".json" and is_json_list(path))
    return [(size, None if whole else size)]


def _is_corpus_file(file: Path, root: Path) -> bool:
    compressed_table = file_format(file) == ".parquet" and compression(file)
    known = file_format(file) in _SUFFIXES and not compressed_table
    return file.is_file() and known and not _is_hidden(file.relative_to(root))


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def text_of(row: Row, text_field: str) -> str:
    """The text of a row.

    Raises:
        InputError: if it has none.
    """
    text = row.field(text_field)
    if text is MISSING:
        raise InputError(f"{row.lacks(text_field)}; set `text_field`")
    if not isinstance(text, str):
        what = "empty (null)" if text is None else type_name(text)
        raise InputError(f"{row.where}: field {text_field!r} is {what}, not text; fix the row or set `text_field`")
    return check_unicode(text, row.where)


# -------------------------------------------------------------------------------------------------------- other sources


@dataclass(frozen=True)
class StdlibPages:
    """The documentation that comes with Python, as one chunk."""

    name: str = STDLIB_DOCS

    def documents(self) -> Iterator[Document]:
        return (Document(page.text, number) for number, page in enumerate(documents()))


@dataclass(frozen=True)
class HubShard:
    """One of the `of` shards of a hub data set's split, streamed."""

    location: str
    config: str | None
    split: str
    text_field: str
    index: int
    of: int

    @property
    def name(self) -> str:
        return f"{self.split} {self.index + 1} of {self.of}"

    def documents(self) -> Iterator[Document]:
        for number, row in enumerate(
            shard_rows(self.location, self.config, self.split, self.text_field, self.index, self.of)
        ):
            yield Document(text_of(row, self.text_field), self.index * _POSITIONS_PER_FILE + number)
