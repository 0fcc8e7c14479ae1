"""Files and slices of splits, and their digests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.splits import Slice, split_file, split_slice


@given(rows=st.integers(0, 300), cut=st.integers(0, 100))
def test_complementary_slices_cover_all_rows(rows: int, cut: int) -> None:
    first, second = split_slice(f"train[:{cut}%]")[1], split_slice(f"train[{cut}%:]")[1]
    assert first is not None
    assert second is not None
    everything = list(range(rows))
    assert everything[first.of(rows)] + everything[second.of(rows)] == everything


@given(rows=st.integers(0, 50), begin=st.integers(-60, 60), end=st.integers(-60, 60))
def test_numbers_slice_as_in_python(rows: int, begin: int, end: int) -> None:
    everything = list(range(rows))
    assert everything[Slice(str(begin), str(end)).of(rows)] == everything[begin:end]


@given(rows=st.integers(0, 10_000), percent=st.integers(0, 100))
def test_percentage_is_rounded_to_the_nearest_row(rows: int, percent: int) -> None:
    size = Slice("", f"{percent}%").of(rows).stop
    assert abs(size * 100 - percent * rows) <= 50
    assert Slice(f"-{percent}%", "").of(rows).start in (rows - size, rows - size + 1)  # halves round up from below, too


@pytest.mark.parametrize(("split", "name", "part"), [
    ("train", "train", None),
    ("new_wiki_v1.0.json[80%:90%]", "new_wiki_v1.0.json", Slice("80%", "90%")),
    ("val[ : 100 ]", "val", Slice("", "100")),
    ("train[-500:]", "train", Slice("-500", "")),
    ("train[10%:500]", "train", Slice("10%", "500")),
    ("a[1].jsonl", "a[1].jsonl", None),
])  # fmt: skip
def test_split_name_and_slice(split: str, name: str, part: Slice | None) -> None:
    assert split_slice(split) == (name, part)


@pytest.mark.parametrize(("split", "message"), [
    ("train[:x]", "'x' is not a whole number of rows or percent; write train"),
    ("train[1.5:]", "'1.5' is not a whole number"),
    ("train[0:10:2]", "'10:2' is not a whole number"),
    ("train[110%:]", "110% is more than 100%"),
    ("train[90%]", "has no range of rows; write train"),
    ("train[90%:80%]", "90%:80% contains no row"),
    ("train[100:100]", "100:100 contains no row"),
    ("[:90%]", "has no split name"),
])  # fmt: skip
def test_invalid_slices(split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_slice(split)


def test_file_of_a_slice(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"a": "x", "b": "y"}\n')
    splits = {"train": "train[:90%]", "validation": "train.jsonl[90%:]"}
    for data in (tmp_path, train):
        assert {split_file(str(data), split) for split in splits.values()} == {train}
    task = TaskConfig(name="t", data=str(tmp_path), inputs="{a}", targets="{b}", splits=splits)
    assert task.files() == {"train": train, "validation": train}
    before = DigestCache(None).of_task(task)
    train.write_text('{"a": "x", "b": "z"}\n')
    assert DigestCache(None).of_task(task) != before
    whole = task.model_copy(update={"splits": {"train": "train", "validation": "train.jsonl"}})
    assert whole.files() == task.files()
    # Slices are settings, and settings are part of every fingerprint.
    assert whole.model_dump() != task.model_dump()


@pytest.mark.parametrize("name", ["train.JSONL", "train.Csv", "train.csv.GZ", "train.parquet.zst"])
def test_suffix_in_any_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert split_file(str(tmp_path), "train") == tmp_path / name
    assert split_file(str(tmp_path / name), "train") == tmp_path / name


def test_two_files_of_one_split(tmp_path: Path) -> None:
    for name in ("train.csv", "train.jsonl", "train.v2.csv"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"train\.csv and train\.jsonl are both the split 'train'; name one"):
        split_file(str(tmp_path), "train[:90%]")
    assert split_file(str(tmp_path), "train.csv") == tmp_path / "train.csv"
    assert split_file(str(tmp_path), "train.v2") == tmp_path / "train.v2.csv"
    assert split_file(str(tmp_path / "train.csv"), "train") == tmp_path / "train.csv"
    assert (
        split_file(str(tmp_path), f"../{tmp_path.name}/train.v2") == tmp_path / "../" / tmp_path.name / "train.v2.csv"
    )
