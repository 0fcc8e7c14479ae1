"""Tasks that the text of Wikipedia and of reviews provides, for recipes/wikipedia-study.yaml.

    python -m benchmarks.wikipedia_tasks CORPUS REVIEWS OUTPUT

CORPUS has train.parquet and validation.parquet with a column `text` of whole articles. REVIEWS is a file of SQuADShifts
whose contexts are reviews (amazon_reviews_v1.0.json). OUTPUT gets a folder for each task with
{train,validation,test}.jsonl:

order         is a sentence in its original word order, or are its words shuffled, except the first and the last?
field         is an article about film and television, sport, places or law? The input is the article's second sentence;
              the label is taken from its first, which says what the article is about.
subjectivity  is a sentence from a review of a product (subjective), or from an article (objective)? Only a test split:
              another domain for what was learned from SUBJ, whose sentences are from reviews and plots of films. They
              are written as SUBJ's are, in lower case with spaces around punctuation.

Test and validation rows of `order`, and the articles of `subjectivity`, come from validation.parquet. `field` has too
few articles there: its rows are all from train.parquet, split by article, so a T5 trained on that file has seen the
sentences, but not the labels.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.printable import say

FIELDS = {
    "film": "film movie films series episode sitcom show drama soap sequel anime",
    "sport": "football tournament league championship cup basketball team baseball cricket rugby hockey sport club",
    "place": "city town river country island state region county village lake mountain continent peninsula province",
    "law": "law laws act court amendment constitution right crime license",
}
_FIELD_OF = {word: field for field, words in FIELDS.items() for word in words.split()}
_MAX_WORDS = 40
_HELD_OUT = 500  # the most rows of a task for validation, and again for testing
_FIELD_VALIDATION = 250
_TRAIN = 4000

Row = dict[str, str]


def sentences(article: str) -> list[str]:
    """The sentences of 6 to 40 words of an article, in order."""
    parts = re.split(r"(?<=[a-z)][.!?])\s+(?=[A-Z])|\n", article)
    return [part for part in parts if 6 <= len(part.split()) <= _MAX_WORDS]


def generator(text: str) -> random.Random:
    """Random choices that depend on a text only, so that a row does not depend on the rows before it."""
    return random.Random(hashlib.sha256(text.encode()).digest())


def order(articles: list[str]) -> Iterator[Row]:
    for article in articles:
        for sentence in sentences(article)[1:8]:
            draw, words = generator(sentence), sentence.split()
            if draw.random() < 0.5:
                middle = words[1:-1]
                draw.shuffle(middle)
                words[1:-1] = middle
            text = " ".join(words)
            yield {"text": text, "label": "original" if words == sentence.split() else "shuffled"}


def field(articles: list[str]) -> Iterator[Row]:
    for article in articles:
        first, *others = sentences(article) or [""]
        said = re.search(r"\b(?:is|was|are|were)\b (.*)", first)
        words = re.findall("[a-z]+", said.group(1).lower())[:15] if said else []
        label = next((_FIELD_OF[word] for word in words if word in _FIELD_OF), None)
        if label and others:
            yield {"text": others[0], "label": label}


def subjectivity(articles: list[str], reviews: list[str]) -> list[Row]:
    """As many rows of one label as of the other."""
    found = {}
    for label, texts in (("objective", articles), ("subjective", reviews)):
        rows = ({"text": as_in_subj(sentence), "label": label} for text in texts for sentence in sentences(text))
        found[label] = shuffled(rows)[:_HELD_OUT]
    balanced = min(map(len, found.values()))
    return shuffled(row for rows in found.values() for row in rows[:balanced])


def as_in_subj(sentence: str) -> str:
    """A sentence in the form of SUBJ's.

    >>> as_in_subj("It's a film (1977), not bad.")
    "it's a film ( 1977 ) , not bad ."
    """
    return " ".join(re.sub(r'([.,!?;:()"])', r" \1 ", sentence.lower()).split())


def contexts(squad: Path) -> list[str]:
    """The distinct contexts of a file in SQuAD's format."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    texts = [html.unescape(part["context"]) for article in articles for part in article["paragraphs"]]
    return list(dict.fromkeys(texts))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """Rows in an order that depends on their texts only; a row that occurs again is left out."""
    distinct = {_line(row): row for row in rows}
    return [distinct[key] for key in sorted(distinct, key=lambda key: hashlib.sha256(key.encode()).digest())]


def tasks(train: list[str], held_out: list[str], reviews: list[str]) -> dict[str, dict[str, list[Row]]]:
    """Task → split → rows."""
    half = len(held_out) // 2
    fields = shuffled(field(train))
    return {
        "order": {
            "train": shuffled(order(train))[:_TRAIN],
            "validation": shuffled(order(held_out[:half]))[:_HELD_OUT],
            "test": shuffled(order(held_out[half:]))[:_HELD_OUT],
        },
        "field": {
            "train": fields[_HELD_OUT + _FIELD_VALIDATION :],
            "validation": fields[_HELD_OUT : _HELD_OUT + _FIELD_VALIDATION],
            "test": fields[:_HELD_OUT],
        },
        "subjectivity": {"test": subjectivity(held_out, reviews)},
    }


def write(corpus: Path, reviews: Path, output: Path) -> None:
    """Write the files of all tasks."""
    train, held_out = (
        pq.read_table(corpus / f"{split}.parquet", columns=["text"]).column("text").to_pylist()
        for split in ("train", "validation")
    )
    for name, splits in tasks(train, held_out, contexts(reviews)).items():
        for split, rows in splits.items():
            path = output / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(f"{_line(row)}\n" for row in rows))
            say(f"{path}: {len(rows):,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wikipedia_tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path, help="directory with train.parquet and validation.parquet")
    parser.add_argument("reviews", type=Path, help="file of SQuADShifts whose contexts are reviews")
    parser.add_argument("output", type=Path, help="directory for the tasks")
    given = parser.parse_args()
    write(given.corpus, given.reviews, given.output)


if __name__ == "__main__":
    main()
