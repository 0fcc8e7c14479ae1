"""Every published format read from small files, hub rows and real files; slices; malformed files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import Reading, encode_task
from t5_pipeline.data_prep.tasks.formats import FORMATS, SUPERGLUE, task_name
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.tasks.published import MULTIRC, READS, RECORD, SQUAD_PARAGRAPH, WSC, task_of, write


@pytest.mark.parametrize("name", FORMATS)
def test_as_distributed_and_from_the_hub(tmp_path: Path, name: str) -> None:
    file, content, hub_row, inputs, target = READS[name]
    if file.endswith("l"):
        write(tmp_path / file, content)
    else:
        (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    own = task_of(name, tmp_path, task_prefix=True)
    row = own.rows("validation")[-1]
    assert (own.inputs(row), own.targets(row)) == (inputs, target)
    # The hub's Parquet files have numbers for labels.
    folder = tmp_path / "hub"
    folder.mkdir()
    split = "validation_matched" if name == "glue/mnli" else "validation"
    pq.write_table(pa.Table.from_pylist([hub_row]), folder / f"{split}.parquet")
    hub = task_of(name, folder, task_prefix=True, config=name.rpartition("/")[2])
    (hub_row_read,) = hub.rows("validation")
    assert (hub.inputs(hub_row_read), hub.targets(hub_row_read)) == (inputs, target)
    assert hub.answers(hub_row_read) == own.answers(row)
    assert hub.group(hub_row_read) == own.group(row)
    assert hub.holds(hub_row_read) == own.holds(row)
    # `task_prefix` changes nothing but the prefix.
    bare = task_of(name, tmp_path).inputs(row)
    assert inputs.removesuffix(bare).rstrip(": ") == task_name(name)


def test_parallel_files(tmp_path: Path) -> None:
    """A file per language: line i of both is a row; only "\\n" ends a line; files may be compressed."""
    (tmp_path / "newstest.en").write_bytes("One.\u2028Still one.\r\n\nThree.\n".encode())
    (tmp_path / "newstest.de.gz").write_bytes(gzip.compress(b"Eins.\nZwei.\nDrei."))
    splits = {"train": "newstest[:2]", "validation": "newstest[2:]"}
    task = task_of("wmt/en-de", tmp_path, reader="parallel", splits=splits)
    assert [(task.inputs(row), task.targets(row)) for row in task.rows("train")] == [
        ("One.\u2028Still one.", "Eins."), ("", "Zwei."),
    ]  # fmt: skip
    (last,) = task.rows("validation")
    assert (task.inputs(last), last.where) == ("Three.", f"{tmp_path / 'newstest.en'}:3")
    assert len(task_of("wmt/en-de", tmp_path, reader="parallel", splits=splits, nulls="drop").rows("train")) == 1
    assert task.held_out_texts(at_least=1) == ["Three."]
    # Both files are the task's data: their digests decide whether its stages are stale.
    assert sorted(task.settings.files()) == ["train.de", "train.en", "validation.de", "validation.en"]

    (tmp_path / "newstest.de").write_text("Eins.\n")
    with pytest.raises(InputError, match=r"newstest\.de and newstest\.de\.gz are both field 'de'"):
        task.rows("train")
    (tmp_path / "newstest.de.gz").unlink()
    with pytest.raises(InputError, match=r"differ in their number of lines \(.*newstest\.en 3 and .*newstest\.de 1\)"):
        task.rows("train")
    (tmp_path / "newstest.de").unlink()
    with pytest.raises(InputError, match=r"contains no file newstest\.de; fix the split or the field"):
        task.rows("train")
    with pytest.raises(InputError, match=r"newstest\.en is not a folder; name that of newstest\.en"):
        task_of("wmt/en-de", tmp_path / "newstest.en", reader="parallel", splits=splits).rows("train")


def test_mnli_has_two_validation_splits(tmp_path: Path) -> None:
    (tmp_path / "dev_mismatched.tsv").write_text("sentence1\tsentence2\tgold_label\nP.\tH.\tneutral\n")
    task = task_of("glue/mnli", tmp_path)
    assert [task.targets(row) for row in task.rows("validation_mismatched")] == ["neutral"]


def test_multirc(tmp_path: Path) -> None:
    write(tmp_path / "val.jsonl", [MULTIRC])
    task = task_of("superglue/multirc", tmp_path)
    rows = task.rows("validation")
    assert task.inputs(rows[1]) == "question: Who sat? answer: a dog paragraph: Sent 1: The cat sat. Sent 2: It slept."
    assert [task.targets(row) for row in rows] == ["True", "False", "True"]
    assert [task.group(row) for row in rows] == ["3/7", "3/7", "3/8"]


def test_record_trains_on_each_answer_and_scores_each_query_once(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "train.jsonl", [RECORD])
    task = task_of("superglue/record", tmp_path)
    (row,) = task.rows("train")
    assert task.answers(row) == ["Charles", "Zoe"]
    assert [task.targets(r) for r in task.rows("train", training=True)] == ["Charles", "Zoe"]
    encoded = encode_task(task, "train", Reading(vocabulary, 64, 16))
    assert (len(encoded), encoded.answers, encoded.groups) == (1, [["Charles", "Zoe"]], None)
    assert len(encode_task(task, "train", Reading(vocabulary, 64, 16), training=True)) == 2
    (query,) = RECORD["qas"]
    write(tmp_path / "train.jsonl", [RECORD, {**RECORD, "qas": [{**query, "answers": []}]}])
    assert len(task.rows("train")) == 1


def test_wsc_marks_the_pronoun_and_trains_on_true_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "train.jsonl", [WSC, {**WSC, "label": False}])
    task = task_of("superglue/wsc", tmp_path)
    assert {task.inputs(row) for row in task.rows("train")} == {"The pony threw *him* over, the boy said."}
    assert [task.holds(row) for row in task.rows("train")] == [True, False]
    assert [task.holds(row) for row in task.rows("train", training=True)] == [True]
    assert encode_task(task, "train", Reading(vocabulary, 64, 16)).holds == [True, False]


@pytest.mark.parametrize(("text", "index", "pronoun", "marked"), [
    ("The boy said he ran; then he sat.", 3, "he", "The boy said *he* ran; then he sat."),
    ("The boy said he ran; then he sat.", 6, "he", "The boy said he ran; then *he* sat."),
    ("They use it  , but the", 1, "it", "They use *it*  , but the"),  # off by a word, as in the benchmark
    ('"Good for him," he said.', 3, "him", '"Good for *him*," he said.'),
    ("She hid herself because she could.", 4, "She", "She hid herself because *she* could."),  # keeps the case of the text
    ("If they\nscold her, they go.", 1, "they", "If *they*\nscold her, they go."),
    ("We saw them.", 2, "them.", "We saw *them*."),
])  # fmt: skip
def test_wsc_marks_the_nearest_occurrence_of_the_pronoun(
    text: str, index: int, pronoun: str, marked: str, tmp_path: Path
) -> None:
    target = {"span2_index": index, "span1_index": 0, "span1_text": "it", "span2_text": pronoun}
    write(tmp_path / "val.jsonl", [{"text": text, "target": target, "label": False}])
    task = task_of("superglue/wsc", tmp_path)
    assert [task.inputs(row) for row in task.rows("validation")] == [marked]


def squad(folder: Path) -> None:
    """Ten paragraphs in two articles; each has two questions, one without an answer."""
    numbered = [
        json.loads(json.dumps(SQUAD_PARAGRAPH).replace("Ada", f"Ada{n}").replace('"id": "a"', f'"id": "{n}"'))
        for n in range(10)
    ]
    articles = [{"paragraphs": numbered[:4]}, {"paragraphs": numbered[4:]}]
    (folder / "all.json").write_text(json.dumps({"data": articles}))


def test_squad_slices_paragraphs_not_questions(tmp_path: Path) -> None:
    squad(tmp_path)
    splits = {"train": "all.json[:70%]", "validation": "all[70%:]", "test": "all[-2:]"}
    task = task_of("squad", tmp_path, splits=splits)
    rows = task.rows("train")
    assert [row["id"] for row in rows] == list("0123456")
    assert rows.dropped == {"without an answer": 7}
    assert [task.answers(row) for row in task.rows("validation")] == [
        [f"Ada{n} Lovelace", f"Ada{n}"] for n in (7, 8, 9)
    ]
    assert [row["id"] for row in task.rows("test")] == list("89")


def test_mrqa(tmp_path: Path) -> None:
    """MRQA's files, on which the paper scores prompts for SQuAD, and the flat rows of its hub data set."""
    asked = {
        "qid": "a", "question": "Who?", "answers": ["Ada Lovelace", "ada", "Ada Lovelace"],
        "detected_answers": [{"text": "Lady Ada", "char_spans": [[4, 11]]}, {"text": "Ada", "char_spans": [[9, 11]]}],
    }  # fmt: skip
    other = {"qid": "b", "question": "When?", "answers": ["1843"], "detected_answers": []}
    passage = {"id": "", "context": "So: Lady Ada wrote it.", "qas": [asked, other]}
    lines = [{"header": {"dataset": "BioASQ", "split": "dev"}}, passage, passage | {"context": "Another."}]
    with gzip.open(tmp_path / "BioASQ.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    task = task_of("squad", tmp_path, splits={"test": "BioASQ", "first": "BioASQ[:1]"})
    rows = task.rows("first")
    assert [(row["id"], task.targets(row), task.answers(row)) for row in rows] == [
        ("a", "Lady Ada", ["Ada Lovelace", "ada"]), ("b", "1843", ["1843"]),
    ]  # fmt: skip
    assert task.inputs(rows[0]) == "question: Who? context: So: Lady Ada wrote it."
    assert (len(task.rows("test")), task.counts("test", task.rows("test")).read) == (4, 4)
    flat = asked | {
        "context": passage["context"],
        "subset": "BioASQ",
        "detected_answers": {"text": ["Lady Ada", "Ada"]},
    }
    pq.write_table(pa.Table.from_pylist([flat]), tmp_path / "hub.parquet")
    (row,) = task_of("squad", tmp_path, config="plain_text", splits={"test": "hub"}).rows("test")
    assert (row["id"], row["answer"], row["answers"]) == ("a", "Lady Ada", ["Ada Lovelace", "ada"])


@pytest.mark.parametrize(("name", "row", "passage"), [
    ("superglue/multirc", READS["superglue/multirc"][2], "paragraph"),
    ("superglue/record", READS["superglue/record"][2], "passage"),
    ("squad", READS["squad"][2], "context"),
])  # fmt: skip
def test_slices_of_hub_rows_count_passages(
    monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any], passage: str
) -> None:
    """Three questions about each of four passages; only the network is replaced."""
    asked = []

    def hub_rows(data: str, config: str | None, split: str, columns: Any, optional: Any) -> Iterator[Row]:
        asked.append((data, config, split))
        assert passage in optional
        return (Row({**row, passage: f"p{n // 3}"}, f"row {n}") for n in range(12))

    monkeypatch.setattr("t5_pipeline.data_prep.tasks.task.hub_rows", hub_rows)
    splits = {"train": "train[:30%]", "validation": "train[30%:]"}
    task = task_of(name, "org/set", config="c", splits=splits)
    read = [[r[passage] for r in task.rows(split)] for split in splits]
    assert [Counter(found) for found in read] == [{"p0": 3}, {"p1": 3, "p2": 3, "p3": 3}]
    assert asked == [("org/set", "c", "train")] * 2


def test_slices_are_taken_before_rows_are_filtered(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{**WSC, "label": n >= 2, "text": f"{n} threw him."} for n in range(4)])
    splits = {"train": "train[:3]", "rest": "train[3:]", "none": "train[:2]"}
    task = task_of("superglue/wsc", tmp_path, splits=splits)
    assert [task.inputs(row) for row in task.rows("train", training=True)] == ["2 threw *him*."]
    assert [task.inputs(row) for row in task.rows("rest")] == ["3 threw *him*."]
    with pytest.raises(InputError, match="has no rows"):
        task.rows("none", training=True)


def test_slices_of_built_in_rows() -> None:
    about = {"inputs": "{text}", "targets": "{kind}", "splits": {"train": "train", "validation": "train[-5:]"}}
    task = Task.load(TaskConfig(name="t", data="stdlib-kinds", **about))
    assert task.rows("validation") == task.rows("train")[-5:]


def test_held_out_texts_are_cleaned_and_sliced(tmp_path: Path) -> None:
    """Decontamination uses passages without markup, and only the held-out slices."""
    write(tmp_path / "val.jsonl", [MULTIRC])
    assert task_of("superglue/multirc", tmp_path).held_out_texts() == ["Sent 1: The cat sat. Sent 2: It slept."]
    write(tmp_path / "val.jsonl", [RECORD])
    assert task_of("superglue/record", tmp_path).held_out_texts() == [
        "Zoe met Charles! They built an engine. Zoe wrote notes"
    ]
    write(tmp_path / "val.jsonl", [WSC])
    assert task_of("superglue/wsc", tmp_path).held_out_texts() == ["The pony threw *him* over, the boy said."]
    squad(tmp_path)
    task = task_of("squad", tmp_path, splits={"train": "all[:90%]", "validation": "all[90%:]"})
    assert task.held_out_texts(at_least=3) == ["Ada9 Lovelace (1815-1852) wrote notes."]


@pytest.mark.parametrize(("format_", "row", "message"), [
    ("superglue/multirc", {"passage": {"text": "x"}}, "does not have the multirc format"),
    ("superglue/record", {"passage": ["x"], "qas": []}, "does not have the record format"),
    ("superglue/wsc", {"text": "a b", "target": {"span2_index": 1, "span2_text": "he", "span1_text": "x"}}, "does not contain the pronoun 'he'"),
    ("superglue/wsc", {"text": "a b", "target": {"span2_index": 1, "span2_text": "", "span1_text": "x"}}, "does not contain the pronoun ''"),
])  # fmt: skip
def test_malformed_row_is_reported_with_its_line(tmp_path: Path, format_: str, row: Any, message: str) -> None:
    write(tmp_path / "val.jsonl", [row])
    with pytest.raises(InputError, match=r"val\.jsonl:1: .*" + message):
        task_of(format_, tmp_path).rows("validation")


@pytest.mark.parametrize("content", ["[]", '{"data": [{"paragraphs": ["x"]}]}', '{"data": 3}'])
def test_malformed_squad_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "dev-v1.1.json").write_text(content)
    with pytest.raises(InputError, match="is not SQuAD's JSON"):
        task_of("squad", tmp_path).rows("validation")


def test_only_qqp_skips_truncated_lines(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text(READS["glue/qqp"][1])
    rows = task_of("glue/qqp", tmp_path).rows("validation")
    assert (len(rows), rows.dropped) == (1, {"too few columns": 2})
    with pytest.raises(InputError, match=r"dev\.tsv:2: has 4 fields, not 6"):
        task_of("glue/qqp", tmp_path, reader="rows").rows("validation")


@pytest.mark.parametrize(("score", "read"), [
    ("0.000", "0.0"), ("0.1", "0.0"), ("0.3", "0.4"), ("2.5", "2.4"), ("3.9", "4.0"), ("4.95", "5.0"), (1, "1.0"),
])  # fmt: skip
def test_scores_are_rounded_as_t5_does(tmp_path: Path, score: Any, read: str) -> None:
    """round(5y)/5, with half a step rounded to the even multiple."""
    write(tmp_path / "dev.jsonl", [{"sentence1": "A.", "sentence2": "B.", "score": score}])
    task = task_of("glue/stsb", tmp_path)
    assert [task.targets(row) for row in task.rows("validation")] == [read]


def test_rounded_numbers_have_the_decimals_of_the_step(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"x": "1234.5678"}, {"x": "many"}])
    for step, read in ((0.25, "1234.50"), (5, "1235"), (0.001, "1234.568")):
        about = {"inputs": "{x}", "targets": "{x}", "round_to": {"x": step}}
        task = Task.load(TaskConfig(name="t", data=str(tmp_path), **about))
        first, second = task.rows("train")
        assert task.targets(first) == read
        with pytest.raises(InputError, match=r"train\.jsonl:2: field 'x' is 'many', not a number"):
            task.targets(second)
    with pytest.raises(InputError, match=r"tasks\.t\.round_to: no template contains 'y'"):
        Task.load(TaskConfig(name="t", data="x", inputs="{x}", targets="{x}", round_to={"y": 1}))


@pytest.mark.parametrize(("more", "row", "message"), [
    ({"answers": "all"}, {"a": "x", "b": "y", "all": []}, r"field 'all' is \[\], not a list of answers; fix `tasks\.t\.answers`"),
    ({"answers": "all"}, {"a": "x", "b": "y"}, r"has no field 'all' \(only a, b\)"),
    ({"group": "g"}, {"a": "x", "b": "y"}, r"has no field 'g' \(only a, b\); fix `tasks\.t\.group`"),
    ({"holds": "h"}, {"a": "x", "b": "y", "h": "perhaps"}, r"field 'h' is 'perhaps', not true or false; fix `tasks\.t\.holds`"),
])  # fmt: skip
def test_fields_for_scoring_are_checked_in_each_row(
    tmp_path: Path, vocabulary: Vocabulary, more: dict[str, str], row: dict[str, Any], message: str
) -> None:
    write(tmp_path / "train.jsonl", [row])
    task = Task.load(TaskConfig(name="t", data=str(tmp_path), inputs="{a}", targets="{b}", **more))
    with pytest.raises(InputError, match=r"train\.jsonl:1: .*" + message):
        encode_task(task, "train", Reading(vocabulary, 16, 16))


# ------------------------------------------------------------------------------------------- the real files


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


# Complete training files: (format, folder, split, rows, rows to train on).
REAL_TRAINING = [
    ("superglue/multirc", "superglue/MultiRC", "train", 27243, 27243),
    ("superglue/copa", "superglue/COPA", "train", 400, 400),
    ("superglue/cb", "superglue/CB", "train", 250, 250),
    ("superglue/rte", "superglue/RTE", "train", 2490, 2490),
    ("superglue/wic", "superglue/WiC", "train", 5428, 5428),
    ("superglue/wsc", "superglue/WSC", "dev32", 32, 10),
    ("superglue/record", "superglue/ReCoRD", "train32", 32, 44),
    ("glue/cola", "glue/CoLA", "in_domain_train", 8551, 8551),
    ("glue/mrpc", "glue/MRPC", "msr_paraphrase_train.txt", 4076, 4076),
    ("glue/rte", "glue/RTE", "train", 2490, 2490),
    ("glue/stsb", "glue/STS-B", "train", 5749, 5749),
]


def test_every_superglue_task_has_a_real_file() -> None:
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


@pytest.mark.parametrize(
    ("name", "folder", "split", "count", "trained"), REAL_TRAINING, ids=[r[0] for r in REAL_TRAINING]
)
def test_real_training_files(shared: Path, name: str, folder: str, split: str, count: int, trained: int) -> None:
    task = task_of(name, shared / "data" / "tasks" / folder, splits={"train": split})
    rows = task.rows("train")
    assert (len(rows), len(task.rows("train", training=True))) == (count, trained)
    if task.labels:
        assert {task.targets(row) for row in rows} == set(task.labels)
    if name == "glue/stsb":
        assert {task.targets(row) for row in rows} <= {f"{n / 5:.1f}" for n in range(26)}


def test_real_wsc_referents_occur_in_their_text(shared: Path) -> None:
    """Some rows of the benchmark begin the referent with a capital that their sentence has not."""
    task = task_of("superglue/wsc", shared / "data" / "tasks" / "superglue" / "WSC")
    missing = [
        row["referent"] for row in task.rows("validation") if row["referent"] not in row["text"].replace("*", "")
    ]
    assert missing == []
