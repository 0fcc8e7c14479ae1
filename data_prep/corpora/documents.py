"""Corpora: documents, whatever they are kept in, and the pieces of a corpus that can be read each by itself.

How a corpus is cut is a function of its files and of `piece_bytes` alone. Laid end to end in the order of their paths,
the files make a line of so many bytes, of which each piece has its `piece_bytes`: to it belong the documents that begin
there. Of a .jsonl file that is known from the bytes, of a .parquet file from its metadata; a .txt and a compressed file
is never cut. A hub data set is cut into what `datasets` calls its shards, mostly its files.

Nothing but the document at hand is in memory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.rows import (
    COMPRESSIONS,
    Row,
    check_unicode,
    file_format,
    json_row,
    line_number,
    lines,
    lines_from,
    parquet_file,
    parquet_rows,
    read_text,
)
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_DOCS, documents

PIECE_BYTES = 2**28
# A small corpus is cut finer, so that there is something to do for every core.
_AT_LEAST_PIECES = 64
_SMALLEST_PIECE = 2**22  # bytes
_PLACES_OF_A_FILE = 2**40

_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Document:
    """A text and its place in the corpus: 2⁴⁰ times the number of its file, and the byte or row where it begins there.

    The place is the same at every reading and however the corpus is cut; the first document's is 0.
    """

    text: str
    place: int


class Piece(Protocol):
    """A run of documents that is read without what stands before it. It can be sent to another process."""

    @property
    def name(self) -> str:
        """Which documents these are; the same at every reading."""

    def documents(self) -> Iterator[Document]: ...


def read_corpus(
    location: str | Path, *, text_field: str = "text", config: str | None = None, split: str = "train"
) -> Iterator[Document]:
    """The documents of a corpus, in the same order at every reading.

    InputError where there is nothing to read, at once; or, while reading, where a row is not as it should be.
    """
    pieces = corpus_pieces(location, text_field=text_field, config=config, split=split)
    return (document for piece in pieces for document in piece.documents())


def corpus_pieces(
    location: str | Path,
    *,
    text_field: str = "text",
    config: str | None = None,
    split: str = "train",
    piece_bytes: int = PIECE_BYTES,
) -> list[Piece]:
    """The pieces of a corpus, in order: together all its documents, each once.

    location    a .txt (one document), .jsonl or .parquet file (a row is a document), each of the first two also .gz or
                .zst; a folder of these, read in the order of their paths; "stdlib-docs"; or a `datasets` hub name
    text_field  the field of a row that holds the text
    config, split  of a hub data set
    piece_bytes  bytes of a piece, of .parquet those of its column of text before compression; less where the corpus
                would be fewer than 64 pieces, but for that not less than 4 MiB

    InputError where there is nothing to read.
    """
    if str(location) == STDLIB_DOCS:
        return [StdlibPages()]
    path = Path(location)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if _is_corpus_file(f, path))
        if not files:
            raise InputError(
                f"corpus {path} holds no {', '.join(_SUFFIXES)} file (.gz and .zst of the first two also count)"
            )
        return _cut(path, [file.relative_to(path).as_posix() for file in files], text_field, piece_bytes)
    if path.is_file():
        if not _is_corpus_file(path, path.parent):
            raise InputError(
                f"corpus {path} has no known suffix; use {', '.join(_SUFFIXES)} (.gz and .zst of the first two)"
            )
        return _cut(path.parent, [path.name], text_field, piece_bytes)
    if (
        path.suffix in (*_SUFFIXES, *COMPRESSIONS)
        or path.is_absolute()
        or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(location))
    ):
        raise InputError(f"corpus {location} does not exist: mend the path")
    shards = hub_shards(str(location), config, split)
    return [HubShard(str(location), config, split, text_field, index, shards) for index in range(shards)]


# ------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Part:
    """The documents of a file that begin at `start` … `stop`−1, in bytes (.jsonl) or rows (.parquet); None: all."""

    file: int
    name: str
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return self.name if self.stop is None else f"{self.name} {self.start}-{self.stop}"


@dataclass(frozen=True)
class FilesPiece:
    """Parts of the files in one folder."""

    root: Path
    text_field: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        first, last = self.parts[0], self.parts[-1]
        return str(first) if first is last else f"{first} to {last}"

    def documents(self) -> Iterator[Document]:
        for part in self.parts:
            for at, text in self._texts(part):
                yield Document(text, part.file * _PLACES_OF_A_FILE + at)

    def _texts(self, part: Part) -> Iterator[tuple[int, str]]:
        path = self.root / part.name
        match file_format(path):
            case ".txt":
                yield 0, read_text(path)
            case ".parquet":
                for at, row in parquet_rows(path, [self.text_field], part.start, part.stop or 0):
                    yield at, text_of(row, self.text_field)
            case _ if path.suffix in COMPRESSIONS:
                for number, line in enumerate(lines(path), 1):
                    if line.strip():
                        yield number - 1, text_of(json_row(line, path, number), self.text_field)
            case _:
                yield from self._texts_of_lines(path, part)

    def _texts_of_lines(self, path: Path, part: Part) -> Iterator[tuple[int, str]]:
        for at, line in lines_from(path, part.start, part.stop):
            if line.strip():
                try:
                    # Which line this is matters only where the first may begin with a mark, and where one is wrong.
                    text = text_of(json_row(line, path, 1 if at == 0 else 2), self.text_field)
                except InputError:
                    text = text_of(json_row(line, path, line_number(path, at)), self.text_field)
                yield at, text


def _cut(root: Path, names: list[str], text_field: str, piece_bytes: int) -> list[Piece]:
    root = root.absolute()  # a process that reads a piece may stand elsewhere
    weights = [_weights(root / name, text_field) for name in names]
    total = sum(weight for of_file in weights for weight, _ in of_file)
    size = min(piece_bytes, max(_SMALLEST_PIECE, total // _AT_LEAST_PIECES))
    found: dict[int, list[Part]] = {}
    begin = 0
    for file, (name, of_file) in enumerate(zip(names, weights, strict=True)):
        first = 0
        for weight, units in of_file:
            if units is None:
                found.setdefault(begin // size, []).append(Part(file, name))
            else:
                for piece, start, stop in _runs(begin, weight, units, size):
                    parts = found.setdefault(piece, [])
                    if parts and parts[-1].file == file:  # goes on with the next row group
                        start = parts.pop().start - first
                    parts.append(Part(file, name, first + start, first + stop))
                first += units
            begin += weight
    return [FilesPiece(root, text_field, tuple(parts)) for parts in found.values()]


def _runs(begin: int, weight: int, units: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(piece, start, stop) of `units` bytes or rows that weigh `weight` bytes and lie from `begin` on.

    >>> list(_runs(begin=0, weight=25, units=25, size=10))
    [(0, 0, 10), (1, 10, 20), (2, 20, 25)]
    >>> list(_runs(begin=5, weight=100, units=4, size=60))  # rows of 25 bytes, at 5, 30, 55 and 80
    [(0, 0, 3), (1, 3, 4)]
    """
    for piece in range(begin // size, (begin + weight) // size + 1):
        start, stop = (
            min(max(-(-(edge * size - begin) * units // max(1, weight)), 0), units) for edge in (piece, piece + 1)
        )
        if start < stop:
            yield piece, start, stop


def _weights(path: Path, text_field: str) -> list[tuple[int, int | None]]:
    """(bytes, bytes or rows to cut it by; None: it is not cut) of a file, of Parquet those of each row group."""
    if file_format(path) == ".parquet":
        with parquet_file(path, [text_field]) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            return [(_column_bytes(group, text_field), group.num_rows) for group in groups]
    size = path.stat().st_size
    return [(size, size if path.suffix == ".jsonl" else None)]


def _column_bytes(group: Any, name: str) -> int:
    columns = [group.column(i) for i in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name)


def _is_corpus_file(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    compressed_table = file_format(file) == ".parquet" and file.suffix in COMPRESSIONS
    return file.is_file() and not hidden and file_format(file) in _SUFFIXES and not compressed_table


def text_of(row: Row, text_field: str) -> str:
    """The text of a row. InputError if it has none."""
    if text_field not in row:
        raise InputError(f"{row.where}: there is no field {text_field!r}; there are {', '.join(row)}: set text_field")
    text = row[text_field]
    if not isinstance(text, str):
        raise InputError(f"{row.where}: field {text_field!r} is a {type(text).__name__}, not text")
    return check_unicode(text, row.where)


# ---------------------------------------------------------------------------------------------------------- the others


@dataclass(frozen=True)
class StdlibPages:
    """The documentation that comes with Python, which is small: one piece."""

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
        shard = _stream(self.location, self.config, self.split).shard(num_shards=self.of, index=self.index)
        where = f"{self.location}/{self.split}, shard {self.index + 1} of {self.of}"
        for number, fields in enumerate(_fetched(shard, where)):
            row = Row(fields, f"{where}: row {number + 1}")
            yield Document(text_of(row, self.text_field), self.index * _PLACES_OF_A_FILE + number)


def hub_shards(name: str, config: str | None, split: str) -> int:
    """How many shards `datasets` streams a split of a hub data set from."""
    return int(_stream(name, config, split).num_shards)


def hub_rows(name: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of a split of a `datasets` hub data set, streamed; a class label reads as its name."""
    stream = _stream(name, config, split)
    from datasets import ClassLabel

    names = {
        column: feature.names for column, feature in (stream.features or {}).items() if isinstance(feature, ClassLabel)
    }

    def read() -> Iterator[Row]:
        for number, fields in enumerate(_fetched(stream, f"{name}/{split}"), 1):
            labelled = {c: names[c][fields[c]] for c in names if isinstance(fields.get(c), int) and fields[c] >= 0}
            yield Row({**fields, **labelled}, f"{name}/{split}: row {number}")

    return read()


# Which files a data set has is asked of the hub once in a process, not once for each shard.
@functools.lru_cache(maxsize=4)
def _stream(name: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # whatever the hub, the network or a loading script raises
        raise InputError(
            f"{name}: does not exist here, and cannot be read from the hub (config {config}, split {split}):"
            f" {_reason(error)}; check the path, or the name of the data set"
        ) from None


def _fetched(stream: Any, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream; what the network or a damaged file does to them in the middle is said in one line."""
    rows = iter(stream)
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as above; `datasets` itself has tried again by then
            raise InputError(f"{where} cannot be read: {_reason(error)}; run the same command to go on") from None
        yield fields


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
