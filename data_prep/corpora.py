"""Corpora as a stream of documents, whatever they are kept in; nothing but the document at hand is in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.rows import COMPRESSIONS, Row, check_unicode, file_format, read_rows, read_text
from data_prep.stdlib_docs import STDLIB_DOCS, documents
from pipeline.errors import InputError

_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Document:
    """A text, a name for it that is stable between readings, and where it stands ("corpus/a.jsonl:7")."""

    id: str
    text: str
    where: str


def read_corpus(
    location: str | Path, *, text_field: str = "text", config: str | None = None, split: str = "train"
) -> Iterator[Document]:
    """The documents of a corpus, in the same order at every reading.

    location    a .txt (one document), .jsonl or .parquet file (a row is a document), each of the first two also .gz or
                .zst; a folder of these, read in the order of their paths; "stdlib-docs"; or a `datasets` hub name
    text_field  the field of a row that holds the text
    config, split  of a hub data set

    InputError where there is nothing to read, at once; or, while reading, where a row is not as it should be.
    """
    if str(location) == STDLIB_DOCS:
        return (Document(d.name, d.text, f"{STDLIB_DOCS}:{d.name}") for d in documents())
    path = Path(location)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if _is_corpus_file(f, path))
        if not files:
            raise InputError(
                f"corpus {path} holds no {', '.join(_SUFFIXES)} file (.gz and .zst of the first two also count)"
            )
        return (document for file in files for document in _read_file(file, str(file.relative_to(path)), text_field))
    if path.is_file():
        if not _is_corpus_file(path, path.parent):
            raise InputError(
                f"corpus {path} has no known suffix; use {', '.join(_SUFFIXES)} (.gz and .zst of the first two)"
            )
        return _read_file(path, path.name, text_field)
    if (
        path.suffix in (*_SUFFIXES, *COMPRESSIONS)
        or path.is_absolute()
        or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(location))
    ):
        raise InputError(f"corpus {location} does not exist: mend the path")
    rows = hub_rows(str(location), config, split)
    return (_document(row, f"{location}/{split}:{number}", text_field) for number, row in enumerate(rows, 1))


def hub_rows(name: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of a split of a `datasets` hub data set, streamed; a class label reads as its name."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name} is no file here, and to read it from the hub `datasets` is needed:"
            " mend the path, or pip install datasets"
        ) from None
    try:
        stream: Any = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # whatever the hub, the network or a loading script raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"data set {name} (config {config}, split {split}) cannot be read from the hub: {reason}"
        ) from None
    names = {
        column: feature.names
        for column, feature in (stream.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def read() -> Iterator[Row]:
        for number, fields in enumerate(stream, 1):
            labelled = {c: names[c][fields[c]] for c in names if isinstance(fields.get(c), int) and fields[c] >= 0}
            yield Row({**fields, **labelled}, f"{name}/{split}: row {number}")

    return read()


def _is_corpus_file(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    compressed_table = file_format(file) == ".parquet" and file.suffix in COMPRESSIONS
    return file.is_file() and not hidden and file_format(file) in _SUFFIXES and not compressed_table


def _read_file(file: Path, name: str, text_field: str) -> Iterator[Document]:
    name = name.replace(os.sep, "/")
    if file_format(file) == ".txt":
        yield Document(name, read_text(file), str(file))
        return
    for number, row in enumerate(read_rows(file, [text_field] if file_format(file) == ".parquet" else None), 1):
        yield _document(row, f"{name}:{number}", text_field)


def _document(row: Row, name: str, text_field: str) -> Document:
    if text_field not in row:
        raise InputError(f"{row.where}: there is no field {text_field!r}; there are {', '.join(row)}: set text_field")
    text = row[text_field]
    if not isinstance(text, str):
        raise InputError(f"{row.where}: field {text_field!r} is a {type(text).__name__}, not text")
    return Document(name, check_unicode(text, row.where), row.where)
