from __future__ import annotations

import re
from collections import Counter

from t5_pipeline.data_prep.corpora.stdlib_docs import (
    KINDS,
    PAGE_WIDTH,
    SHORTEST_TEXT,
    Page,
    _task_entries,
    documents,
    task_rows,
)

SPLITS = ("train", "validation", "test")


def test_corpus_size_and_determinism(pages: list[Page]) -> None:
    assert 1_000_000 < sum(len(page.text) for page in pages) < 10_000_000
    assert pages == list(documents())


def test_each_page_ends_with_its_kind(pages: list[Page]) -> None:
    kinds = Counter(page.text.rsplit(" ", 1)[1] for page in pages)
    assert set(kinds) <= {"class", "function", "method", "module", "topic"}
    assert min(kinds[kind] for kind in KINDS) > 500
    assert max(len(page.text) for page in pages) <= PAGE_WIDTH + len(" function")


def test_splits_are_balanced_and_disjoint() -> None:
    rows = {split: task_rows(split) for split in SPLITS}
    for split in SPLITS:
        counts = Counter(row["kind"] for row in rows[split])
        assert set(counts) == set(KINDS)
        assert len(set(counts.values())) == 1
    names = [row["name"] for split in SPLITS for row in rows[split]]
    texts = [entry.text.casefold() for split in SPLITS for entry in _task_entries()[split]]
    assert len(names) == len(set(names)) > 500
    assert len(texts) == len(set(texts))


def test_no_input_contains_its_label() -> None:
    for split in SPLITS:
        for row in task_rows(split):
            assert not re.search("|".join(KINDS), row["text"], re.IGNORECASE), row
            assert len(row["text"]) <= PAGE_WIDTH


def test_no_held_out_docstring_is_in_the_corpus(pages: list[Page]) -> None:
    """Independent of Decontamination: plain substring search over the pages of the whole corpus, joined."""
    corpus = " ".join(page.text.rsplit(" ", 1)[0] for page in pages).casefold()
    for split in ("validation", "test"):
        for entry in _task_entries()[split]:
            assert len(entry.text) >= SHORTEST_TEXT
            assert f" {entry.text.casefold()} " not in corpus, entry.name
