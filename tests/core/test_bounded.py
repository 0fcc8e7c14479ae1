"""Files that claim more than they contain, or are not files: errors at once, with little memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_pipeline.core import bounded
from t5_pipeline.core.errors import InputError


@pytest.mark.parametrize("read", [bounded.read_json, bounded.tensor_entries, bounded.read_npy])
@pytest.mark.parametrize("what", ["FIFO", "device", "directory"])
def test_only_regular_files_are_read(tmp_path: Path, read: Callable[[Path], Any], what: str) -> None:
    path = {"FIFO": tmp_path / "fifo", "device": Path("/dev/zero"), "directory": tmp_path}[what]
    if what == "FIFO":
        os.mkfifo(path)
    with pytest.raises(OSError, match="Is a directory" if what == "directory" else "Not a regular file"):
        read(path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="More than 67,108,864 bytes"):
        bounded.read_json(tmp_path / "sparse")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "{", "\xff"])
def test_json_that_cannot_be_parsed(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested|digits|Expecting|decode"):
        bounded.parse_json(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"is not valid JSON \(.*\)"),
        ("[]", "contains a list instead of"),
        (None, r"cannot be read \(No such file or directory\); check the path, or"),
    ],
)
def test_a_file_without_a_json_object(text: str | None, problem: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"^\S+a\.json: {problem}.*fetch it again$"):
        bounded.read_object(tmp_path / "a.json", "fetch it again")


def test_a_file_is_compared_with_a_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    (tmp_path / "long").write_bytes(b"ab\xff" + bytes(1000))
    os.mkfifo(tmp_path / "fifo")
    same = {name: bounded.has_content(tmp_path / name, b"ab\xff") for name in ("a", "long", "fifo", "none", ".")}
    assert same == {"a": True, "long": False, "fifo": False, "none": False, ".": False}


def tensors(path: Path, header: Any, data: bytes = b"\0" * 16) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_of_tensors(tmp_path: Path) -> None:
    path = tensors(tmp_path / "t", {"__metadata__": {"a": "b"}, "x": entry()})
    (found,) = bounded.tensor_entries(path).items()
    assert found == ("x", ("F32", [2, 2], path.stat().st_size - 16, path.stat().st_size))


@pytest.mark.parametrize(
    "header",
    [
        [], {"x": 1}, {"x": entry(shape=[2**62, 2])}, {"x": entry(shape=[-2, -2])}, {"x": entry(shape="ab")},
        {"x": entry(offsets=[0, 17])}, {"x": entry(offsets=[-16, 0])}, {"x": entry(offsets=[0.0, 16.0])},
        {"x": entry(offsets=[0])}, {"x": entry(dtype=None)}, {"x": entry(shape=[True, 4])},
    ],
)  # fmt: skip
def test_a_header_of_wrong_types_or_sizes(tmp_path: Path, header: Any) -> None:
    with pytest.raises(InputError, match="is damaged or not a safetensors file"):
        bounded.tensor_entries(tensors(tmp_path / "t", header))


def test_a_header_that_is_longer_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InputError, match="is damaged or not a safetensors file"):
        bounded.tensor_entries(tmp_path / "t")


def test_an_array_of_256_TiB(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    assert bounded.read_npy(tmp_path / "a.npy").shape == (3, 4)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(content.replace(b"(3, 4), }" + b" " * 16, b"(70368744177664, 1), }   "))
    with pytest.raises(ValueError, match="but the file has another size"):
        bounded.read_npy(tmp_path / "b.npy")
