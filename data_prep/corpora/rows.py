"""Rows of JSONL, JSON, CSV, TSV and Parquet files, plain or compressed (.gz, .zst), with their locations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import file_format, lines
from t5_pipeline.data_prep.corpora.json_rows import json_file, json_rows
from t5_pipeline.data_prep.corpora.parquet import parquet_file_rows
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.corpora.tables import csv_rows, tsv_rows


def read_rows(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    header: bool = True,
    skipped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Rows of a .jsonl (or .ndjson), .json, .csv, .tsv, .txt (as .tsv) or .parquet file.

    A .json file contains a list of objects or JSON lines. Values that a CSV or TSV writer quoted are unquoted; a TSV
    file that contains quotation marks as text is read literally.

    Args:
        path: the file; suffixes in any case, plain or compressed.
        columns: Parquet only: the columns to read, or fields of nested columns ("meta.title"); None reads all.
        optional: Parquet only: columns that are also read if the file has them.
        header: CSV and TSV only: the first line names the columns; otherwise their names are "0", "1", …
        skipped: TSV only: counts the lines with too few columns, which are skipped, by reason; quotation marks are
            text. None: such a line is an error.

    Raises:
        InputError: if the file or a row is malformed; names the line.
    """
    match file_format(path):
        case ".jsonl" | ".ndjson":
            return json_rows(lines(path), path)
        case ".json":
            return json_file(path)
        case ".csv":
            return csv_rows(path, header)
        case ".tsv" | ".txt":
            return tsv_rows(path, header, skipped)
        case ".parquet":
            return parquet_file_rows(path, columns, optional)
        case other:
            if not path.exists():
                raise InputError(f"{path} does not exist; check the path")
            problem = f"{other} is not a known format of rows" if other else "has no suffix"
            problem = "is a directory" if path.is_dir() else problem
            raise InputError(f"{path}: {problem}; give a .jsonl, .json, .csv, .tsv or .parquet file")
