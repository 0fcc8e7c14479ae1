"""The task that `tune` makes of its flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.cli.tune import one_task
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.task import Task


def task(train: Path | str, validation: Path | str | None = None, labels: list[str] | None = None) -> TaskConfig:
    held_out = None if validation is None else Path(validation)
    return one_task("t", Path(train), "{0}", "{1}", labels, None, held_out)


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


@pytest.mark.parametrize(("train", "validation", "message"), [
    ("absent.tsv[:90%]", None, r"^--train: \S+absent\.tsv does not exist; give a \.jsonl"),
    ("rows.tsv[:90%, sorted]", None, r"^--train: .* 'sorted' is not an order of rows"),
    ("rows.tsv", "rows.tsv[x:]", r"^--validation: .* 'x' is not a whole number"),
    ("rows.tsv[:90%, shuffled]", "rows.tsv[90%:]", r"^--train: .* take its rows in different orders"),
    ("rows.tsv[:90%, stratified]", None, r"^--train: .* a stratified slice needs a task with `labels`"),
])  # fmt: skip
def test_bad_files_and_slices(tmp_path: Path, train: str, validation: str | None, message: str) -> None:
    (tmp_path / "rows.tsv").write_text("x\tno\n")
    with pytest.raises(InputError, match=message):
        task(tmp_path / train, validation and tmp_path / validation)
