"""Rows of JSONL, JSON, CSV, TSV and Parquet files, plain or compressed (.gz, .zst), with their locations."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from t5_pipeline.core.errors import InputError

COMPRESSIONS = (".gz", ".zst")
_BLOCK = 2**20  # bytes
# One CSV field may contain a whole article.
_LONGEST_CSV_FIELD = 2**31 - 1


class Row(dict[str, Any]):
    """The fields of one row, and its location for errors, such as "data/train.jsonl:7"."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def file_format(path: Path) -> str:
    """The suffix of a file without its compression.

    >>> file_format(Path("data/train.jsonl.gz"))
    '.jsonl'
    """
    name = Path(path.stem) if path.suffix in COMPRESSIONS else path
    return name.suffix


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        InputError: if a byte is not UTF-8; names its line.
    """
    return _decode(b"".join(_blocks(path)), path, 1)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, *, header: bool = True, whole: bool = True
) -> Iterator[Row]:
    """Rows of a .jsonl, .json (a list), .csv, .tsv, .txt (as .tsv) or .parquet file.

    Args:
        path: the file.
        columns: Parquet only: the columns to read; None reads all.
        header: CSV and TSV only: the first line names the columns; otherwise their names are "0", "1", …
        whole: CSV and TSV only: a line with too few columns is an error; otherwise it is skipped.

    Raises:
        InputError: if the file or a row is malformed; names the line.
    """
    match file_format(path):
        case ".jsonl":
            return json_rows(lines(path), path)
        case ".json":
            return _json_list(path)
        case ".csv":
            return _delimited(path, ",", header, whole)
        case ".tsv" | ".txt":
            return _delimited(path, "\t", header, whole)
        case ".parquet":
            return _parquet(path, columns)
        case other:
            raise InputError(
                f"{path}: {other or 'no suffix'} is not a known format of rows;"
                " use .jsonl, .json, .csv, .tsv or .parquet"
            )


def _blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file, block by block."""
    from zstandard import ZstdError

    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    try:
        if path.suffix == ".zst":
            yield from _zstd_blocks(path)
            return
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        raise InputError(
            f"cannot read {path} ({error}); check that the file is intact and has the right suffix"
        ) from None


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame, because zstandard's file reader does not report a truncated file."""
    from zstandard import ZstdDecompressor

    decompressor = ZstdDecompressor()
    frame = None
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            while block:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("truncated zstd frame")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or compressed file."""
    rest = b""
    for block in _blocks(path):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _decode(data: bytes, path: Path | str, first_line: int) -> str:
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data[: error.start].count(b"\n")
        raise InputError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from None


def check_unicode(text: str, where: str) -> str:
    """Return `text`.

    Raises:
        InputError: if it contains half of a surrogate pair, which JSON allows but is not a character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} is half of a surrogate pair; fix the text") from None
    return text


def json_rows(lines: Iterable[bytes], source: Path | str) -> Iterator[Row]:
    """Rows of JSON lines, skipping blank lines; `source` is named in errors."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield json_row(line, source, number)


def json_row(line: bytes, source: Path | str, number: int) -> Row:
    """The row on line `number` (from 1) of `source`."""
    where = f"{source}:{number}"
    try:
        fields = json.loads(_decode(line, source, number))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}); fix the line") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: is a JSON {type(fields).__name__}; write one object per line")
    return Row(fields, where)


def lines_from(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of the lines of a plain file that begin in bytes start … stop−1; None: to the end.

    Consecutive ranges yield every line exactly once.
    """
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # skip the rest of the previous line, or only its newline
        at = file.tell()
        while (stop is None or at < stop) and (line := file.readline()):
            yield at, line.rstrip(b"\n")
            at += len(line)


def line_number(path: Path, byte: int) -> int:
    """The number (from 1) of the line of a plain file that begins at `byte`."""
    number = 1
    with path.open("rb") as file:
        while byte > 0 and (block := file.read(min(_BLOCK, byte))):
            number += block.count(b"\n")
            byte -= len(block)
    return number


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: if it is not JSON; names the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.colno}); fix the file") from None


def _json_list(path: Path) -> Iterator[Row]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: is a JSON {type(rows).__name__}; write a list of objects")
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise InputError(f"{path}: element {number} is a {type(fields).__name__}; write a list of objects")
        yield Row(fields, f"{path}: element {number}")


def _delimited(path: Path, delimiter: str, header: bool, whole: bool) -> Iterator[Row]:
    # No quoting in tab-separated files, because GLUE's contain unbalanced quotation marks.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str] | None = None
    try:
        for values in reader:
            if not values:
                continue
            where = f"{path}:{reader.line_num}"
            if names is None:
                names = values if header else [str(i) for i in range(len(values))]
                if header:
                    continue
            if len(values) < len(names) and not whole:
                continue
            if len(values) != len(names):
                raise InputError(
                    f"{where}: has {len(values)} fields, not {len(names)} ({', '.join(names)}); fix the line"
                )
            yield Row(dict(zip(names, values, strict=True)), where)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}); fix the line") from None


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with parquet_file(path, columns) as file:
        yield from _parquet_rows(file, path, columns, None, 0)


@contextlib.contextmanager
def parquet_file(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    """Open a Parquet file, as a `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: if it is not a Parquet file or lacks one of `columns`.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file ({str(error).strip()}); check the file") from None
    with file:
        names = file.schema_arrow.names
        for column in columns or ():
            if column not in names:
                raise InputError(f"{path}: has no column {column!r}; choose one of {', '.join(names)}")
        yield file


def parquet_rows(path: Path, columns: Sequence[str], start: int, stop: int) -> Iterator[tuple[int, Row]]:
    """(index from 0, row) of rows start … stop−1 of a Parquet file; other row groups are not read."""
    with parquet_file(path, columns) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            if first < stop and after > start:
                for number, row in enumerate(_parquet_rows(file, path, columns, [group], first), first):
                    if start <= number < stop:
                        yield number, row
            first = after


def _parquet_rows(
    file: Any, path: Path, columns: Sequence[str] | None, groups: list[int] | None, number: int
) -> Iterator[Row]:
    batches = file.iter_batches(batch_size=256, columns=None if columns is None else list(columns), row_groups=groups)
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield Row(fields, f"{path}: row {number}")
