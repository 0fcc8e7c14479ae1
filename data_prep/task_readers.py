"""Benchmarks' files as they are distributed, as rows: one question, one answer, one query each.

A file is read passage by passage (a line, or SQuAD's paragraph), so a slice never puts a passage into two splits.
Cleaning follows T5's preprocessors (t5/data/preprocessors.py), but for SQuAD's, which put spaces around punctuation:
here text stays as it is.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from data_prep.rows import Row, read_rows, read_text
from pipeline.errors import InputError
from pipeline.task_files import Slice

Reader = Literal["rows", "multirc", "record", "wsc", "squad"]

_TAG = re.compile(r"</?b>")
_HIGHLIGHT_AFTER_END = re.compile(r"([.?!\"'])\n@highlight\n")
_HIGHLIGHT = "\n@highlight\n"


def read_task(path: Path, reader: Reader, part: Slice | None, *, header: bool, training: bool) -> list[Row]:
    """The rows of a file.

    part      which of its passages; of its rows where it has none
    header    CSV and TSV: the first line names the columns
    training  one row for each answer, where a question has several (ReCoRD); otherwise one with all of them

    InputError, with the passage's place, for what is not as the benchmark distributes it.
    """
    passages = list(_paragraphs(path)) if reader == "squad" else list(read_rows(path, header=header))
    if part is not None:
        passages = passages[part.of(len(passages))]
    flatten = _FLATTEN[reader]
    found = []
    for passage in passages:
        try:
            found += [Row(fields, passage.where) for fields in flatten(passage, training)]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(
                f"{passage.where}: is not as {reader} files are distributed"
                f" ({type(error).__name__}: {error}); mend the file, or use `reader: rows`"
            ) from None
    return found


def _rows(row: Row, training: bool) -> Iterable[dict[str, Any]]:
    return [row]


def _multirc(row: Row, training: bool) -> Iterator[dict[str, Any]]:
    """passage → questions → answers: a row for each answer, `question_id` shared by those of a question."""
    paragraph = _TAG.sub("", row["passage"]["text"].replace("<br>", " "))
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": paragraph,
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label"),  # SuperGLUE's test rows have none
                "question_id": f"{row.get('idx', row.where)}/{question['idx']}",
            }


def _record(row: Row, training: bool) -> Iterator[dict[str, Any]]:
    """passage with entities → queries: the entities' texts once each, in the order of the passage."""
    text = row["passage"]["text"]
    spans = sorted(row["passage"]["entities"], key=lambda span: (span["start"], span["end"]))
    entities = list(dict.fromkeys(text[span["start"] : span["end"] + 1] for span in spans))
    passage = _HIGHLIGHT_AFTER_END.sub(r"\1 ", text).replace(_HIGHLIGHT, ". ")
    for query in row["qas"]:
        answers = list(dict.fromkeys(answer["text"] for answer in query.get("answers", [])))
        shared = {"query": query["query"], "entities": ", ".join(entities), "passage": passage, "answers": answers}
        for answer in answers if training else answers[:1]:
            yield {**shared, "answer": answer}


def _wsc(row: Row, training: bool) -> Iterator[dict[str, Any]]:
    """The pronoun stands between asterisks: "… and eventually the pony threw *him* over"."""
    target = row.get("target", row)
    words, at, pronoun = row["text"].split(), int(target["span2_index"]), target["span2_text"]
    length = len(pronoun.split())
    # A word may carry a comma or a full stop, and the index of some rows is a word off: the nearest place counts.
    places = [i for i in range(len(words)) if _has_pronoun(" ".join(words[i : i + length]), pronoun)]
    if not places:
        raise KeyError(f"the pronoun {pronoun!r} is no word of it")
    at = min(places, key=lambda i: abs(i - at))
    found = " ".join(words[at : at + length])
    begin = found.lower().index(pronoun.lower())
    end = begin + len(pronoun)
    words[at : at + length] = [f"{found[:begin]}*{found[begin:end]}*{found[end:]}"]
    yield {"text": " ".join(words), "referent": target["span1_text"], "pronoun": pronoun, "label": row.get("label")}


def _has_pronoun(words: str, pronoun: str) -> bool:
    return words.strip(string.punctuation).lower() == pronoun.lower()


def _paragraphs(path: Path) -> Iterator[Row]:
    """SQuAD's JSON: data → paragraphs."""
    try:
        articles = json.loads(read_text(path))["data"]
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                yield Row(paragraph, f"{path}: data[{a}].paragraphs[{p}]")
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg} at character {error.colno})") from None
    except (KeyError, TypeError):
        raise InputError(f"{path}: is not SQuAD's JSON (data → paragraphs → qas); use `reader: rows`") from None


def _squad(paragraph: Row, training: bool) -> Iterator[dict[str, Any]]:
    """A question that has no answer in the paragraph (SQuAD 2) is left out: the format has no words for it."""
    for question in paragraph["qas"]:
        answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
        if answers:
            yield {
                "id": question["id"],
                "question": question["question"],
                "context": paragraph["context"],
                "answer": answers[0],
                "answers": answers,
            }


_FLATTEN: dict[str, Callable[[Row, bool], Iterable[dict[str, Any]]]] = {
    "rows": _rows,
    "multirc": _multirc,
    "record": _record,
    "wsc": _wsc,
    "squad": _squad,
}
