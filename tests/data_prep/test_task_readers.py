"""Benchmarks' files as they are distributed: each reader on a small file of its form, and on the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tasks import Task
from pipeline.errors import InputError
from pipeline.task_files import Slice, split_slice
from pipeline.task_formats import FORMATS, SUPERGLUE
from pipeline.task_settings import TaskSettings


def task_of(format_: str, data: Path, **more: Any) -> Task:
    return Task.load(TaskSettings(name="t", format=format_, data=str(data), **more))


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


MULTIRC = {
    "idx": 3,
    "passage": {
        "text": "<b>Sent 1: </b>The cat sat.<br><b>Sent 2: </b>It slept.",
        "questions": [
            {
                "question": "Who sat?",
                "idx": 0,
                "answers": [{"text": "a cat", "idx": 0, "label": 1}, {"text": "a dog", "idx": 1, "label": 0}],
            },
            {"question": "Who slept?", "idx": 1, "answers": [{"text": "it", "idx": 2, "label": 1}]},
        ],
    },
}
RECORD_TEXT = "Ada met Charles.\n@highlight\nThey built an engine\n@highlight\nAda wrote notes"
RECORD = {
    "passage": {
        "text": RECORD_TEXT,
        "entities": [{"start": 8, "end": 14}, {"start": 0, "end": 2}, {"start": 60, "end": 62}],
    },
    "qas": [
        {
            "query": "@placeholder was first.",
            "idx": 0,
            "answers": [
                {"start": 0, "end": 2, "text": "Ada"},
                {"start": 8, "end": 14, "text": "Charles"},
                {"start": 60, "end": 62, "text": "Ada"},
            ],
        }
    ],
}
WSC = [
    {
        "text": "The pony threw him over, the boy said.",
        "target": {"span2_index": 3, "span1_index": 5, "span1_text": "the boy", "span2_text": "him"},
        "label": True,
    },
    {
        "text": "The pony threw him, it ran.",
        "target": {"span2_index": 4, "span1_index": 0, "span1_text": "The boy", "span2_text": "it"},
        "label": False,
    },
]


def test_multirc(tmp_path: Path) -> None:
    write(tmp_path / "val.jsonl", [MULTIRC])
    task = task_of("superglue/multirc", tmp_path)
    rows = task.rows("validation")
    assert task.inputs(rows[1]) == "question: Who sat? answer: a dog paragraph: Sent 1: The cat sat. Sent 2: It slept."
    assert [task.targets(row) for row in rows] == ["True", "False", "True"]
    assert [task.group(row) for row in rows] == ["3/0", "3/0", "3/1"]


def test_record_trains_on_each_answer_and_is_scored_once_a_query(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [RECORD])
    task = task_of("superglue/record", tmp_path)
    (row,) = task.rows("train")
    assert task.answers(row) == ["Ada", "Charles"]
    assert [task.targets(r) for r in task.rows("train", training=True)] == ["Ada", "Charles"]
    assert task.inputs(row) == (
        "query: @placeholder was first. entities: Ada, Charles passage: Ada met Charles. They built an engine. Ada wrote notes"
    )


def test_wsc_marks_the_pronoun_and_trains_on_what_is_true(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", WSC)
    task = task_of("superglue/wsc", tmp_path, task_prefix=True)
    first, second = task.rows("train")
    assert task.inputs(first) == "wsc: The pony threw *him* over, the boy said."
    assert (task.holds(first), task.holds(second)) == (True, False)
    assert [task.targets(row) for row in task.rows("train", training=True)] == ["the boy"]


def test_squad_slices_paragraphs_not_questions(tmp_path: Path) -> None:
    def paragraph(number: int, **more: Any) -> dict[str, Any]:
        answers = [
            {"text": f"a{number}", "answer_start": 0},
            {"text": f"b{number}", "answer_start": 0},
            {"text": f"a{number}", "answer_start": 0},
        ]
        return {
            "context": f"c{number}",
            "qas": [
                {"id": str(number), "question": "q?", "answers": answers},
                {"id": "none", "question": "r?", "answers": [], "is_impossible": True},
            ],
        }

    (tmp_path / "all.json").write_text(
        json.dumps(
            {
                "data": [
                    {"paragraphs": [paragraph(n) for n in range(4)]},
                    {"paragraphs": [paragraph(n) for n in range(4, 10)]},
                ]
            }
        )
    )
    task = task_of("squad", tmp_path, splits={"train": "all.json[:70%]", "validation": "all[70%:]"})
    assert [task.inputs(row) for row in task.rows("train")] == [f"question: q? context: c{n}" for n in range(7)]
    (row, *_) = task.rows("validation")
    assert (task.targets(row), task.answers(row)) == ("a7", ["a7", "b7"])


@pytest.mark.parametrize(("format_", "row", "said"), [
    ("superglue/multirc", {"passage": {"text": "x"}}, "not as multirc files"),
    ("superglue/record", {"passage": "x", "qas": []}, "not as record files"),
    ("superglue/wsc", {"text": "a b", "target": {"span2_index": 1, "span2_text": "he", "span1_text": "x"}}, "is no word of it"),
])  # fmt: skip
def test_a_file_of_another_form_is_named_with_its_line(tmp_path: Path, format_: str, row: Any, said: str) -> None:
    write(tmp_path / "val.jsonl", [row])
    with pytest.raises(InputError, match=r"val\.jsonl:1: .*" + said):
        task_of(format_, tmp_path).rows("validation")


def test_not_squads_json(tmp_path: Path) -> None:
    (tmp_path / "dev-v1.1.json").write_text("[]")
    with pytest.raises(InputError, match="is not SQuAD's JSON"):
        task_of("squad", tmp_path).rows("validation")


def test_glue_files(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("index\tsentence1\tsentence2\tscore\n0\tA man.\tA men.\t3.75\n1\tB.\tC.\t5.000\n")
    task = task_of("glue/stsb", tmp_path)
    assert [task.targets(row) for row in task.rows("validation")] == ["3.8", "5.0"]
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "dev.tsv").write_text("gj04\t1\t\tHe ran.\ngj04\t0\t*\tHe runned.\n")
    task = task_of("glue/cola", tmp_path / "cola", task_prefix=True)
    rows = task.rows("validation")
    assert (task.inputs(rows[1]), task.targets(rows[1])) == ("cola sentence: He runned.", "unacceptable")


@given(rows=st.integers(0, 300), cut=st.integers(0, 100))
def test_two_slices_make_the_whole(rows: int, cut: int) -> None:
    first, second = split_slice(f"train[:{cut}%]")[1], split_slice(f"train[{cut}%:]")[1]
    assert first is not None
    assert second is not None
    everything = list(range(rows))
    assert everything[first.of(rows)] + everything[second.of(rows)] == everything


@given(rows=st.integers(0, 50), begin=st.integers(-60, 60), end=st.integers(-60, 60))
def test_plain_numbers_slice_as_python_does(rows: int, begin: int, end: int) -> None:
    everything = list(range(rows))
    assert everything[Slice(str(begin), str(end)).of(rows)] == everything[begin:end]


def test_a_slice_that_is_none() -> None:
    for split in ("train[:x]", "train[110%:]", "train[1.5:]"):
        with pytest.raises(ValueError, match="no slice of rows"):
            split_slice(split)
    assert split_slice("train[all]") == ("train[all]", None)


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_a_whole_task_and_reads_back_as_itself(name: str) -> None:
    for more in ({}, {"task_prefix": True}):
        settings = TaskSettings(name="t", format=name, data="somewhere", **more)
        Task.load(settings)
        assert TaskSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert settings.inputs.startswith(name.rpartition("/")[2])


def test_what_is_given_wins() -> None:
    task = TaskSettings(name="t", format="superglue/rte", data="x", targets="{answer}", labels=["a", "b"])
    assert (task.inputs, task.labels, task.values) == ("hypothesis: {hypothesis} premise: {premise}", ["a", "b"], {})


@pytest.mark.parametrize(("values", "said"), [
    ({"format": "superglue/ret"}, "did you mean `superglue/rte`"),
    ({"format": "superglue/rte", "task_prefix": True, "inputs": "{premise}"}, "`inputs` of your own"),
    ({"inputs": "{a}", "targets": "{b}", "task_prefix": True}, "needs a `format`"),
    ({"inputs": "{a}", "targets": "{b}", "metrics": ["referent"]}, "`holds`"),
    ({"inputs": "{a}", "targets": "{b}", "metrics": ["group_accuracy"]}, "`group`"),
    ({"inputs": "{a}", "targets": "{b}", "round_to": {"b": 0}}, "above 0"),
    ({"inputs": "{a}", "targets": "{b}", "splits": {"train": "x[1:2:3%%]", "test": "x[a:]"}}, "no slice of rows"),
])  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TaskSettings(name="t", data="x", **values)


REAL = [
    ("superglue/boolq", "superglue/BoolQ", {}, 3270),
    ("superglue/cb", "superglue/CB", {}, 56),
    ("superglue/copa", "superglue/COPA", {}, 100),
    ("superglue/multirc", "superglue/MultiRC", {}, 4848),
    ("superglue/record", "superglue/ReCoRD", {"validation": "dev32"}, 32),
    ("superglue/rte", "superglue/RTE", {}, 277),
    ("superglue/wic", "superglue/WiC", {}, 638),
    ("superglue/wsc", "superglue/WSC", {}, 104),
    ("glue/cola", "glue/CoLA", {"validation": "in_domain_dev"}, 527),
    ("glue/mrpc", "glue/MRPC", {"validation": "msr_paraphrase_test.txt"}, 1725),
    ("glue/rte", "glue/RTE", {}, 277),
    ("glue/stsb", "glue/STS-B", {}, 1500),
    ("squad", "qa/squadshifts", {"validation": "new_wiki_v1.0.json"}, 7938),
]


def test_every_superglue_task_is_read_from_its_real_file() -> None:
    assert {name for name, *_ in REAL} >= set(SUPERGLUE)


@pytest.mark.parametrize(("name", "folder", "splits", "count"), REAL, ids=[name for name, *_ in REAL])
def test_real_files(shared: Path, name: str, folder: str, splits: dict[str, str], count: int) -> None:
    """As many rows as the benchmarks say, every target a label, every answer and group in its place."""
    given = {"splits": splits} if splits else {}
    task = task_of(name, shared / "data" / "tasks" / folder, **given)
    rows = task.rows("validation")
    assert len(rows) == count
    targets = {task.targets(row) for row in rows}
    if task.labels:
        assert targets == set(task.labels)
    for row in rows:
        assert len(task.inputs(row)) > 10
        answers = task.answers(row)
        assert answers is None or task.targets(row) == answers[0]
        task.group(row)
    if name == "superglue/wsc":
        assert all(task.inputs(row).count("*") == 2 for row in rows)
        assert {task.holds(row) for row in rows} == {True, False}
