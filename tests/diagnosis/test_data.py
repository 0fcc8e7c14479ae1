"""Diagnosis of corpora, token shards and task files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import corpus_chunks
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.diagnose import diagnose
from t5_pipeline.diagnosis.findings import Diagnosis
from t5_pipeline.diagnosis.probes import SENTENCES
from tests.diagnosis.conftest import World
from tests.tiny_run import write_rows


def notes(d: Diagnosis) -> list[str]:
    return [f"{check.name}: {check.found}" for check in d.checks if check.state == "note"]


def test_a_corpus(world: World, tmp_path: Path) -> None:
    corpus = tmp_path / "docs.jsonl"
    write_rows(corpus, [{"text": text} for text in SENTENCES])
    d = diagnose(str(corpus), model=str(world.model))
    assert d.ok
    assert notes(d) == []
    assert d.facts["sample"][0] == len(SENTENCES)
    rows = [{"text": text} for text in ["", SENTENCES[0], SENTENCES[0], "ein Fehler \ufffd", "хорошая погода"]]
    write_rows(corpus, rows)
    d = diagnose(str(corpus), model=str(world.model))
    assert d.ok
    assert notes(d)[:3] == [
        "text: 20% of the documents are empty",
        "text: 20% of the documents repeat another one",
        "text: 20% of the documents contain replacement characters (U+FFFD)",
    ]
    assert notes(d)[3].startswith("vocabulary: ")
    d = diagnose(str(corpus), text_field="body")
    assert not d.ok
    assert "no field 'body'" in d.checks[-1].found
    (tmp_path / "one.txt").write_text(SENTENCES[0])
    assert diagnose(str(tmp_path / "one.txt")).facts["sample"][1] == "1 document from 1 of 1 chunk"
    corpus.write_text("")
    assert diagnose(str(corpus)).checks[-1].found == f"{corpus}: is empty"


def test_a_task(world: World, tmp_path: Path) -> None:
    rows = [{"text": text, "kind": ("air", "water")[i % 2]} for i, text in enumerate(SENTENCES)]
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    write_rows(tmp_path / "rows" / "validation.jsonl", [{"text": "Water is wet.", "kind": "water"}])
    settings = {
        "name": "kind", "data": str(tmp_path / "rows"), "inputs": "{text}", "targets": "{kind}",
        "labels": ["air", "water"], "splits": {"train": "train", "validation": "validation"},
    }  # fmt: skip
    file = tmp_path / "kind.yaml"
    file.write_text(yaml.dump(settings))
    d = diagnose(str(file), model=str(world.model))
    assert d.ok, d.checks
    assert d.facts["train"] == ({"rows": 8, "dropped": {}}, "8 rows; air 50%, water 50%")
    assert d.facts["validation"][1] == "1 row; air 0%, water 100%"
    assert notes(d) == ["validation: no row has the label 'air'"]
    write_rows(
        tmp_path / "rows" / "validation.jsonl",
        [*rows[:2], *({"text": f"{kind}.", "kind": kind} for kind in ("Air", "Air", ""))],
    )
    d = diagnose(str(file), model=str(world.model))
    (check,) = [check for check in d.checks if check.state == "wrong"]
    assert check.name == "validation"
    assert check.found.replace(f"{tmp_path}/rows/", "") == (
        "3 of 5 rows have targets that are not labels: 'Air' (2, first at validation.jsonl:3),"
        " '' (1, first at validation.jsonl:5)"
    )
    write_rows(tmp_path / "rows" / "validation.jsonl", rows[:2])
    assert notes(diagnose(str(file))) == [
        f"overlap: inputs of `train` that another split has: 2, such as {min(row['text'] for row in rows[:2])!r:.60}"
    ]
    file.write_text(yaml.dump(settings | {"splits": {"train": "train", "validation": "train[-1:]"}}))
    assert notes(diagnose(str(file))) == [
        "validation: tasks.kind: split 'validation' contains rows of `train`, so scores on it are too high",
        "validation: no row has the label 'air'",
        f"overlap: inputs of `train` that another split has: 1, such as {rows[-1]['text']!r:.60}",
    ]
    write_rows(tmp_path / "rows" / "validation.jsonl", [{"text": "\u732b", "kind": "\u732b"}])
    write_rows(tmp_path / "rows" / "train.jsonl", [{"text": text, "kind": "\u732b"} for text in ("\u732b cat", "Air.")])
    file.write_text(yaml.dump({key: value for key, value in settings.items() if key != "labels"}))
    assert notes(diagnose(str(file), model=str(world.model))) == [
        "vocabulary: 1 of 2 inputs have characters that the vocabulary lacks",
        "vocabulary: 2 of 2 targets have characters that the vocabulary lacks",
    ]
    file.write_text(yaml.dump(settings))
    file.write_text(yaml.dump({**settings, "inputs": "{text"}))
    assert not diagnose(str(file)).ok


def test_a_table_is_not_a_task(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,kind\nx,y\n")
    with pytest.raises(InputError, match=r"rows\.csv: contains rows; describe their task in a YAML file"):
        diagnose(str(tmp_path / "rows.csv"))


def test_a_missing_task_file_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    d = diagnose("tone.yaml")
    assert [check.found for check in d.checks] == ["cannot read tone.yaml (No such file or directory)"]


def test_token_shards(world: World, tmp_path: Path) -> None:
    corpus = tmp_path / "docs.jsonl"
    write_rows(corpus, [{"text": text} for text in SENTENCES])
    vocabulary = Vocabulary.load(world.model)
    write_tokens(corpus_chunks(corpus), vocabulary, tmp_path / "tokens")
    d = diagnose(str(tmp_path / "tokens"), model=str(world.model))
    assert d.ok, d.checks
    assert d.facts["train"][0] == {"documents": 8, "tokens": sum(len(vocabulary.encode(t)) for t in SENTENCES)}
    assert notes(d) == ["validation: there is no held-out text"]
    d = diagnose(str(tmp_path / "tokens"), model=str(world.other))
    assert [check.name for check in d.checks if check.state == "wrong"] == ["T5"]
    file = tmp_path / "tokens" / "shard-00000" / "train.tokens"
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(content)
    d = diagnose(str(tmp_path / "tokens"))
    assert [check.name for check in d.checks if check.state == "wrong"] == ["shards"]
