"""Bytes, lines and text of files, plain or compressed (.gz, .zst)."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from t5_pipeline.core.errors import InputError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
"""The suffixes of all files of text or rows that are read."""

COMPRESSIONS = (".gz", ".zst")
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_BLOCK = 2**20  # bytes
LONGEST_LINE = 2**26  # bytes
_ZSTD_BLOCK = 2**13  # compressed bytes; 4 of them can expand to 128 KiB
_LARGEST_WHOLE = 2**31  # bytes that are read as a whole
_MOST_EXPANSION = 200  # of a compressed file; text rarely exceeds 20


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


def is_data_name(path: Path) -> bool:
    """Whether a file is named as one of text or rows, or as a compressed one.

    >>> [is_data_name(Path(name)) for name in ("rows.ndjson", "ROWS.CSV.GZ", "train.de.zst", "wikitext", "c4.v2")]
    [True, True, True, False, False]
    """
    return file_format(path) in FORMATS or compression(path) != ""


def blocks(path: Path) -> Iterator[bytes]:
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
        if "too much memory" in str(error):
            raise InputError(
                f"{path}: needs more than 128 MiB of memory to decompress (zstd --long); compress it again without"
                " --long"
            ) from None
        raise InputError(
            f"cannot read {path} ({error}); check that the file is intact and has the right suffix"
        ) from None


def _expanded(path: Path) -> Iterator[bytes]:
    if compression(path) == ".zst":
        yield from _zstd_blocks(path)
        return
    with gzip.open(path, "rb") if compression(path) == ".gz" else path.open("rb") as file:
        if not compression(path):
            _check_plain(path, file.read(4))
            file.seek(0)
        while block := file.read(_BLOCK):
            yield block


def _check_plain(path: Path, first: bytes) -> None:
    for suffix, magic in _MAGIC.items():
        if first.startswith(magic):
            raise InputError(f"{path}: is compressed; add {suffix} to its name")


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


def whole(path: Path) -> bytes:
    """The decompressed content of a file.

    Raises:
        InputError: if it is too large.
    """
    content = bytearray()
    for block in blocks(path):
        if len(content) + len(block) > _LARGEST_WHOLE:
            raise InputError(f"{path}: has more than {_LARGEST_WHOLE:,} bytes of text; divide it, or use .jsonl")
        content += block
    return bytes(content)


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        InputError: if a byte is not UTF-8; names its line.
    """
    return decode(whole(path), path, 1)


def decode(data: bytes, path: Path | str, first_line: int) -> str:
    """The text of UTF-8 bytes that begin on line `first_line` (from 1) of a file.

    Raises:
        InputError: if a byte is not UTF-8; names its line.
    """
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        text = error.object  # without the byte order mark
        line = first_line + text[: error.start].count(b"\n")
        raise InputError(
            f"{path}:{line}: byte 0x{text[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from None


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or compressed file."""
    rest, number = b"", 1
    for block in blocks(path):
        *complete, rest = (rest + block).split(b"\n")
        _check_length((complete or [rest])[0], path, number)
        yield from complete
        number += len(complete)
    if rest:
        yield rest


def _check_length(line: bytes, path: Path, number: int) -> None:
    if len(line) > LONGEST_LINE:
        raise InputError(f"{path}:{number}: has more than {LONGEST_LINE:,} bytes; divide the line")


def lines_from(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of the lines of a plain file that begin in bytes start … stop−1; None: to the end.

    Consecutive ranges yield every line exactly once.
    """
    with path.open("rb") as file:
        _check_plain(path, file.read(4))
        file.seek(0)
        if start:
            file.seek(start - 1)
            while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass  # skip the rest of the previous line, or only its newline
        at = file.tell()
        while (stop is None or at < stop) and (line := file.readline(LONGEST_LINE + 1)):
            if len(line) > LONGEST_LINE:
                _check_length(line.rstrip(b"\n"), path, line_number(path, at))
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
