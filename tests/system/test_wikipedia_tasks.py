"""The tasks that the text of Wikipedia provides: labels are true, and splits share no row."""

from __future__ import annotations

from benchmarks.wikipedia_tasks import field, order, sentences, subjectivity, tasks

KINDS = {"film": "drama film", "sport": "football club", "place": "market town", "law": "federal law"}


def _article(number: int) -> str:
    """Ten sentences of seven words, no two of which are equal."""
    kind = list(KINDS.values())[number % len(KINDS)]
    later = [f"Its part {number} number {i} says something else." for i in range(9)]
    return " ".join([f"Article number {number} here is a {kind}.", *later])


ARTICLES = [_article(number) for number in range(40)]
REVIEWS = [f"I like number {number} of them very much. It works." for number in range(12)]


def test_a_sentence_is_shuffled_except_its_first_and_last_word() -> None:
    known = {sentence for article in ARTICLES for sentence in sentences(article)}
    labels = set()
    for row in order(ARTICLES):
        words = row["text"].split()
        labels.add(row["label"])
        assert words[0] == "Its"
        assert words[-1] == "else."
        assert (row["text"] in known) == (row["label"] == "original")
    assert labels == {"original", "shuffled"}


def test_the_field_comes_from_the_first_sentence_and_the_text_from_the_second() -> None:
    rows = list(field(ARTICLES))
    assert [row["label"] for row in rows] == [list(KINDS)[number % len(KINDS)] for number in range(len(ARTICLES))]
    assert [row["text"] for row in rows] == [sentences(article)[1] for article in ARTICLES]


def test_subjectivity_has_as_many_sentences_of_reviews_as_of_articles() -> None:
    rows = subjectivity(ARTICLES, REVIEWS)
    texts = {label: {row["text"] for row in rows if row["label"] == label} for label in ("objective", "subjective")}
    assert texts["subjective"] == {f"i like number {number} of them very much ." for number in range(12)}
    assert len(texts["objective"]) == 12
    assert all(text.startswith(("article number", "its part")) for text in texts["objective"])


def test_splits_share_no_row_and_repeat_exactly() -> None:
    train, held_out = ARTICLES[:30], ARTICLES[30:]
    found = tasks(train, held_out, REVIEWS)
    assert found == tasks(train, held_out, REVIEWS)
    for splits in found.values():
        rows = [frozenset(row.items()) for split in splits.values() for row in split]
        assert rows
        assert len(rows) == len(set(rows))
