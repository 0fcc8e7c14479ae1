"""Zarr (version 2) arrays, in which T5X and TensorStore keep large arrays as folders of chunks."""

from __future__ import annotations

import itertools
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from t5_pipeline.core.bounded import open_file, read_json
from t5_pipeline.core.errors import InputError

_DENSEST = 1032  # most bytes that zlib makes from one


def from_bytes(buffer: bytes, dtype: str) -> np.ndarray:
    """NumPy has no bfloat16, which is the upper half of a float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(buffer, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(buffer, dtype)


def zarr_layout(folder: Path) -> dict[str, Any]:
    """The metadata of a zarr folder.

    Raises:
        InputError: if they are damaged or describe what is not read.
    """
    path = folder / ".zarray"
    try:
        layout = read_json(path)
        compressor = layout["compressor"] and layout["compressor"]["id"]
        readable = layout["zarr_format"] == 2 and not layout["filters"] and compressor in ("gzip", "zlib", None)
        floats = layout["dtype"] == "bfloat16" or np.dtype(layout["dtype"]).kind == "f"
        sizes = [*layout["shape"], *layout["chunks"]]
        chunked = len(layout["shape"]) == len(layout["chunks"]) and all(type(n) is int and n > 0 for n in sizes)
        if readable and floats and chunked and layout["order"] in ("C", "F"):
            return dict(layout)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: is not the metadata of a zarr array ({reason}); fetch it again") from error
    raise InputError(f"{path}: is not supported; use floats in zarr version 2, gzip, zlib or uncompressed, no filters")


def read_zarr(folder: Path) -> np.ndarray:
    """The array of a zarr (version 2) folder; chunks at the edge are stored whole and cut here.

    Raises:
        InputError: if a chunk is missing or damaged.
    """
    layout = zarr_layout(folder)
    shape, chunk = tuple(layout["shape"]), tuple(layout["chunks"])
    order, dtype = layout["order"], layout["dtype"]
    separator = layout.get("dimension_separator", ".")
    size = math.prod(chunk) * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) * size > stored * _DENSEST:
        raise InputError(f"{folder}: has fewer or smaller chunks than its metadata say; fetch the checkpoint again")
    array = np.empty(shape, np.float32 if dtype == "bfloat16" else dtype)
    for index in itertools.product(*(range(-(-n // c)) for n, c in zip(shape, chunk, strict=True))):
        path = folder / (separator.join(map(str, index)) or "0")
        values = from_bytes(_chunk_bytes(path, layout["compressor"] is not None, size), dtype).reshape(
            chunk, order=order
        )
        start = tuple(i * c for i, c in zip(index, chunk, strict=True))
        here = tuple(slice(a, min(a + c, n)) for a, c, n in zip(start, chunk, shape, strict=True))
        array[here] = values[tuple(slice(0, part.stop - part.start) for part in here)]
    return array


def _chunk_bytes(path: Path, compressed: bool, size: int) -> bytes:
    try:
        with open_file(path) as file:
            data = file.read() if compressed else file.read(size + 1)
        if compressed:
            # Limited to one byte more than expected, so that a damaged or hostile chunk cannot fill the memory.
            data = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(data, size + 1)
    except (OSError, zlib.error) as error:
        raise InputError(f"{path}: is missing or damaged ({error}); fetch the checkpoint again") from error
    if len(data) != size:
        raise InputError(f"{path}: does not contain {size:,} bytes; fetch the checkpoint again")
    return data
