"""Rows of files: JSONL, JSON, CSV, TSV and Parquet, plain or compressed (.gz, .zst), each row with where it stands."""

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
# One line of a CSV file may hold a whole article.
_LONGEST_CSV_FIELD = 2**31 - 1


class Row(dict[str, Any]):
    """The fields of one row, and where it stands: "data/train.jsonl:7"."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def file_format(path: Path) -> str:
    """The suffix that says what a file holds, without its compression: ".jsonl" for train.jsonl.gz.

    >>> file_format(Path("data/train.jsonl.gz"))
    '.jsonl'
    """
    name = Path(path.stem) if path.suffix in COMPRESSIONS else path
    return name.suffix


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file. InputError names the line of a byte that is not UTF-8."""
    return _decode(b"".join(_blocks(path)), path, 1)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, *, header: bool = True, whole: bool = True
) -> Iterator[Row]:
    """Rows of a .jsonl, .json (a list), .csv, .tsv, .txt (as .tsv) or .parquet file.

    columns  Parquet: the columns to read, where not all are needed.
    header   CSV and TSV: the first line names the columns; without it they are named "0", "1", …
    whole    CSV and TSV: a line with fewer columns is an error; otherwise it is passed over
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
                f"{path}: rows cannot be read from {other or 'a file without suffix'};"
                " use .jsonl, .json, .csv, .tsv or .parquet"
            )


def _blocks(path: Path) -> Iterator[bytes]:
    """The (decompressed) bytes of a file, block by block."""
    from zstandard import ZstdError

    if not path.is_file():
        raise InputError(f"{path} does not exist: mend the path")
    try:
        if path.suffix == ".zst":
            yield from _zstd_blocks(path)
            return
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is damaged or not what its suffix says") from None


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    """Frame after frame. zstandard's own file reader takes the end of a cut-off file for the end of its content."""
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
        raise EOFError("it ends in the middle of a frame")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which may be compressed."""
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
    """`text` itself. JSON may hold halves of surrogate pairs, which are no characters: InputError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} is half of a surrogate pair; mend the text") from None
    return text


def json_rows(lines: Iterable[bytes], source: Path | str) -> Iterator[Row]:
    """Rows of JSON lines, wherever these come from: `source` names it in errors. Blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield json_row(line, source, number)


def json_row(line: bytes, source: Path | str, number: int) -> Row:
    """The row that line `number` (from 1) of `source` is."""
    where = f"{source}:{number}"
    try:
        fields = json.loads(_decode(line, source, number))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: a JSON object is wanted on each line, this is a {type(fields).__name__}")
    return Row(fields, where)


def lines_from(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(where it begins, line) of the lines of a plain file that begin at a byte of start … stop−1; None: to its end.

    Cut anywhere, the parts of a file have all its lines, each in one of them.
    """
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the rest of a line that began before; of a line that ended just there nothing but its end
        at = file.tell()
        while (stop is None or at < stop) and (line := file.readline()):
            yield at, line.rstrip(b"\n")
            at += len(line)


def line_number(path: Path, byte: int) -> int:
    """Which line of a plain file (from 1) begins at `byte`."""
    number = 1
    with path.open("rb") as file:
        while byte > 0 and (block := file.read(min(_BLOCK, byte))):
            number += block.count(b"\n")
            byte -= len(block)
    return number


def _json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg} at character {error.colno})") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: a JSON list of objects is wanted, this is a {type(rows).__name__}")
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise InputError(f"{path}: element {number} is a {type(fields).__name__}, not an object")
        yield Row(fields, f"{path}: element {number}")


def _delimited(path: Path, delimiter: str, header: bool, whole: bool) -> Iterator[Row]:
    # A tab-separated file has no quoting: GLUE's hold lone quotation marks.
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
                raise InputError(f"{where}: {len(values)} fields where {len(names)} are wanted ({', '.join(names)})")
            yield Row(dict(zip(names, values, strict=True)), where)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from None


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with parquet_file(path, columns) as file:
        yield from _parquet_rows(file, path, columns, None, 0)


@contextlib.contextmanager
def parquet_file(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    """The open file, a `pyarrow.parquet.ParquetFile` that has these columns. InputError if it is none or lacks one."""
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"{path} does not exist: mend the path")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet file ({str(error).strip()})") from None
    with file:
        names = file.schema_arrow.names
        for column in columns or ():
            if column not in names:
                raise InputError(f"{path}: there is no column {column!r}; there are {', '.join(names)}")
        yield file


def parquet_rows(path: Path, columns: Sequence[str], start: int, stop: int) -> Iterator[tuple[int, Row]]:
    """(number from 0, row) of the rows start … stop−1 of a Parquet file; row groups outside of these are not read."""
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
