from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora import hub
from t5_pipeline.data_prep.corpora.documents import Document, HubShard, corpus_chunks, skipped_files
from t5_pipeline.data_prep.corpora.hub import hub_rows, hub_shards
from t5_pipeline.data_prep.corpora.parquet import column_bytes
from tests.local_hub import without_network


def read_corpus(location: str | Path, **options: Any) -> Iterator[Document]:
    """The documents of all chunks, in order."""
    return (document for chunk in corpus_chunks(location, **options) for document in chunk.documents())


def write_corpus(folder: Path) -> None:
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("A whole\nfile.", encoding="utf-8")
    (folder / "b" / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "b" / "more.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "three"}\n'))
    (folder / "c.txt.gz").write_bytes(gzip.compress("vier €".encode()))
    pq.write_table(pa.table({"text": ["five", "six"], "id": [1, 2]}), folder / "d.parquet")
    (folder / "README.md").write_text("not a part of the corpus")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("not either")


def test_folder_of_all_formats(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    documents = list(read_corpus(tmp_path))
    assert [d.text for d in documents] == ["A whole\nfile.", "three", "one", "two", "vier €", "five", "six"]
    assert [divmod(d.position, 2**40) for d in documents] == [(0, 0), (1, 0), (2, 0), (2, 16), (3, 0), (4, 0), (4, 1)]
    assert documents == list(read_corpus(str(tmp_path)))


def test_c4_as_distributed(tmp_path: Path) -> None:
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"} for text in ("one", "two")]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "plain.json").write_bytes(lines)
    (tmp_path / "q.ndjson").write_bytes(lines)
    (tmp_path / "r list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "s list.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    documents = list(read_corpus(tmp_path))
    assert [d.text for d in documents] == ["one", "two"] * 5
    assert [d.position % 2**40 for d in documents] == [0, 1, 0, len(lines) // 2, 0, len(lines) // 2, 0, 1, 0, 1]
    assert documents == [d for chunk in corpus_chunks(tmp_path, chunk_bytes=10) for d in chunk.documents()]
    assert skipped_files(tmp_path) == []


def test_a_file_and_its_compressed_copy_are_not_read_twice(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for name in ("a.txt", "part/a.txt.gz", "b.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(b"text") if name.endswith("gz") else b'{"text": "b"}\n')
    assert len(list(read_corpus(tmp_path))) == 3
    (tmp_path / "part/a.txt").write_text("text")
    with pytest.raises(InputError, match=r"part/a\.txt and part/a\.txt\.gz differ only in compression; remove one"):
        corpus_chunks(tmp_path)


def test_skipped_files(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for name in ("e.CSV", "b/f.parquet.gz", "g.jsonl.bz2", "B.JSONL.GZ"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "linked").symlink_to(tmp_path.parent, target_is_directory=True)
    (tmp_path / "absent.txt").symlink_to("nothing.txt")
    skipped = ["README.md", "absent.txt", "b/f.parquet.gz", "e.CSV", "g.jsonl.bz2", "linked"]
    assert skipped_files(tmp_path) == skipped
    assert skipped_files(tmp_path / "a.txt") == skipped_files("org/name") == []


def test_single_file(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert [d.text for d in read_corpus(tmp_path / "a.txt")] == ["A whole\nfile."]
    assert [d.text for d in read_corpus(tmp_path / "d.parquet")] == ["five", "six"]


def test_a_text_file_is_one_document_also_if_it_is_compressed(tmp_path: Path) -> None:
    text = "one\n\ntwo\n\n\nthree\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(text.encode()))
    for name in ("a.txt", "b.txt.gz", "c.txt.zst"):
        assert [d.text for d in read_corpus(tmp_path / name)] == [text]


def test_other_text_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one", "text": 3}\n')
    assert [d.text for d in read_corpus(path, text_field="body")] == ["one"]


@pytest.mark.parametrize("row", [{"doc": {"text": "one", "id": 1}, "text": 3}, {"doc.text": "one", "doc.id": 1}])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_nested_text_field(tmp_path: Path, row: dict[str, Any], suffix: str) -> None:
    """As in tasks: a field of a nested object, or one whose name contains a dot. Chunks are cut by its size."""
    path, rows = tmp_path / f"rows.{suffix}", [row] * 3
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
        assert all(size > 0 for size, _ in column_bytes(path, "doc.text"))
        assert len(corpus_chunks(path, text_field="doc.text", chunk_bytes=1)) == 3
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(one) + "\n" for one in rows))
    assert [document.text for document in read_corpus(path, text_field="doc.text")] == ["one"] * 3
    with pytest.raises(InputError, match=r"has no (field|column) 'doc\.body'"):
        list(read_corpus(path, text_field="doc.body"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x", "id": 3}, r"rows\.jsonl:2: has no field 'text' \(only body, id\); set `text_field`"),
        ({"text": 3}, r"rows\.jsonl:2: field 'text' is a number, not text"),
        ({"text": None}, r"rows\.jsonl:2: field 'text' is empty \(null\), not text"),
        ({"text": "half \ud800"}, r"rows\.jsonl:2: character 5 is half of a surrogate pair"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        list(read_corpus(path))


def test_parquet_without_the_column(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(InputError, match=r"d\.parquet: has no column 'body'; choose one of text, id"):
        list(read_corpus(tmp_path / "d.parquet", text_field="body"))


def test_missing_corpus_is_reported_before_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_corpus(tmp_path / "absent")
    for name in ("corpus.jsonl", "corpus.csv", "corpus.ndjson.gz"):
        with pytest.raises(InputError, match=rf"^corpus absent/{name} does not exist; check the path"):
            read_corpus(f"absent/{name}")
    with pytest.raises(InputError, match=r"contains no \.txt"):
        read_corpus(tmp_path)
    (tmp_path / "x.pdf").write_text("")
    with pytest.raises(InputError, match="unknown suffix"):
        read_corpus(tmp_path / "x.pdf")


def test_hub_data_set_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **named: 1 / 0)
    monkeypatch.setattr(hub, "network_error", lambda: None)
    with pytest.raises(InputError, match=r"allenai/c5: does not exist here, .* division by zero; check the path"):
        read_corpus("allenai/c5", config="en")


def test_a_hub_data_set_without_a_network_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    without_network(monkeypatch)
    with pytest.raises(InputError, match=r"allenai/c6: .*not known; check the path, or the name and the network"):
        read_corpus("allenai/c6", config="en")


def test_stdlib_docs() -> None:
    first = next(read_corpus("stdlib-docs"))
    assert first.text.endswith(" module")
    assert first.position == 0


LINES = ["\ufeff", "", "a", "é" * 20, "x" * 300, "  ", "€\u2028b", "\r", '"\\']


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.sampled_from(LINES), min_size=1, max_size=30),
    ends=st.booleans(),
    blank=st.integers(0, 3),
    size=st.integers(1, 2_000),
)
def test_lines_in_chunks_of_any_size(tmp_path: Path, texts: list[str], ends: bool, blank: int, size: int) -> None:
    """Each document is in one chunk, with its position, whatever `chunk_bytes` is."""
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\n" * blank + ("\n" + "\n" * blank).join(rows) + "\n" * ends).encode())
    chunks = corpus_chunks(path, chunk_bytes=size)
    found = [document for chunk in chunks for document in chunk.documents()]
    assert [d.text for d in found] == texts
    assert found == list(read_corpus(path))
    content = path.read_bytes()
    assert all(content[d.position :].startswith(row.encode()) for d, row in zip(found, rows, strict=True))
    assert len({chunk.name for chunk in chunks}) == len(chunks)
    assert max((sum(1 for _ in chunk.documents()) for chunk in chunks), default=0) <= max(1, size)


@pytest.mark.parametrize("group", [3, 7, 1000])
@pytest.mark.parametrize("size", [1, 100, 333, 10**6])
def test_parquet_in_chunks_of_any_size(tmp_path: Path, group: int, size: int) -> None:
    for name, count in (("a", 20), ("b", 0), ("c", 31)):
        texts = [f"{name}{i} " * (i % 5 + 1) for i in range(count)]
        table = pa.table({"id": list(range(count)), "text": pa.array(texts, pa.string())})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group, use_dictionary=False)
    chunks = corpus_chunks(tmp_path, chunk_bytes=size)
    found = [document for chunk in chunks for document in chunk.documents()]
    assert found == list(read_corpus(tmp_path))
    assert [divmod(d.position, 2**40) for d in found] == [(0, i) for i in range(20)] + [(2, i) for i in range(31)]
    assert [d.text.split()[0] for d in found] == [f"a{i}" for i in range(20)] + [f"c{i}" for i in range(31)]
    assert len(chunks) == {1: 51, 10**6: 1}.get(size, len(chunks))
    assert len({chunk.name for chunk in chunks}) == len(chunks)


def test_many_small_files_share_a_chunk(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"{i:02d}.txt").write_text(f"text {i} ".ljust(100))
    (tmp_path / "50.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n' * 3))
    chunks = corpus_chunks(tmp_path, chunk_bytes=1000)
    assert [len(list(chunk.documents())) for chunk in chunks] == [10, 10, 10, 10, 10, 3]
    assert chunks[0].name == "00.txt to 09.txt"


def test_small_corpora_have_smaller_chunks(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 2**20}) + "\n"
    (tmp_path / "rows.jsonl").write_text(line * 40)
    assert len(corpus_chunks(tmp_path)) == 11  # of 4 MiB
    assert len(corpus_chunks(tmp_path, chunk_bytes=2**21)) == 21


def test_bad_row_in_a_later_chunk_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' * 500 + '{"text": 3}\n')
    *_, last = corpus_chunks(path, chunk_bytes=1000)
    with pytest.raises(InputError, match=r"rows\.jsonl:1001: field 'text' is a number, not text"):
        list(last.documents())


@pytest.fixture
def hub_like(tmp_path: Path) -> Path:
    """A data set laid out as on the hub: Parquet files by split."""
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)

    def when(rows: int) -> pa.Array:
        return pa.array([2**60] * rows, pa.timestamp("ms"))

    for shard in range(3):
        rows = [f"text {shard}.{i}" for i in range(4)]
        table = pa.table({"text": rows, "id": range(4), "when": when(4), "meta": [{"id": 7}] * 4})
        pq.write_table(table, folder / "data" / f"train-0000{shard}-of-00003.parquet")
    table = pa.table({"text": ["aside"], "id": [0], "when": when(1), "meta": [{"id": 7}]})
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def test_hub_shards(hub_like: Path) -> None:
    of = hub_shards(str(hub_like), None, "train")
    assert of == 3
    chunks = [HubShard(str(hub_like), None, "train", "text", index, of) for index in range(of)]
    assert [chunk.name for chunk in chunks] == ["train 1 of 3", "train 2 of 3", "train 3 of 3"]
    assert [d.text for chunk in chunks for d in chunk.documents()] == [
        f"text {shard}.{i}" for shard in range(3) for i in range(4)
    ]
    assert [divmod(d.position, 2**40) for d in chunks[2].documents()] == [(2, i) for i in range(4)]
    with pytest.raises(InputError, match=r"set/train: has no column 'body'; choose one of text, id, when"):
        list(HubShard(str(hub_like), None, "train", "body", 0, of).documents())


def test_only_used_columns_of_a_hub_data_set_are_decoded(hub_like: Path) -> None:
    """The dates of the data set are out of Python's range."""

    def read(*columns: str, optional: Sequence[str] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in hub_rows(str(hub_like), None, "validation", columns, optional)]

    assert read("text", "meta.id") == [{"text": "aside", "meta": {"id": 7}}]
    assert read("text", optional=["id", "label"]) == [{"text": "aside", "id": 0}]
    with pytest.raises(InputError, match=r"set/validation: has no column 'title'; choose one of text, id"):
        read("text", "title")
    with pytest.raises(InputError, match=r"set/validation: cannot read it \("):
        read("when")


def test_floats_of_a_hub_data_set_are_the_numbers_that_were_written(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": pa.array([3.8, 0.7], pa.float32())}), tmp_path / "train.parquet")
    assert [dict(row) for row in hub_rows(str(tmp_path), None, "train", ["label"])] == [{"label": 3.8}, {"label": 0.7}]


def test_damaged_file_of_a_hub_data_set(hub_like: Path) -> None:
    chunk = HubShard(str(hub_like), None, "train", "text", 1, hub_shards(str(hub_like), None, "train"))
    path = hub_like / "data" / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        InputError, match=r"set/train, shard 2 of 3: cannot read it \(.*\); run the same command to resume"
    ):
        list(chunk.documents())
