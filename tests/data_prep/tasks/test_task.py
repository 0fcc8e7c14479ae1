from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tasks.template import Template
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.tasks.small_task import ROWS, settings, write


def test_rows_of_a_folder_a_file_and_a_named_split(tmp_path: Path) -> None:
    path = write(tmp_path)
    write(tmp_path, "val.jsonl", ROWS[:3])
    assert Task.load(settings(tmp_path)).rows("train") == ROWS
    assert Task.load(settings(path)).rows("train") == ROWS
    task = Task.load(settings(tmp_path, splits={"train": "train.jsonl", "validation": "val.jsonl"}))
    assert task.rows("validation") == ROWS[:3]
    assert task.rows("validation")[1].where == f"{tmp_path}/val.jsonl:2"


def test_data_file_is_never_used_for_a_split_without_file(tmp_path: Path) -> None:
    path = write(tmp_path, "reviews.jsonl")
    task = Task.load(settings(path, splits={"train": "train", "own": "reviews", "held": "held", "far": "../far.jsonl"}))
    assert task.rows("train") == task.rows("own") == ROWS
    with pytest.raises(
        InputError,
        match=r"tasks\.t\.splits: .+/reviews\.jsonl contains one split only, .* for 'held' next to it; name one, or slice"
        r' .+, as in \{train: "reviews\[:80%, \w+\]", .*\}$',
    ):
        task.rows("held")
    write(tmp_path, "held.jsonl", ROWS[:2])
    write(tmp_path, "train.jsonl", ROWS[:3])
    assert task.rows("held") == ROWS[:2]
    assert task.rows("train") == ROWS[:3]
    write(tmp_path.parent, "far.jsonl", ROWS[:4])
    assert task.rows("far") == ROWS[:4]


def test_other_formats(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    (tmp_path / "validation.tsv").write_text("text\tlabel\nfine\tgood\n")
    (tmp_path / "test.json").write_text(json.dumps(ROWS))
    task = Task.load(settings(tmp_path))
    assert task.rows("train") == ROWS
    assert task.rows("validation") == [{"text": "fine", "label": "good"}]
    assert task.rows("test") == ROWS


def test_table_without_header(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tFine.\ngj04\t0\t*\tNot.\n")
    task = Task.load(settings(tmp_path, inputs="cola sentence: {3}", targets="{1}", labels=["0", "1"]))
    assert [(task.inputs(row), task.targets(row)) for row in task.rows("train")] == [
        ("cola sentence: Fine.", "1"),
        ("cola sentence: Not.", "0"),
    ]


def test_labels_in_another_normal_form(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", [{"text": "x", "label": "cafe\u0301"}])
    task = Task.load(settings(tmp_path, labels=["caf\u00e9", "bar"]))
    assert [task.targets(row) for row in task.rows("train")] == ["caf\u00e9"]
    with pytest.raises(InputError, match=r"tasks\.t\.labels: .* has duplicates"):
        Task.load(settings(tmp_path, labels=["caf\u00e9", "cafe\u0301"]))


def test_templates() -> None:
    row = Row({"a": "x {b}", "n": 3, "yes": True, "in": {"ner": "deep"}, "dotted.name": "flat"}, "f:1")
    assert Template("{a}|{n}|{yes}|{in.ner}|{dotted.name}|{{a}}", "k").render(row) == "x {b}|3|True|deep|flat|{a}"


@pytest.mark.parametrize("text", ["{", "a } b", "{}", "{a}{", "no field", "{{a}}"])
def test_invalid_templates(text: str) -> None:
    with pytest.raises(InputError, match=r"tasks\.t\.inputs: .*; write \{field\}"):
        Task.load(settings("x", inputs=text))


def test_values_replace_field_values(tmp_path: Path) -> None:
    """GLUE and SuperGLUE number their labels; YAML parses 0, true and "0" differently."""
    rows = [{"text": "fine", "label": 1, "in": {"deep": True}}, {"text": "dull", "label": "0", "in": {"deep": False}}]
    write(tmp_path, rows=rows)
    values = {"label": {0: "bad", 1: "good"}, "in.deep": {True: "yes", False: "no"}}
    task = Task.load(settings(tmp_path, inputs="{text} {in.deep}", values=values))
    assert [(task.inputs(row), task.targets(row)) for row in task.rows("train")] == [
        ("fine yes", "good"),
        ("dull no", "bad"),
    ]


def test_missing_data(tmp_path: Path) -> None:
    write(tmp_path)
    for data, split, message in [
        (tmp_path / "absent", "train", "does not exist"),
        ("absent/rows.jsonl", "train", "does not exist"),
        ("absent/rows.ndjson.zst", "train", "does not exist"),
        (tmp_path, "test", r"contains no file for 'test'; it contains train\.jsonl"),
        (tmp_path, "dev", "has no 'dev'; add it or choose one of train, validation, test"),
    ]:
        with pytest.raises(InputError, match=message):
            Task.load(settings(data)).rows(split)
    write(tmp_path, "test.jsonl", [])
    with pytest.raises(InputError, match=r"\(\S+/test\.jsonl\) has no rows; check it"):
        Task.load(settings(tmp_path)).rows("test")
    for labels in ([], ["a", "a"]):
        with pytest.raises(InputError, match="labels"):
            Task.load(settings(tmp_path, labels=labels))


def test_a_name_on_the_hub_may_contain_a_dot() -> None:
    Task.load(settings("lab/rows.v2")).check_split("train")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({"passage": None}, r"train\.jsonl:1: field 'passage' is empty \(null\); fix the row"),
        ({"answers": ["good", None]}, r"train\.jsonl:1: field 'answers' is \['good', None\], not a list of answers"),
    ],
)
def test_nulls_in_fields_for_scoring(tmp_path: Path, missing: dict[str, object], words: str) -> None:
    """They are neither the group nor an answer "None"."""
    row = {"text": "a", "label": "good", "passage": 7, "answers": ["good", 5]}
    task = Task.load(settings(write(tmp_path, rows=[row]), group="passage", answers="answers"))
    (found,) = task.rows("train")
    assert (task.group(found), task.answers(found)) == ("7", ["good", "5"])
    write(tmp_path, rows=[{**row, **missing}])
    (found,) = task.rows("train")
    with pytest.raises(InputError, match=words):
        _ = task.group(found), task.answers(found)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nested_fields_for_scoring(tmp_path: Path, suffix: str) -> None:
    """As in templates; SQuAD's rows on the hub have their answers in `answers.text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"text": "who", "label": "good", "answers": {"text": ["good", "fine"]}, "meta": {"passage": 7, "true": False}}
    write(tmp_path, rows=[row])
    if suffix == "parquet":
        (tmp_path / "train.jsonl").unlink()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    task = Task.load(settings(tmp_path, answers="answers.text", group="meta.passage", holds="meta.true"))
    (found,) = task.rows("train")
    assert (task.answers(found), task.group(found), task.holds(found)) == (["good", "fine"], "7", False)


@pytest.mark.parametrize("answer", [{"text": "good"}, ["good"], float("inf")])
def test_answers_are_texts_or_numbers(tmp_path: Path, answer: object) -> None:
    write(tmp_path, rows=[{"text": "who", "label": "good", "answers": ["good", 5, answer]}])
    task = Task.load(settings(tmp_path, answers="answers"))
    (found,) = task.rows("train")
    with pytest.raises(
        InputError,
        match=r"train\.jsonl:1: an answer in field 'answers' is (an? \w+|inf), not text or a number; write the answers as"
        " a list of texts",
    ):
        task.answers(found)


def test_decimals_are_numbers_and_dates_are_not(tmp_path: Path) -> None:
    row = {"text": Decimal("12.50"), "label": "good", "large": Decimal("1E+3"), "when": date(2024, 5, 6), "raw": b"x"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    task = Task.load(settings(tmp_path, inputs="{text} of {large}"))
    assert task.inputs(task.rows("train")[0]) == "12.50 of 1000"
    for field, found in (("when", "a date"), ("raw", "binary data")):
        task = Task.load(settings(tmp_path, inputs=f"{{{field}}}"))
        with pytest.raises(InputError, match=f"'{field}' is {found}, not text or a number; convert it to text"):
            task.inputs(task.rows("train")[0])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_fields_of_a_null_object_are_null(tmp_path: Path, suffix: str) -> None:
    rows = [{"meta": {"text": "kept"}, "label": "good"}, {"meta": None, "label": "bad"}]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    else:
        write(tmp_path, rows=rows)
    task = Task.load(settings(tmp_path, inputs="{meta.text}", nulls="drop"))
    found = task.rows("train")
    assert ([task.inputs(row) for row in found], found.dropped) == (["kept"], {"without meta.text": 1})
    task = Task.load(settings(tmp_path, inputs="{meta.text}"))
    with pytest.raises(InputError, match=r"(row |:)2: field 'meta\.text' is empty \(null\), not text or a number"):
        [task.inputs(row) for row in task.rows("train")]


def test_held_out_texts(tmp_path: Path) -> None:
    rows = [
        {"text": "a text of five words", "question": "why not this one then", "label": "good"},
        {**ROWS[0], "question": "no"},
    ]
    write(tmp_path, "train.jsonl", [{**ROWS[0], "question": "the first of the training rows"}])
    write(tmp_path, "validation.jsonl", rows)
    write(tmp_path, "shifted.jsonl", [{**ROWS[0], "question": "do other splits count as well"}])
    splits = {"train": "train", "validation": "validation", "validation_shifted": "shifted"}
    task = Task.load(settings(tmp_path, inputs="q: {question} t: {text}", splits=splits))
    found = ["a text of five words", "why not this one then", ROWS[0]["text"], "do other splits count as well"]
    assert task.held_out_texts() == sorted(found)


def test_superglue_and_glue_as_distributed(shared: Path, vocabulary: Vocabulary) -> None:
    tasks = shared / "data" / "tasks"
    cases = [
        ("superglue/BoolQ", "boolq passage: {passage} question: {question}", "{label}", ["False", "True"], "val.jsonl", 3270),
        ("superglue/RTE", "rte hypothesis: {hypothesis} premise: {premise}", "{label}", ["entailment", "not_entailment"], "val.jsonl", 277),
        ("superglue/WSC", "wsc: {text}", "{target.span1_text}", None, "val.jsonl", 104),
        ("glue/CoLA", "cola sentence: {3}", "{1}", ["0", "1"], "in_domain_dev.tsv", 527),
        ("glue/MRPC", "mrpc sentence1: {#1 String} sentence2: {#2 String}", "{Quality}", ["0", "1"], "msr_paraphrase_test.txt", 1725),
        ("textcls/subj", "{text}", "{label}", ["objective", "subjective"], "test", 1000),
    ]  # fmt: skip
    for data, inputs, targets, labels, split, count in cases:
        task = Task.load(settings(tasks / data, inputs=inputs, targets=targets, labels=labels, splits={"test": split}))
        rows = task.rows("test")
        assert len(rows) == count
        assert all(task.inputs(row) and task.targets(row) for row in rows)
