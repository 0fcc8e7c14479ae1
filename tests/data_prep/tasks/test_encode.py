from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.rows import Row
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import (
    EncodedTask,
    Task,
    TaskBatches,
    check_labels,
    encode_inputs,
    encode_labels,
    encode_targets,
    encode_task,
)
from t5_pipeline.data_prep.tasks.template import Template
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

ROWS = [{"text": f"the name of module {i} is returned", "label": ("good", "bad")[i % 2]} for i in range(10)]


def settings(data: Path | str, **changed: Any) -> TaskConfig:
    fields: dict[str, Any] = {"name": "t", "data": str(data), "inputs": "sentence: {text}", "targets": "{label}"}
    return TaskConfig(**{**fields, "labels": ["good", "bad"], **changed})


def write(folder: Path, name: str = "train.jsonl", rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path


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
        match=r"tasks\.t\.splits: \S+/reviews\.jsonl contains one split only, .* for 'held' next to it; name",
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
    with pytest.raises(InputError, match=r"tasks\.t\.inputs"):
        Task.load(settings("x", inputs=text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"body": "x", "label": "good"},
            r"train\.jsonl:2: has no field 'text' \(only body, label\); fix `tasks\.t\.inputs` or the row",
        ),
        ({"text": None, "label": "good"}, r"train\.jsonl:2: field 'text' is empty \(null\)"),
        ({"text": ["x"], "label": "good"}, r"train\.jsonl:2: field 'text' is a list"),
        ({"text": "\ud800", "label": "good"}, r"train\.jsonl:2: character 0 is half of a surrogate pair"),
        ({"text": "x"}, r"train\.jsonl:2: has no field 'label' \(only text\)"),
        ({"text": "x", "label": "Good"}, r"train\.jsonl:2: target 'Good' is not a label of t \(good, bad\)"),
    ],
)
def test_bad_rows(tmp_path: Path, vocabulary: Vocabulary, row: dict[str, Any], message: str) -> None:
    write(tmp_path, rows=[ROWS[0], row])
    with pytest.raises(InputError, match=message):
        encode_task(Task.load(settings(tmp_path)), "train", vocabulary, 64, 8)


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


def test_unknown_value_is_reported_with_row_and_key(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path, rows=[{"text": "a", "label": 0}, {"text": "b", "label": -1}])
    task = Task.load(settings(tmp_path, values={"label": {0: "bad", 1: "good"}}))
    with pytest.raises(
        InputError, match=r"train\.jsonl:2: `tasks\.t\.values\.label` has no '-1' \(only 0, 1\); add it or fix the row$"
    ):
        encode_task(task, "train", vocabulary, 64, 8)
    with pytest.raises(InputError, match=r"tasks\.t\.values: no template contains 'lable'; use one of text, label"):
        Task.load(settings(tmp_path, values={"lable": {0: "bad"}}))


def test_missing_data(tmp_path: Path) -> None:
    write(tmp_path)
    for data, split, message in [
        (tmp_path / "absent", "train", "does not exist"),
        ("absent/rows.jsonl", "train", "does not exist"),
        (tmp_path, "test", r"contains no file for 'test'; it contains train\.jsonl"),
        (tmp_path, "dev", "has no 'dev'; add it or choose one of train, validation, test"),
    ]:
        with pytest.raises(InputError, match=message):
            Task.load(settings(data)).rows(split)
    write(tmp_path, "test.jsonl", [])
    with pytest.raises(InputError, match="has no rows"):
        Task.load(settings(tmp_path)).rows("test")
    for labels in ([], ["a", "a"]):
        with pytest.raises(InputError, match="labels"):
            Task.load(settings(tmp_path, labels=labels))


def test_built_in_task(vocabulary: Vocabulary) -> None:
    task = Task.load(
        settings("stdlib-kinds", inputs="{text}", targets="{kind}", labels=["class", "function", "method"])
    )
    encoded = encode_task(task, "test", vocabulary, 64, 8)
    assert encoded.label_index is not None
    assert set(np.bincount(encoded.label_index).tolist()) == {len(encoded) // 3}
    with pytest.raises(InputError, match="stdlib-kinds has no 'dev'"):
        Task.load(settings("stdlib-kinds", splits={"dev": "dev"})).rows("dev")


def test_held_out_texts(tmp_path: Path) -> None:
    rows = [
        {"text": "a text of five words", "question": "why not this one then", "label": "good"},
        {**ROWS[0], "question": "no"},
    ]
    write(tmp_path, "validation.jsonl", rows)
    task = Task.load(
        settings(tmp_path, inputs="q: {question} t: {text}", splits={"train": "train", "validation": "validation"})
    )
    assert task.held_out_texts() == sorted(["a text of five words", "why not this one then", ROWS[0]["text"]])


def test_encoding(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path)
    encoded = encode_task(Task.load(settings(tmp_path)), "train", vocabulary, 512, 128)
    assert encoded.inputs[3].tolist() == [*vocabulary.encode("sentence: the name of module 3 is returned"), 1]
    assert encoded.targets[3].tolist() == [*vocabulary.encode("bad"), 1]
    assert encoded.target_texts == [row["label"] for row in ROWS]
    assert encoded.label_index is not None
    assert encoded.label_index.tolist() == [0, 1] * 5
    assert len(encode_task(Task.load(settings(tmp_path)), "train", vocabulary, 512, 128, limit=4)) == 4
    free = encode_task(Task.load(settings(tmp_path, labels=None)), "train", vocabulary, 512, 128)
    assert free.label_index is None
    assert free.labels is None


def test_truncation_before_eos(vocabulary: Vocabulary) -> None:
    text = ROWS[0]["text"]
    ids = vocabulary.encode(text)
    s = vocabulary.sentinel(0)
    assert len(ids) > 6
    assert encode_inputs([text], vocabulary, 5)[0].tolist() == [*ids[:4], 1]
    assert encode_inputs([text], vocabulary, 5, "targets")[0].tolist() == [*ids[:4], 1]
    assert encode_inputs([text], vocabulary, 5, "both")[0].tolist() == [*ids[:3], s, 1]
    assert encode_targets([text], vocabulary, 5)[0].tolist() == [*ids[:4], 1]
    for sentinel in ("targets", "both"):
        assert encode_targets([text], vocabulary, 5, sentinel)[0].tolist() == [s, *ids[:3], 1]  # type: ignore[arg-type]
        assert encode_labels([text], vocabulary, sentinel)[0].tolist() == [s, *ids, 1]  # type: ignore[arg-type]
    assert encode_labels([text], vocabulary)[0].tolist() == [*ids, 1]
    with pytest.raises(InputError, match="no room for EOS and the sentinel; give at least 2"):
        encode_targets([text], vocabulary, 1, "both")
    with pytest.raises(InputError, match="no <extra_id_0>"):
        encode_targets([text], vocabulary.with_sentinels(0), 9, "targets")


def encoded(rows: int, name: str = "t") -> EncodedTask:
    inputs = [np.array([2 + i, 1], dtype=np.int32) for i in range(rows)]
    targets = [np.array([*[9] * (i % 5), 1], dtype=np.int32) for i in range(rows)]
    return EncodedTask(name, inputs, targets, [""] * rows, [""] * rows, None, None)


def test_rows_of_a_prompt_do_not_depend_on_other_prompts() -> None:
    tasks = [encoded(10), encoded(23), encoded(4)]
    together = TaskBatches(tasks, [4, 3, 9], [0, 1, 2])
    for step in (0, 1, 7, 100):
        union = together.at(step)
        assert union.prompt_B.tolist() == [0] * 4 + [1] * 3 + [2] * 9
        for c, (task, size) in enumerate(zip(tasks, (4, 3, 9), strict=True)):
            single = TaskBatches([task], [size], [c]).at(step)
            part = union.rows(np.flatnonzero(union.prompt_B == c))
            assert part.ids_B.tolist() == single.ids_B.tolist()
            assert part.targets_BT.tolist() == single.targets_BT.tolist()
            assert part.weights_B.tolist() == single.weights_B.tolist()


@given(rows=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 50))
def test_every_pass_contains_each_example_once(rows: int, size: int, seed: int) -> None:
    batches = TaskBatches([encoded(rows)], [size], [seed])
    ids = np.concatenate([batches.at(step).ids_B for step in range(-(-3 * rows // size))])
    for k in range(3):
        assert sorted(ids[k * rows : (k + 1) * rows].tolist()) == list(range(rows))


def test_weights() -> None:
    mean = TaskBatches([encoded(10), encoded(10)], [4, 6], [0, 0]).at(3)
    for c in (0, 1):
        part = mean.rows(np.flatnonzero(mean.prompt_B == c))
        np.testing.assert_allclose(part.weights_B, 1 / part.target_tokens, rtol=1e-6)
    total = TaskBatches([encoded(10), encoded(10)], [4, 6], [0, 0], loss="sum").at(3)
    assert set(total.weights_B.tolist()) == {1.0}
    with pytest.raises(ValueError, match="one each per prompt"):
        TaskBatches([encoded(3)], [4], [0, 1])


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


def test_limit_takes_spread_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """In a file sorted by class, the first rows have one class."""
    rows = [{"text": str(i), "label": "no" if i < 50 else "yes"} for i in range(100)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task.load(TaskConfig(name="t", data=str(tmp_path), inputs="{text}", targets="{label}", labels=["no", "yes"]))
    spread = encode_task(task, "validation", vocabulary, 8, 8, limit=10)
    assert spread.input_texts == [str(i) for i in range(0, 100, 10)]
    assert len(encode_task(task, "validation", vocabulary, 8, 8, limit=200)) == 100


def test_a_split_with_one_class_is_a_warning(
    tmp_path: Path, vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task.load(settings(write(tmp_path), splits={"train": "train", "sorted": "one", "one row": "train[:1]"}))
    write(tmp_path, "one.jsonl", ROWS[::2])
    for split in ("train", "one row"):
        encode_task(task, split, vocabulary, 16, 8)
    assert caplog.messages == []
    encode_task(task, "sorted", vocabulary, 16, 8)
    (message,) = caplog.messages
    assert message.startswith("tasks.t: all 5 rows of split 'sorted' have the target 'good', so")


@pytest.mark.parametrize("changed", [
    {"labels": [False, True]},
    {"values": {"label": {"0": True}}},
    {"values": {"label": {False: datetime.date(2020, 1, 1)}}},
    {"labels": ["x", None]},
    {"labels": [datetime.date(2020, 1, 1)]},
])  # fmt: skip
def test_labels_and_values_that_yaml_does_not_read_as_text(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="write it in quotes"):
        settings("rows", **changed)
    assert settings("rows", labels=[0, 1.5]).labels == ["0", "1.5"]


@pytest.mark.parametrize(("labels", "length", "message"), [
    (["\U0001f600", "\U0001f621"], 8, "'\U0001f600' and '\U0001f621' have the same token ids in this vocabulary; use"),
    (["good", "good "], 8, "'good' and 'good ' have the same token ids"),
    (["good", "\u4f60"], 8, "'\u4f60' has characters that the vocabulary lacks; use another label"),
    (["good", "the name of a module"], 3, r"'.+' has \d+ tokens with EOS, but max_target_length is 3; give at least \d+"),
])  # fmt: skip
def test_labels_that_cannot_be_learned(
    vocabulary: Vocabulary, tmp_path: Path, labels: list[str], length: int, message: str
) -> None:
    task = settings(write(tmp_path), labels=labels)
    with pytest.raises(InputError, match=rf"^tasks\.t\.labels: {message}"):
        check_labels(task, vocabulary, length)
    with pytest.raises(InputError, match=message):
        encode_task(Task.load(task), "train", vocabulary, 16, length)
