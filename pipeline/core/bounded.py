"""Bounded readers of files that may come from strangers: whole files, JSON, safetensors headers and .npy arrays.

They read regular files only (a FIFO could block, a device could be endless), and use time and memory in proportion to
the limits below and the size of the file, whatever it says about itself. YAML has its own reader (located_yaml).
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t5_pipeline.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MAX_JSON = 2**26  # bytes
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip


def open_file(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: if it does not exist, cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_file`, or if it has more than `limit` bytes.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > limit or len(content := file.read(limit + 1)) > limit:
            raise OSError(errno.EFBIG, f"More than {limit:,} bytes", str(path))
        return content


def has_content(path: Path, content: bytes) -> bool:
    """Whether a path is a regular file with this content. Reads no more than needed to compare."""
    try:
        return read_file(path, len(content)) == content
    except OSError:
        return False


def parse_json(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or has a number with thousands of digits.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: as `read_file`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_file(path, MAX_JSON))


def read_object(path: Path, repair: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        repair: what to do about a damaged file, for errors: "fetch the model again".

    Raises:
        InputError: if it cannot be read, or is not a JSON object.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path, or {repair}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); {repair}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: contains a {type(content).__name__} instead of a JSON object; {repair}")
    return content


class TensorEntry(NamedTuple):
    """A tensor in a safetensors file: its dtype and shape, and the first and last byte + 1 of its data in the file."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file: name → entry.

    Raises:
        InputError: if the header is damaged, or does not fit the file.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, MAX_JSON):
                raise ValueError("the header is too long")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(of, 8 + length, size) for name, of in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{path}: is damaged or not a safetensors file; fetch or publish it again") from None


def _entry(of: Any, start: int, size: int) -> TensorEntry:
    dtype, shape, (begin, end) = of["dtype"], of["shape"], of["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if not (isinstance(dtype, str) and isinstance(shape, list) and whole and begin <= end <= size - start):
        raise ValueError("wrong types or offsets")
    if dtype in _BITS and math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise ValueError("the shape does not fit the offsets")
    return TensorEntry(dtype, shape, start + begin, start + end)


def read_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file, without pickled objects.

    Raises:
        OSError: as `open_file`.
        ValueError: if it is not a .npy file, or does not contain the array of its header.
    """
    import numpy as np

    with open_file(path) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != os.fstat(file.fileno()).st_size - file.tell():
            raise ValueError(f"its header describes {dtype} {list(shape)}, but the file has another size")
        file.seek(0)
        array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
        return array
