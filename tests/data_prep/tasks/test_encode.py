from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import Truncated
from t5_pipeline.data_prep.tasks.encode import (
    Reading,
    check_labels,
    encode_inputs,
    encode_labels,
    encode_targets,
    encode_task,
)
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.tasks.small_task import ROWS, settings, write


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"body": "x", "label": "good"},
            r"train\.jsonl:2: has no field 'text' \(only body, label\); add it to the row, or fix `tasks\.t\.inputs`",
        ),
        ({"text": None, "label": "good"}, r"train\.jsonl:2: field 'text' is empty \(null\)"),
        ({"text": ["x"], "label": "good"}, r"train\.jsonl:2: field 'text' is a list"),
        ({"text": "\ud800", "label": "good"}, r"train\.jsonl:2: character 0 is half of a surrogate pair"),
        ({"text": "x"}, r"train\.jsonl:2: has no field 'label' \(only text\)"),
        (
            {"text": "x", "label": "Good"},
            r"train\.jsonl:2: target 'Good' is not a label of t \(good, bad\); fix the row, add it to `tasks\.t\.labels`, or map it with",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, vocabulary: Vocabulary, row: dict[str, Any], message: str) -> None:
    write(tmp_path, rows=[ROWS[0], row])
    with pytest.raises(InputError, match=message):
        encode_task(Task.load(settings(tmp_path)), "train", Reading(vocabulary, 64, 8))


def test_unknown_value_is_reported_with_row_and_key(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path, rows=[{"text": "a", "label": 0}, {"text": "b", "label": -1}])
    task = Task.load(settings(tmp_path, values={"label": {0: "bad", 1: "good"}}))
    with pytest.raises(
        InputError, match=r"train\.jsonl:2: `tasks\.t\.values\.label` has no '-1' \(only 0, 1\); add it or fix the row$"
    ):
        encode_task(task, "train", Reading(vocabulary, 64, 8))
    with pytest.raises(InputError, match=r"tasks\.t\.values: no template contains 'lable'; use one of text, label"):
        Task.load(settings(tmp_path, values={"lable": {0: "bad"}}))


def test_built_in_task(vocabulary: Vocabulary) -> None:
    task = Task.load(
        settings("stdlib-kinds", inputs="{text}", targets="{kind}", labels=["class", "function", "method"])
    )
    encoded = encode_task(task, "test", Reading(vocabulary, 64, 8))
    assert encoded.label_index is not None
    assert set(np.bincount(encoded.label_index).tolist()) == {len(encoded) // 3}
    with pytest.raises(InputError, match="stdlib-kinds has no 'dev'"):
        Task.load(settings("stdlib-kinds", splits={"dev": "dev"})).rows("dev")


def test_encoding(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path)
    encoded = encode_task(Task.load(settings(tmp_path)), "train", Reading(vocabulary, 512, 128))
    assert encoded.inputs[3].tolist() == [*vocabulary.encode("sentence: the name of module 3 is returned"), 1]
    assert encoded.targets[3].tolist() == [*vocabulary.encode("bad"), 1]
    assert encoded.target_texts == [row["label"] for row in ROWS]
    assert encoded.label_index is not None
    assert encoded.label_index.tolist() == [0, 1] * 5
    assert len(encode_task(Task.load(settings(tmp_path)), "train", Reading(vocabulary, 512, 128), limit=4)) == 4
    free = encode_task(Task.load(settings(tmp_path, labels=None)), "train", Reading(vocabulary, 512, 128))
    assert free.label_index is None
    assert free.labels is None


def test_encoding_many_rows_is_announced(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("t5_pipeline.data_prep.tasks.encode._ANNOUNCED", len(ROWS))
    write(tmp_path, rows=ROWS)
    with caplog.at_level("INFO", logger="t5-pipeline"):
        encode_task(Task.load(settings(tmp_path)), "train", Reading(vocabulary, 64, 8))
    assert f"t: encoding {len(ROWS)} rows of train" in caplog.messages


def test_truncation_before_eos(vocabulary: Vocabulary) -> None:
    text = ROWS[0]["text"]
    ids = vocabulary.encode(text)
    s = vocabulary.sentinel(0)
    assert len(ids) > 6
    assert encode_inputs([text], vocabulary, 5).ids[0].tolist() == [*ids[:4], 1]
    assert encode_inputs([text], vocabulary, 5, "targets").ids[0].tolist() == [*ids[:4], 1]
    assert encode_inputs([text], vocabulary, 5, "both").ids[0].tolist() == [*ids[:3], s, 1]
    assert encode_targets([text], vocabulary, 5).ids[0].tolist() == [*ids[:4], 1]
    for sentinel in ("targets", "both"):
        assert encode_targets([text], vocabulary, 5, sentinel).ids[0].tolist() == [s, *ids[:3], 1]  # type: ignore[arg-type]
        assert encode_labels([text], vocabulary, sentinel)[0].tolist() == [s, *ids, 1]  # type: ignore[arg-type]
    assert encode_labels([text], vocabulary)[0].tolist() == [*ids, 1]
    with pytest.raises(InputError, match="no room for EOS and the sentinel; give at least 2"):
        encode_targets([text], vocabulary, 1, "both")
    with pytest.raises(InputError, match="no <extra_id_0>"):
        encode_targets([text], vocabulary.with_sentinels(0), 9, "targets")


def test_limit_takes_spread_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """In a file sorted by class, the first rows have one class."""
    rows = [{"text": str(i), "label": "no" if i < 50 else "yes"} for i in range(100)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task.load(TaskConfig(name="t", data=str(tmp_path), inputs="{text}", targets="{label}", labels=["no", "yes"]))
    spread = encode_task(task, "validation", Reading(vocabulary, 8, 8), limit=10)
    assert spread.input_texts == [str(i) for i in range(0, 100, 10)]
    assert len(encode_task(task, "validation", Reading(vocabulary, 8, 8), limit=200)) == 100


def test_counts_of_dropped_and_truncated_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    rows = [*ROWS, {"text": None, "label": "good"}, {"text": "a", "label": None}, {"text": "b", "label": None}]
    write(tmp_path, rows=rows)
    task = Task.load(settings(tmp_path, nulls="drop"))
    lengths = [len(vocabulary.encode(task.input_template.text.replace("{text}", row["text"]))) + 1 for row in ROWS]
    counts = encode_task(task, "train", Reading(vocabulary, min(lengths) - 2, 8), limit=6).counts
    assert (counts.read, counts.used) == (13, 6)
    assert counts.dropped == {"without text": 1, "without label": 2, "over the limit": 4}
    cut = [lengths[i * 10 // 6] - (min(lengths) - 2) for i in range(6)]
    assert counts.inputs == Truncated.of(cut)
    assert counts.targets == Truncated()
    assert str(counts) == (
        "t, train: 13 rows, 7 dropped (1 without text, 2 without label, 4 over the limit); inputs truncated:"
        f" 6 (by {counts.inputs.median} tokens in the median, {max(cut)} at most), targets truncated: 0"
    )
    assert str(Truncated.of([0, 1])) == "1 (by 1 token in the median, 1 at most)"
    free = Task.load(settings(tmp_path, nulls="drop", targets="{text}", labels=None))
    assert encode_task(free, "train", Reading(vocabulary, 64, 3)).counts.targets.texts == 10
    with pytest.raises(InputError, match=r"train\.jsonl:11: field 'text' is empty \(null\)"):
        encode_task(Task.load(settings(tmp_path)), "train", Reading(vocabulary, 64, 8))


def test_an_empty_text_is_a_null_only_in_tables(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path, rows=[{"text": "", "label": "good"}, {"text": "a", "label": "bad"}])
    (tmp_path / "test.csv").write_text("text,label\n,good\na,bad\n")
    task = Task.load(settings(tmp_path, nulls="drop"))
    assert len(encode_task(task, "train", Reading(vocabulary, 16, 8))) == 2
    assert encode_task(task, "test", Reading(vocabulary, 16, 8)).counts.dropped == {"without text": 1}


def test_counts_of_texts_with_characters_that_the_vocabulary_lacks(tmp_path: Path, vocabulary: Vocabulary) -> None:
    rows = [
        {"text": text, "label": label} for text, label in (("a \u732b", "b"), ("c", "\u732b"), ("\u732b\u732b", "\n"))
    ]
    write(tmp_path, rows=rows)
    encoded = encode_task(Task.load(settings(tmp_path, labels=None)), "train", Reading(vocabulary, 16, 8))
    counts = encoded.counts
    assert (counts.unknown_inputs, counts.unknown_targets) == (2, 1)
    worded = encoded.with_inputs(encode_inputs(["a", "\u732b a", "c"], vocabulary, 16), vocabulary).counts
    assert (worded.unknown_inputs, worded.unknown_targets) == (1, 1)
    assert str(counts).endswith("; with characters that the vocabulary lacks: 2 inputs, 1 target")


@pytest.mark.parametrize(
    ("train", "held_out", "shared"),
    [
        ("rows", "rows[90%:]", True),
        ("rows[:60%]", "rows.jsonl[50%:]", True),
        ("rows[:60%, shuffled]", "rows[60%:, shuffled]", False),
        ("rows[:-2]", "rows[-2:]", False),
        ("rows[:4]", "rows[50%:]", False),  # depends on the number of rows
        ("rows[:90%]", "other", False),
    ],
)
def test_a_split_with_rows_of_train_is_a_warning(
    train: str, held_out: str, shared: bool, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    for name in ("rows.jsonl", "other.jsonl"):
        write(tmp_path, name)
    task = Task.load(settings(tmp_path, splits={"train": train, "test": held_out}))
    found = {split: encode_task(task, split, Reading(vocabulary, 16, 8)).counts for split in ("train", "test")}
    assert found["train"].warnings == []
    said = [warning.partition(";")[0] for warning in found["test"].warnings if "rows of `train`" in warning]
    assert said == ["tasks.t: split 'test' contains rows of `train`, so scores on it are too high"] * shared


def test_a_split_with_one_class_is_a_warning(tmp_path: Path, vocabulary: Vocabulary) -> None:
    task = Task.load(settings(write(tmp_path), splits={"train": "train", "sorted": "one", "one row": "train[:1]"}))
    write(tmp_path, "one.jsonl", ROWS[::2])
    for split in ("train", "one row"):
        counts = encode_task(task, split, Reading(vocabulary, 16, 8)).counts
        assert counts.only_target is None
    (message,) = encode_task(task, "sorted", Reading(vocabulary, 16, 8)).counts.warnings
    assert message.startswith("tasks.t: all 5 rows of split 'sorted' have the target 'good', so")


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
        encode_task(Task.load(task), "train", Reading(vocabulary, 16, length))


def test_a_label_of_just_the_maximum_length_is_not_truncated(vocabulary: Vocabulary, tmp_path: Path) -> None:
    task = settings(write(tmp_path), labels=["good", "bad"])
    longest = max(len(ids) for ids in encode_labels(["good", "bad"], vocabulary))
    check_labels(task, vocabulary, longest)
    with pytest.raises(InputError, match=f"max_target_length is {longest - 1}; give at least {longest}"):
        check_labels(task, vocabulary, longest - 1)


def test_false_targets_are_scored_but_not_trained_on(vocabulary: Vocabulary, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": "good", "true": i % 3 == 0} for i in range(6)]
    task = Task.load(settings(write(tmp_path, rows=rows), holds="true", splits={"train": "train", "test": "train"}))
    trained = encode_task(task, "train", Reading(vocabulary, 16, 8), training=True)
    assert trained.input_texts == ["sentence: row 0", "sentence: row 3"]
    assert encode_task(task, "test", Reading(vocabulary, 16, 8)).holds == [True, False, False, True, False, False]


def test_a_limit_keeps_groups_whole(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Of the answers to a question, all or none: with a part of them, the exact match of a question is another."""
    rows = [{"text": f"q{i // 5} a{i % 5}", "label": "yes", "question": i // 5} for i in range(100)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TaskConfig(
        name="t", data=str(tmp_path), inputs="{text}", targets="{label}", labels=["yes", "no"], group="question",
        splits={"test": "test"}, metrics=["accuracy", "group_accuracy"],
    )  # fmt: skip
    for limit, groups in ((1, 1), (12, 3), (50, 10), (99, 20)):
        found = encode_task(Task.load(settings), "test", Reading(vocabulary, 32, 8), limit=limit)
        assert found.groups is not None
        assert set(Counter(found.groups).values()) == {5}
        assert found.groups == [str(i * 20 // groups) for i in range(groups) for _ in range(5)]
        assert found.counts.dropped.get("over the limit", 0) == 100 - len(found.inputs)
