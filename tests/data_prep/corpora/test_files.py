from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import zstandard

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora import files
from t5_pipeline.data_prep.corpora.files import LONGEST_LINE, lines, lines_from, read_text
from t5_pipeline.data_prep.corpora.rows import read_rows


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "msr.txt"
    path.write_bytes("\ufeffQuality\t#1 String\n1\tx\n".encode())
    assert [dict(row) for row in read_rows(path)] == [{"Quality": "1", "#1 String": "x"}]
    path = tmp_path / "bom.jsonl"
    path.write_bytes('\ufeff{"text": "x"}\n'.encode())
    assert [dict(row) for row in read_rows(path)] == [{"text": "x"}]


def test_consecutive_zstandard_frames(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"a": 1}\n{"a"') + zstandard.compress(b": 2}\n"))
    assert [row["a"] for row in read_rows(path)] == [1, 2]


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nnot \xe9 fine\n")
    with pytest.raises(InputError, match=r"a\.txt:2: byte 0xe9 is not UTF-8"):
        read_text(path)
    path.write_bytes(b"\xef\xbb\xbfa byte order mark\n\xe9\n")
    with pytest.raises(InputError, match=r"a\.txt:2: byte 0xe9 is not UTF-8"):
        read_text(path)
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "absent.txt")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_bombs(tmp_path: Path, suffix: str) -> None:
    """120 MB of zeros in a few KB."""
    path = tmp_path / f"a.jsonl{suffix}"
    zeros = b"\0" * 120_000_000
    path.write_bytes(gzip.compress(zeros) if suffix == ".gz" else zstandard.compress(zeros))
    with pytest.raises(InputError, match=r"expands to more than 200 times its size|a\.jsonl.*:1: has more than"):
        list(lines(path))
    with pytest.raises(InputError, match=r"expands to more than 200 times its size"):
        read_text(path)


def test_compressed_lines_without_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    for read in (lambda: list(lines(path)), lambda: list(lines_from(path, 0, None))):
        with pytest.raises(InputError, match=r"a\.jsonl: is compressed; add \.gz to its name$"):
            read()


def test_a_long_window_of_zstandard(tmp_path: Path) -> None:
    """As of Pushshift's dumps."""
    path = tmp_path / "a.jsonl.zst"
    settings = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path.write_bytes(compressor.compress(b'{"text": "a"}\n') + compressor.flush())
    with pytest.raises(
        InputError, match=r"a\.jsonl\.zst: needs more than 128 MiB .*; compress it again without --long$"
    ):
        list(lines(path))


def test_the_longest_line_is_the_same_in_plain_and_compressed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 2**22 + 1  # some blocks
    monkeypatch.setattr(files, "LONGEST_LINE", longest)
    for suffix, write in (("", lambda path, data: path.write_bytes(data)), (".gz", _write_gzip)):
        path = tmp_path / f"a.jsonl{suffix}"
        write(path, b"first\n" + b"x" * longest + b"\nlast\n")
        assert [len(line) for line in lines(path)] == [5, longest, 4]
        if not suffix:
            assert [len(line) for _, line in lines_from(path, 0, None)] == [5, longest, 4]
        write(path, b"first\n" + b"x" * (longest + 1) + b"\nlast\n")
        with pytest.raises(InputError, match=rf"a\.jsonl{suffix}:2: has more than"):
            list(lines(path))


def _write_gzip(path: Path, data: bytes) -> None:
    # Stored, not compressed: a line of one letter would expand to more than 200 times its size.
    path.write_bytes(gzip.compress(data, compresslevel=0))


def test_an_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b"first\n")
        file.truncate(2**40)
    for read in (lambda: list(lines(path)), lambda: list(lines_from(path, 0, None))):
        with pytest.raises(InputError, match=rf"a\.jsonl:2: has more than {LONGEST_LINE:,} bytes; divide the line"):
            read()
    os.mkfifo(tmp_path / "fifo.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        list(lines(tmp_path / "fifo.jsonl"))
