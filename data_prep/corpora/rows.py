"""Rows of JSONL, JSON, CSV, TSV and Parquet files, plain or compressed (.gz, .zst), with their locations."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from t5_pipeline.core.errors import InputError

COMPRESSIONS = (".gz", ".zst")
_BLOCK = 2**20  # bytes
LONGEST_LINE = 2**26  # bytes
_ZSTD_BLOCK = 2**13  # compressed bytes; 4 of them can expand to 128 KiB
_LARGEST_WHOLE = 2**31  # bytes that are read as a whole
_MOST_EXPANSION = 200  # of a compressed file; text rarely exceeds 20
# One CSV field may contain a whole article.
_LONGEST_CSV_FIELD = 2**31 - 1
_TSV_VALUE = re.compile(r'("[^"]*(?:""[^"]*)*"|[^"\t\r\n]*)(\t|\r\n|\r|\n|\Z)')


MISSING = object()
"""The value of a field that a row does not have."""


class Row(dict[str, Any]):
    """The fields of one row, and its location for errors, such as "data/train.jsonl:7"."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def field(self, name: str) -> object:
        """The value of a field, or of a field in a nested object ("meta.title"); MISSING if there is none."""
        value: object = self
        for key in [name] if name in self else name.split("."):
            if not isinstance(value, dict) or key not in value:
                return MISSING
            value = value[key]
        return value


def compression(path: Path) -> str:
    """The suffix of a file's compression in lower case; "" if it has none.

    >>> compression(Path("data/TRAIN.JSONL.GZ"))
    '.gz'
    """
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def file_format(path: Path) -> str:
    """The suffix of a file in lower case, without its compression.

    >>> file_format(Path("data/Train.JSONL.gz"))
    '.jsonl'
    """
    return Path(path.stem if compression(path) else path.name).suffix.lower()


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        InputError: if a byte is not UTF-8; names its line.
    """
    return _decode(_whole(path), path, 1)


def read_rows(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    header: bool = True,
    whole: bool = True,
) -> Iterator[Row]:
    """Rows of a .jsonl, .json, .csv, .tsv, .txt (as .tsv) or .parquet file.

    A .json file contains a list of objects or JSON lines. Values that a CSV or TSV writer quoted are unquoted; a TSV
    file that contains quotation marks as text is read literally.

    Args:
        path: the file; suffixes in any case, plain or compressed.
        columns: Parquet only: the columns to read, or fields of nested columns ("meta.title"); None reads all.
        optional: Parquet only: columns that are also read if the file has them.
        header: CSV and TSV only: the first line names the columns; otherwise their names are "0", "1", …
        whole: CSV and TSV only: a line with too few columns is an error; otherwise it is skipped, and quotation marks
            are text.

    Raises:
        InputError: if the file or a row is malformed; names the line.
    """
    match file_format(path):
        case ".jsonl":
            return json_rows(lines(path), path)
        case ".json":
            return _json_list(path) if _first_byte(path) == b"[" else json_rows(lines(path), path)
        case ".csv":
            return _csv(path, header)
        case ".tsv" | ".txt":
            return _tsv(path, header, whole)
        case ".parquet":
            return _parquet(path, columns, optional)
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
    most = path.stat().st_size * _MOST_EXPANSION + 64 * _BLOCK if compression(path) else sys.maxsize
    try:
        for block in _expanded(path):
            most -= len(block)
            if most < 0:
                raise InputError(
                    f"{path}: expands to more than {_MOST_EXPANSION} times its size; decompress it yourself"
                )
            yield block
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        raise InputError(
            f"cannot read {path} ({error}); check that the file is intact and has the right suffix"
        ) from None


def _whole(path: Path) -> bytes:
    """The decompressed content of a file.

    Raises:
        InputError: if it is too large.
    """
    content = bytearray()
    for block in _blocks(path):
        if len(content) + len(block) > _LARGEST_WHOLE:
            raise InputError(f"{path}: has more than {_LARGEST_WHOLE:,} bytes of text; divide it, or use .jsonl")
        content += block
    return bytes(content)


def _expanded(path: Path) -> Iterator[bytes]:
    if compression(path) == ".zst":
        yield from _zstd_blocks(path)
        return
    with gzip.open(path, "rb") if compression(path) == ".gz" else path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame, because zstandard's file reader does not report a truncated file."""
    from zstandard import ZstdDecompressor

    decompressor = ZstdDecompressor()
    frame = None
    with path.open("rb") as file:
        while block := file.read(_ZSTD_BLOCK):
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
        _check_line(rest, path)
    if rest:
        yield rest


def _check_line(line: bytes, path: Path) -> bytes:
    if len(line) > LONGEST_LINE:
        raise InputError(f"{path}: has a line of more than {LONGEST_LINE:,} bytes; divide it")
    return line


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
        fields = _parse_json(_decode(line, source, number))
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at character {error.pos + 1})"
        raise InputError(f"{where}: {reason}; write one object per line") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot read the line ({error}); fix the line") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: is a JSON {type(fields).__name__}; write one object per line")
    return Row(fields, where)


def _parse_json(text: str) -> Any:
    """Parse JSON in which no object has the same field twice."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"two fields are named {_duplicate([name for name, _ in pairs])!r}")
    return fields


def _duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _first_byte(path: Path) -> bytes:
    """The first byte that is not blank, after a byte order mark; empty if there is none."""
    for block in _blocks(path):
        if rest := block.removeprefix(codecs.BOM_UTF8).lstrip():
            return rest[:1]
    return b""


def lines_from(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of the lines of a plain file that begin in bytes start … stop−1; None: to the end.

    Consecutive ranges yield every line exactly once.
    """
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass  # skip the rest of the previous line, or only its newline
        at = file.tell()
        while (stop is None or at < stop) and (line := _check_line(file.readline(LONGEST_LINE + 1), path)):
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
        return _parse_json(read_text(path))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.colno}); fix the file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read the file ({error}); fix the file") from None


def _json_list(path: Path) -> Iterator[Row]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: is a JSON {type(rows).__name__}; write a list of objects")
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise InputError(f"{path}: element {number} is a {type(fields).__name__}; write a list of objects")
        yield Row(fields, f"{path}: element {number}")


def _csv(path: Path, header: bool) -> Iterator[Row]:
    text = read_text(path)
    return _delimited(path, text, _delimiter(text), True, header, True)


def _delimiter(text: str) -> str:
    """The delimiter of CSV: a comma, unless the lines are only consistent with semicolons or tabs."""
    first = text.partition("\n")[0]
    others = [delimiter for delimiter in ";\t" if delimiter in first]
    if others and ("," not in first or _columns(text, ",", True) < 2):
        return next((delimiter for delimiter in others if _columns(text, delimiter, True) > 1), ",")
    return ","


def _tsv(path: Path, header: bool, whole: bool) -> Iterator[Row]:
    text = read_text(path)
    return _delimited(path, text, "\t", whole and _is_quoted(text), header, whole)


def _is_quoted(text: str) -> bool:
    """Whether a TSV file was written with quoting, as pandas and spreadsheets write it.

    Such a file has quotation marks only around values, and doubled inside. It quotes values that contain a mark, tab or
    line break, or else all text, including the first line. GLUE's files have marks anywhere in the text.
    """
    if '"' not in text:
        return False
    records: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        match = _TSV_VALUE.match(text, at)
        if match is None:
            return False
        at = match.end()
        records[-1].append(match[1])
        if match[2] != "\t":
            records.append([])
    records = [values for values in records if values not in ([], [""])]
    if len({len(values) for values in records}) != 1:
        return False
    inner = [value[1:-1] for values in records for value in values if value.startswith('"')]
    if any(mark in value for value in inner for mark in "\t\r\n"):
        return _columns(text, "\t", False) < 2  # otherwise the lines form a table without quoting
    columns = zip(*records, strict=True)
    all_text = len(records) > 1 and any(all(value.startswith('"') for value in values) for values in columns)
    return all_text or any('"' in value for value in inner)


def _columns(text: str, delimiter: str, quoted: bool) -> int:
    """The number of values in each line; 0 if it differs or a quoted value is malformed."""
    try:
        found = {len(values) for values, _ in _records(text, delimiter, quoted, "")}
    except InputError:
        return 0
    return found.pop() if len(found) == 1 else 0


def _records(text: str, delimiter: str, quoted: bool, path: Path | str) -> Iterator[tuple[list[str], int]]:
    """(values, number of the last line) of each record that is not blank."""
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for values in reader:
            if values:
                yield values, reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}); fix the line") from None


def _delimited(path: Path, text: str, delimiter: str, quoted: bool, header: bool, whole: bool) -> Iterator[Row]:
    names: list[str] | None = None
    for values, line in _records(text, delimiter, quoted, path):
        where = f"{path}:{line}"
        if names is None:
            names = values if header else [str(i) for i in range(len(values))]
            # Columns without a name, which spreadsheets add at the end, cannot be used.
            if duplicate := _duplicate(name for name in names if name):
                raise InputError(f"{where}: two columns are named {duplicate!r}; rename one")
            if header:
                continue
        if len(values) < len(names) and not whole:
            continue
        if len(values) != len(names):
            raise InputError(f"{where}: has {len(values)} fields, not {len(names)} ({', '.join(names)}); fix the line")
        yield Row(dict(zip(names, values, strict=True)), where)


# -------------------------------------------------------------------------------------------------------------- parquet


def _parquet(path: Path, columns: Sequence[str] | None, optional: Sequence[str]) -> Iterator[Row]:
    with parquet_file(path, columns) as file:
        if columns is not None:
            present = _parquet_columns(file)
            columns = [*columns, *(column for column in optional if column in present)]
        yield from _parquet_rows(file, path, columns, None, 0)


@contextlib.contextmanager
def parquet_file(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    """Open a Parquet file, as a `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: if it is not a Parquet file, or lacks one of `columns` or has it twice.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    source = io.BytesIO(_whole(path)) if compression(path) else path
    try:
        file = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file ({one_line(error)}); check the file") from None
    with file:
        names = _parquet_names(file)
        present = _parquet_columns(file)
        for column in columns or ():
            if column not in present:
                raise InputError(f"{path}: has no column {column!r}; choose one of {', '.join(names)}")
        duplicate = _duplicate(name for name in names if columns is None or name in columns)
        if duplicate is not None:
            raise InputError(f"{path}: two columns are named {duplicate!r}; rename one")
        yield file


def _parquet_names(file: Any) -> list[str]:
    """The names of the columns, read from the Parquet schema, whose types Arrow may not know."""
    return [field.name for field in file.schema_arrow]


def _parquet_columns(file: Any) -> set[str]:
    """The names of the columns and of the fields in nested columns ("meta.title")."""
    paths = [file.schema.column(i).path.split(".") for i in range(file.metadata.num_columns)]
    return {".".join(path[: i + 1]) for path in paths for i in range(len(path))}


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
    import pyarrow

    batches = file.iter_batches(batch_size=256, columns=None if columns is None else list(columns), row_groups=groups)
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: row {number + 1}: cannot read the rows from here on ({one_line(error)}); check the file"
            ) from None
        if batch is None:
            return
        try:
            rows = batch.to_pylist()
        except (ArithmeticError, ValueError) as error:
            _raise_unreadable_value(batch, path, number, error)
        for fields in rows:
            number += 1
            yield Row(fields, f"{path}: row {number}")


def _raise_unreadable_value(batch: Any, path: Path, number: int, error: Exception) -> NoReturn:
    """Raise InputError with the first value of a batch that Python cannot represent, after `number` rows."""
    for row in range(len(batch)):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[row].as_py()
            except (ArithmeticError, ValueError) as found:
                raise InputError(
                    f"{path}: row {number + row + 1}: cannot read column {name!r} ({one_line(found)}); fix the value"
                ) from None
    raise InputError(f"{path}: row {number + 1}: cannot read the rows from here on ({one_line(error)}); check the file")


def one_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
