"""The task and the held-out rows that `tune` makes of its flags; test_run.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.tune.task import hold_out, one_task


def task(train: Path | str, validation: Path | str | None = None, labels: list[str] | None = None) -> TaskConfig:
    files = {"train": Path(train), "validation": validation and Path(validation)}
    return one_task("t", files, inputs="{0}", targets="{1}", labels=labels)


def test_slices_of_one_file(tmp_path: Path) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text("".join(f"text {i}\t{('no', 'yes')[i >= 10]}\n" for i in range(20)))
    made = Task.load(task(f"{rows}[:80%, stratified]", f"{rows}[80%:, stratified]", ["no", "yes"]))
    split = {name: made.rows(name) for name in ("train", "validation")}
    assert sorted(row["1"] for row in split["validation"]) == ["no", "no", "yes", "yes"]
    assert len({row["0"] for rows in split.values() for row in rows}) == 20
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / "rows.tsv[1].tsv"
    other.write_text("x\tno\n")
    assert [row["0"] for row in Task.load(task(rows, other)).rows("validation")] == ["x"]
    assert task(rows, other).splits["validation"] == "more/rows.tsv[1].tsv"


@pytest.mark.parametrize(("train", "validation", "message"), [
    ("absent.tsv[:90%]", None, r"^--train: \S+absent\.tsv does not exist; give a \.jsonl"),
    (".", None, r"^--train: \S+ is a directory; give a \.jsonl"),
    ("rows.tsv[:90%, sorted]", None, r"^--train: .* 'sorted' is not an order of rows"),
    ("rows.tsv", "rows.tsv[x:]", r"^--validation: .* 'x' is not a whole number"),
    ("rows.tsv[:90%, shuffled]", "rows.tsv[90%:]", r"^--train: .* take its rows in different orders"),
    ("rows.tsv[:90%, stratified]", None, r"^--train: .* a stratified slice needs a task with `labels`"),
])  # fmt: skip
def test_bad_files_and_slices(tmp_path: Path, train: str, validation: str | None, message: str) -> None:
    (tmp_path / "rows.tsv").write_text("x\tno\n")
    with pytest.raises(InputError, match=message):
        task(tmp_path / train, validation and tmp_path / validation)


def test_held_out_rows(tmp_path: Path) -> None:
    """A tenth for validation and a tenth for test, with the same share of each label, by a seed."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("".join(f"text {i}\t{('no', 'yes')[i >= 30]}\n" for i in range(60)))
    labels = ["no", "yes"]

    def split(made: TaskConfig) -> dict[str, list[str]]:
        return {name: [row["0"] for row in Task.load(made).rows(name)] for name in made.splits}

    parts = split(hold_out(task(rows, None, labels), 0))
    assert {name: len(part) for name, part in parts.items()} == {"train": 48, "validation": 6, "test": 6}
    assert len(set().union(*parts.values())) == 60
    assert sum(int(text.split()[1]) >= 30 for text in parts["test"]) == 3
    assert split(hold_out(task(rows, None, labels), 0)) == parts
    assert split(hold_out(task(rows, None, labels), 1))["test"] != parts["test"]
    assert hold_out(task(rows), 0).splits["test"] == "rows.tsv[90%:100%, shuffled=0]"

    assert hold_out(task(rows, rows), 0) == task(rows, rows), "given validation rows leave the training rows whole"
    last = hold_out(task(rows, None, labels), 0, "last")
    assert last.splits == {"train": "rows.tsv[:90%, stratified=0]", "test": "rows.tsv[90%:100%, stratified=0]"}
    cut = task(f"{rows}[:50%]")
    assert hold_out(cut, 0, "last") == cut
    with pytest.raises(InputError, match=r"^--train: a slice is not divided again"):
        hold_out(cut, 0)
    rows.write_text("x\tno\n" * 7)
    assert hold_out(task(rows), 0) == task(rows), "too few rows to hold some out are all trained on"


def test_a_test_file_is_not_cut_from_the_training_rows(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.tsv" for name in ("train", "test")}
    for file in files.values():
        file.write_text("x\tno\n" * 10)
    given = one_task("t", files, inputs="{0}", targets="{1}")
    assert hold_out(given, 3).splits == {
        "train": "train.tsv[:90%, shuffled=3]", "validation": "train.tsv[90%:100%, shuffled=3]", "test": "test.tsv"
    }  # fmt: skip
