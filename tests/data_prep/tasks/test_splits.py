"""Files and slices of splits, and their digests."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.splits import Slice, share_rows, split_file, split_slice
from t5_pipeline.data_prep.tasks.task import Task


@given(rows=st.integers(0, 300), cut=st.integers(0, 100))
def test_complementary_slices_cover_all_rows(rows: int, cut: int) -> None:
    first, second = split_slice(f"train[:{cut}%]")[1], split_slice(f"train[{cut}%:]")[1]
    assert first is not None
    assert second is not None
    assert first.of(rows) + second.of(rows) == list(range(rows))


@given(rows=st.integers(0, 50), begin=st.integers(-60, 60), end=st.integers(-60, 60))
def test_numbers_slice_as_in_python(rows: int, begin: int, end: int) -> None:
    assert Slice(str(begin), str(end)).of(rows) == list(range(rows))[begin:end]


@given(rows=st.integers(0, 10_000), percent=st.integers(0, 100))
def test_percentage_is_rounded_to_the_nearest_row(rows: int, percent: int) -> None:
    size = Slice("", f"{percent}%").range_of(rows).stop
    assert abs(size * 100 - percent * rows) <= 50
    assert Slice(f"-{percent}%", "").range_of(rows).start in (
        rows - size,
        rows - size + 1,
    )  # halves round up from below, too


@given(
    rows=st.lists(st.sampled_from("aaaaabbc"), max_size=80),
    cuts=st.lists(st.integers(0, 100), min_size=1, max_size=3).map(sorted),
    order=st.sampled_from(["shuffled", "stratified"]),
    seed=st.integers(0, 3),
)
def test_slices_of_one_order_share_no_row(rows: list[str], cuts: list[int], order: Any, seed: int) -> None:
    """Adjacent slices contain every row once, in the order of the file; stratified ones every class in proportion."""
    bounds = ["", *(f"{cut}%" for cut in cuts), ""]
    parts = [Slice(*pair, order, seed).of(len(rows), rows) for pair in itertools.pairwise(bounds)]
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    assert all(part == sorted(part) for part in parts)
    for part in parts if order == "stratified" else ():
        for label, count in Counter(rows).items():
            found = sum(rows[i] == label for i in part)
            assert abs(found - count * len(part) / len(rows)) <= len(set(rows)) / 2 + 1


@pytest.mark.parametrize("rare", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_rare_classes_are_in_every_slice(rare: int, seed: int) -> None:
    """20 classes of few rows have their share of the last two tenths, as two frequent classes have."""
    rows = ["a"] * 100 + ["b"] * 100 + [f"c{i}" for i in range(20) for _ in range(rare)]
    for bounds in (("", "80%"), ("80%", "90%"), ("90%", "")):
        part = [rows[i] for i in Slice(*bounds, "stratified", seed).of(len(rows), rows)]
        found, share = Counter(part), len(part) / len(rows)
        assert all(abs(found[label] - count * share) <= 1 for label, count in Counter(rows).items())
        assert abs(sum(found[label] for label in found if label[0] == "c") - 20 * rare * share) <= 2


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("a", "a[1000:2000]", True),  # of every file that is long enough
        ("a[:5000]", "a[4000:]", True),
        ("a[:80%]", "a[79%:]", True),
        ("a[:-500]", "a[-600:]", True),
        ("a[:-500]", "a[-500:]", False),
        ("a[:90%]", "a[5000:]", False),  # not of a file of 5,100 rows
        ("a[:90%]", "a[-500:]", False),
    ],
)
def test_slices_that_share_rows_at_every_length_of_the_file(first: str, second: str, shared: bool) -> None:
    parts = [split_slice(split)[1] for split in (first, second)]
    assert share_rows(*parts) == share_rows(*reversed(parts)) == shared


def test_orders_depend_on_the_seed_and_mix_sorted_files(tmp_path: Path) -> None:
    rows = [{"a": str(i), "b": "no" if i < 80 else "yes"} for i in range(100)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(split: str) -> list[Row]:
        fields: dict[str, Any] = {"inputs": "{a}", "targets": "{b}", "labels": ["no", "yes"], "splits": {"s": split}}
        return Task.load(TaskConfig(name="t", data=str(tmp_path), **fields)).rows("s")

    for order in ("shuffled", "stratified"):
        assert read(f"all[:50%, {order}]") == read(f"all[:50%,{order} = 0]") != read(f"all[:50%, {order}=1]")
    assert Counter(row["b"] for row in read("all[90%:]")) == {"yes": 10}
    assert Counter(row["b"] for row in read("all[90%:, stratified]")) == {"no": 8, "yes": 2}
    assert len({row["b"] for row in read("all[90%:, shuffled]")}) == 2
    assert read("all[90%:, shuffled]") == [rows[i] for i in Slice("90%", "", "shuffled").of(100)]


@pytest.mark.parametrize(("changed", "message"), [
    ({"splits": {"train": "x[:90%, stratified]"}, "labels": None}, "needs a task with `labels`; use `shuffled`"),
    ({"splits": {"train": "x[:9, stratified]"}, "reader": "multirc"}, "needs a reader without passages; use `shuffled`"),
    ({"splits": {"train": "x[:90%, shuffled]", "test": "x[90%:]"}}, "the slices of x take its rows in different orders"),
    ({"splits": {"train": "x[:90%, shuffled]", "test": "x.csv[90%:, shuffled=1]"}}, "slices of x.csv take its rows in"),
])  # fmt: skip
def test_slices_that_cannot_be_taken_or_can_overlap(changed: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"name": "t", "data": "d", "inputs": "{a}", "targets": "{b}", "labels": ["no", "yes"]}
    with pytest.raises(ValidationError, match=message):
        TaskConfig(**{**fields, **changed})


@pytest.mark.parametrize(("split", "name", "part"), [
    ("train", "train", None),
    ("new_wiki_v1.0.json[80%:90%]", "new_wiki_v1.0.json", Slice("80%", "90%")),
    ("val[ : 100 ]", "val", Slice("", "100")),
    ("train[-500:]", "train", Slice("-500", "")),
    ("train[10%:500]", "train", Slice("10%", "500")),
    ("train[:90%, shuffled]", "train", Slice("", "90%", "shuffled")),
    ("train[90%: , stratified = 12]", "train", Slice("90%", "", "stratified", 12)),
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
    ("train[:90%, shufled]", "'shufled' is not an order of rows; write train.:90%, shuffled. or"),
    ("train[:90%,]", "'' is not an order of rows"),
    ("train[shuffled]", "has no range of rows; write train"),
    ("train.jsonl[90%", "has a bracket without its partner; write a slice as in train"),
    ("train.jsonl:90%]", "has a bracket without its partner"),
    ("train[:90%, shuffled=-1]", "'shuffled=-1' is not an order"),
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


def test_rows_without_a_target_are_dropped_from_stratified_slices_of_csv(tmp_path: Path) -> None:
    """In CSV a null is an empty text."""
    (tmp_path / "all.csv").write_text("text,label\na,no\nb,\nc,yes\nd,no\n")
    for order in ("", ", shuffled", ", stratified"):
        task = TaskConfig(
            name="t", data=str(tmp_path), inputs="{text}", targets="{label}", labels=["no", "yes"], nulls="drop",
            splits={"s": f"all[:100%{order}]"},
        )  # fmt: skip
        rows = Task.load(task).rows("s")
        assert [row["text"] for row in rows] == ["a", "c", "d"]
        assert rows.dropped == {"without label": 1}


def test_slices_of_one_file_under_two_names_need_one_order(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text('{"a": "x", "b": "y"}\n')
    splits = {"train": "train[:80%, shuffled]", "test": "all[80%:]"}
    with pytest.raises(ValueError, match="take its rows in different orders and can overlap"):
        TaskConfig(name="t", data=str(tmp_path / "all.jsonl"), inputs="{a}", targets="{b}", splits=splits)


def test_a_split_in_a_txt_file_needs_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("text\tlabel\na\tx\n")
    task = TaskConfig(name="t", data=str(tmp_path), inputs="{text}", targets="{label}")
    assert [row["text"] for row in Task.load(task).rows("train")] == ["a"]
    (tmp_path / "train.jsonl").write_text('{"text": "b", "label": "y"}\n')  # then the text is a note
    assert [row["text"] for row in Task.load(task).rows("train")] == ["b"]
