"""Rows of Parquet files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.data_prep.corpora.files import compression, whole
from t5_pipeline.data_prep.corpora.narrow_floats import as_written, narrow_fields
from t5_pipeline.data_prep.corpora.row import Row, first_duplicate, listed

# KeyError: a time zone that pytz does not know; pyarrow uses it where it is installed.
_NOT_IN_PYTHON = (ArithmeticError, ValueError, KeyError)


def parquet_file_rows(path: Path, columns: Sequence[str] | None, optional: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet file; for the arguments see `read_rows`."""
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
    source = io.BytesIO(whole(path)) if compression(path) else path
    try:
        file = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file ({one_line(error)}); check the file") from None
    with file:
        names = _parquet_names(file)
        present = _parquet_columns(file)
        for column in columns or ():
            if column not in present:
                raise InputError(f"{path}: has no column {column!r}; choose one of {listed(names)}")
        duplicate = first_duplicate(name for name in names if columns is None or name in columns)
        if duplicate is not None:
            raise InputError(f"{path}: two columns are named {duplicate!r}; rename one")
        yield file


def column_bytes(path: Path, column: str) -> list[tuple[int, int]]:
    """(uncompressed bytes of a column or nested field, rows) of each row group of a Parquet file, from its metadata."""
    with parquet_file(path, [column]) as file:
        paths = [file.schema.column(i).path for i in range(file.metadata.num_columns)]
        # pyarrow ends the process if it looks at the metadata of a damaged column.
        leaves = [i for i, name in enumerate(paths) if f"{name}.".startswith(f"{column}.")]
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        return [(sum(g.column(i).total_uncompressed_size for i in leaves), g.num_rows) for g in groups]


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
                    if number >= stop:
                        return
                    if number >= start:
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
        except _NOT_IN_PYTHON as error:
            _raise_unreadable_value(batch, path, number, error)
        narrow = narrow_fields(batch.schema)
        for fields in rows:
            number += 1
            yield Row(as_written(fields, narrow), f"{path}: row {number}")


def _raise_unreadable_value(batch: Any, path: Path, number: int, error: Exception) -> NoReturn:
    """Raise InputError with the first value of a batch that Python cannot represent, after `number` rows."""
    for row in range(len(batch)):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[row].as_py()
            except _NOT_IN_PYTHON as found:
                raise InputError(
                    f"{path}: row {number + row + 1}: cannot read column {name!r} ({one_line(found)}); fix the value"
                ) from None
    raise InputError(f"{path}: row {number + 1}: cannot read the rows from here on ({one_line(error)}); check the file")
