"""Rows of data sets on the Hugging Face hub, streamed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.hub_network import network_error
from t5_pipeline.data_prep.corpora.files import is_data_name
from t5_pipeline.data_prep.corpora.narrow_floats import as_written, narrow_fields
from t5_pipeline.data_prep.corpora.row import Row, listed


def may_be_on_hub(location: str) -> bool:
    """Whether a location that does not exist here may be a data set on the hub, rather than the path of a file.

    >>> [may_be_on_hub(text) for text in ("rajpurkar/squad", "lab/rows.v2", "lab/rows.jsonl", "rows.ndjson.zst")]
    [True, True, False, False]
    """
    return is_hub_name(location) and not is_data_name(Path(location))


def hub_shards(name: str, config: str | None, split: str) -> int:
    """The number of shards from which `datasets` streams a split of a hub data set."""
    return int(_stream(name, config, split).num_shards)


def shard_rows(name: str, config: str | None, split: str, column: str, index: int, of: int) -> Iterator[Row]:
    """One column of shard `index` of the `of` shards of a split."""
    stream = _selected(_stream(name, config, split), f"{name}/{split}", [column], [])
    where = f"{name}/{split}, shard {index + 1} of {of}"
    for number, fields in enumerate(_fetched(stream.shard(num_shards=of, index=index), where), 1):
        yield Row(fields, f"{where}: row {number}")


def hub_rows(
    name: str, config: str | None, split: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of a split of a hub data set, with class labels as their names.

    Args:
        columns: the columns to read, or fields of nested columns ("meta.title"); if the data set does not describe its
            columns, all are read.
        optional: columns that are also read if the data set has them.

    Raises:
        InputError: if the data set cannot be read, or lacks one of `columns`.
    """
    from datasets import ClassLabel

    where = f"{name}/{split}"
    stream = _selected(_stream(name, config, split), where, columns, optional)
    names = {
        column: feature.names for column, feature in (stream.features or {}).items() if isinstance(feature, ClassLabel)
    }

    narrow = narrow_fields(stream.features.arrow_schema) if stream.features else {}

    def read() -> Iterator[Row]:
        for number, fields in enumerate(_fetched(stream, where), 1):
            labeled = {c: names[c][fields[c]] for c in names if isinstance(fields.get(c), int) and fields[c] >= 0}
            yield Row({**as_written(fields, narrow), **labeled}, f"{where}: row {number}")

    return read()


def _selected(stream: Any, where: str, columns: Sequence[str], optional: Sequence[str]) -> Any:
    """The stream without the columns that are not needed, if it describes its columns."""
    if stream.features is None:
        return stream
    present = list(stream.features)
    # "meta.title" is a column of this name, or else a field of the column "meta".
    needed = [column if column in present else column.partition(".")[0] for column in columns]
    for column, of in zip(columns, needed, strict=True):
        if of not in present:
            raise InputError(f"{where}: has no column {column!r}; choose one of {listed(present)}")
    return stream.select_columns([column for column in present if column in {*needed, *optional}])


# Cached, so that the hub lists the files of a data set once per process, not once per shard.
@functools.lru_cache(maxsize=4)
def _stream(name: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        if is_hub_name(name) and (no_network := network_error()) is not None:
            raise no_network
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub, the network and loading scripts raise anything
        of = f"config {config}, split {split}" if config else f"split {split}"
        raise InputError(
            f"{name}: does not exist here, and cannot be read from the hub ({of}):"
            f" {one_line(error)}; check the path, or the name and the network"
        ) from None


def _fetched(stream: Any, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream, with network errors and damaged files reported in one line."""
    rows = iter(stream)
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as above; `datasets` has already retried
            raise InputError(f"{where}: cannot read it ({one_line(error)}); run the same command to resume") from None
        yield fields
