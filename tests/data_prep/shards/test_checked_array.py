from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from t5_pipeline.core.checksums import block_sha256
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.shards.checked_array import CheckedArray

U2 = np.dtype("<u2")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5_pipeline.core.checksums.BLOCK", 64)
    monkeypatch.setattr("t5_pipeline.data_prep.shards.checked_array.BLOCK", 64)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """100 numbers of 2 bytes: three blocks of 64 bytes and one of 8."""
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(100, dtype=U2).tobytes())
    return path


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 16
    path.write_bytes(content)


def test_every_slice_equals_the_written_numbers(file: Path) -> None:
    array = CheckedArray(file, U2, 100, block_sha256(file), "fix it")
    for start in range(101):
        for stop in range(start, 101):
            assert array.read(start, stop).tolist() == list(range(start, stop))


@pytest.mark.parametrize("byte", [0, 63, 64, 130, 191, 192, 199])
def test_flipped_bit_is_found_by_exactly_the_reads_of_its_block(file: Path, byte: int) -> None:
    checksums = block_sha256(file)
    flip(file, byte)
    damaged = byte // 64
    edges = sorted({0, 1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 99, 100, byte // 2, byte // 2 + 1})
    for start in edges:
        for stop in (edge for edge in edges if edge > start):
            array = CheckedArray(file, U2, 100, checksums, "fix it")
            touched = range(start // 32, (stop - 1) // 32 + 1)
            if damaged in touched:
                message = rf"^{file}: block {damaged + 1} of 4 is damaged; fix it$"
                with pytest.raises(InputError, match=message):
                    array.read(start, stop)
                with pytest.raises(InputError, match=message):  # and again: it never counts as verified
                    array.read(start, stop)
            else:
                assert array.read(start, stop).tolist() == list(range(start, stop))


def test_block_is_verified_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = CheckedArray(file, U2, 100, block_sha256(file), "fix it")
    array.read(10, 40)
    checked: list[int] = []
    monkeypatch.setattr(CheckedArray, "_check", lambda self, first, last: checked.extend(range(first, last + 1)))
    array.read(0, 64)
    assert checked == []
    array.read(63, 65)
    assert checked == [1, 2]


def test_without_checksums(file: Path) -> None:
    flip(file, 3)
    assert len(CheckedArray(file, U2, 100, None, "fix it").read(0, 100)) == 100


def test_too_few_checksums(file: Path) -> None:
    array = CheckedArray(file, U2, 100, block_sha256(file)[:2], "fix it")
    assert len(array.read(0, 64)) == 64
    with pytest.raises(InputError, match="block 3 of 4"):
        array.read(64, 65)


def test_truncated_file(file: Path) -> None:
    checksums = block_sha256(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"numbers: is damaged \(it should have 200 bytes\); fix it"):
        CheckedArray(file, U2, 100, checksums, "fix it")


def test_threads_find_the_same_damage(file: Path) -> None:
    checksums = block_sha256(file)
    flip(file, 70)
    array = CheckedArray(file, U2, 100, checksums, "fix it")
    found: list[int] = []

    def read() -> None:
        for start in range(100):
            try:
                assert array.read(start, start + 1).tolist() == [start]
            except InputError:
                found.append(start // 32)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 32 * 8
