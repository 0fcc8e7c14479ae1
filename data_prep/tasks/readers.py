"""Readers for parallel files, and for benchmark files as distributed: one row per question, answer or query.

Slices count passages, so that no passage is in two splits. The hub's flat versions of these data sets give the same
rows. Cleaning follows T5's code (t5/data/preprocessors.py and the TensorFlow data sets it reads), except for SQuAD:
T5 puts spaces around punctuation, and this reader leaves the text unchanged.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import decode, file_format, lines
from t5_pipeline.data_prep.corpora.json_rows import read_json_data
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.corpora.rows import read_rows
from t5_pipeline.data_prep.tasks.splits import Slice

Reader = Literal["rows", "parallel", "multirc", "record", "wsc", "squad", "qqp"]

PASSAGES = {"multirc": "paragraph", "record": "passage", "squad": "context"}
"""The field with the passage, of readers whose rows can share one."""

_TAG = re.compile(r"</?b>")
_HIGHLIGHT_AFTER_END = re.compile(r"([.?!\"'])\n@highlight\n")
_HIGHLIGHT = "\n@highlight\n"


@dataclass(frozen=True)
class Dropped:
    """A question that is not used, and why."""

    reason: str


Question = dict[str, Any] | Dropped


def used_columns(reader: Reader, fields: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The columns that a reader needs, and those that it uses if there are any.

    Args:
        fields: the fields of its rows that the task uses.
    """
    return ((), _COLUMNS[reader]) if reader in _COLUMNS else (fields, ())


def file_rows(
    path: Path,
    reader: Reader,
    columns: Sequence[str],
    optional: Sequence[str],
    *,
    header: bool,
    skipped: Counter[str],
) -> Iterator[Row]:
    """The rows of a file as distributed.

    Args:
        columns, optional, header: as for `read_rows`.
        skipped: counts the lines of QQP that are skipped, by reason.

    Raises:
        InputError: if the file or a row is malformed; names the row.
    """
    if reader == "squad" and file_format(path) == ".json":
        return _paragraphs(path)
    # QQP's files contain truncated lines, which T5's data set and the hub's also leave out.
    skipped_lines = skipped if reader == "qqp" else None
    rows = read_rows(path, columns, optional=optional, header=header, skipped=skipped_lines)
    # The first line of MRQA's files describes the data set.
    return (row for row in rows if list(row) != ["header"]) if reader == "squad" else rows


def parallel_rows(files: Mapping[str, Path]) -> Iterator[Row]:
    """Rows of files with one text per line: line i of each file is one field of row i.

    Args:
        files: the file of each field.

    Raises:
        InputError: if one has fewer lines than another.
    """
    texts = {field: enumerate(lines(path), 1) for field, path in files.items()}
    for numbered in itertools.zip_longest(*texts.values()):
        if None in numbered:
            counts = [(path, sum(1 for _ in lines(path))) for path in files.values()]
            have = " and ".join(f"{path} {count:,}" for path, count in counts)
            raise InputError(f"parallel files differ in their number of lines ({have}); fix them")
        fields = {
            field: decode(line, files[field], number).rstrip("\r")
            for field, (number, line) in zip(texts, numbered, strict=True)
        }
        yield Row(fields, f"{next(iter(files.values()))}:{numbered[0][0]}")


def flatten(
    rows: Iterable[Row],
    reader: Reader,
    part: Slice | None,
    dropped: Counter[str],
    *,
    training: bool,
    stratum: Callable[[Row], str],
) -> list[Row]:
    """Flatten rows as distributed by a benchmark or the hub to one row per question.

    Args:
        rows: the distributed rows.
        reader: their format.
        part: slice of passages, or of rows if there are no passages; None for all.
        dropped: counts the questions that are not used, by reason.
        training: yield one row per answer if a question has several (ReCoRD), not one with all of them.
        stratum: the class of a row, for stratified slices.

    Raises:
        InputError: if a row does not have the benchmark's format; names the row.
    """
    passages = _by_passage(rows, reader)
    if part is not None:
        strata = [stratum(row) for (row,) in passages] if part.order == "stratified" else None
        passages = [passages[i] for i in part.of(len(passages), strata)]
    questions = _QUESTIONS.get(reader)
    found: list[Row] = []
    for row in (row for passage in passages for row in passage):
        try:
            of_row = [row] if questions is None else list(questions(row, training))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(
                f"{row.where}: does not have the {reader} format ({type(error).__name__}: {error});"
                " fix the file or use `reader: rows`"
            ) from None
        dropped.update(question.reason for question in of_row if isinstance(question, Dropped))
        found += [q if q is row else Row(q, row.where) for q in of_row if not isinstance(q, Dropped)]
    return found


def _by_passage(rows: Iterable[Row], reader: Reader) -> list[list[Row]]:
    """Group the hub's rows by passage; each row of a nested file is a group of its own."""
    name = PASSAGES.get(reader, "")
    passages: dict[str | int, list[Row]] = {}
    for number, row in enumerate(rows):
        text = row.get(name) if name else None
        passages.setdefault(text if isinstance(text, str) else number, []).append(row)
    return list(passages.values())


def _multirc(row: Row, training: bool) -> Iterator[dict[str, Any]]:
    """passage → questions → answers: one row per answer; answers to a question share `question_id`."""
    if "paragraph" in row:
        yield _choice(row["paragraph"], row, row["answer"], row, f"{row['idx']['paragraph']}/{row['idx']['question']}")
        return
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            question_id = f"{row.get('idx', row.where)}/{question['idx']}"
            yield _choice(row["passage"]["text"], question, answer["text"], answer, question_id)


def _choice(paragraph: str, question: Any, answer: str, labeled: Any, question_id: str) -> dict[str, Any]:
    texts = {"paragraph": paragraph, "question": question["question"], "answer": answer}
    bare = {name: _TAG.sub("", text.replace("<br>", " ")) for name, text in texts.items()}
    return {**bare, "label": labeled.get("label"), "question_id": question_id}  # SuperGLUE's test rows have no label


def _record(row: Row, training: bool) -> Iterator[Question]:
    """passage with entities → queries: entities and answers deduplicated and sorted, as in T5's data set."""
    if isinstance(row["passage"], str):
        text, entities = row["passage"], row["entities"]
        queries = [(row["query"], row["answers"])]
    else:
        text = row["passage"]["text"]
        entities = [text[span["start"] : span["end"] + 1] for span in row["passage"]["entities"]]
        queries = [(one["query"], [answer["text"] for answer in one.get("answers", [])]) for one in row["qas"]]
    passage = _HIGHLIGHT_AFTER_END.sub(r"\1 ", text).replace(_HIGHLIGHT, ". ")
    for query, given in queries:
        answers = sorted(set(given))
        shared = {"query": query, "entities": ", ".join(sorted(set(entities))), "passage": passage, "answers": answers}
        for answer in answers if training else answers[:1]:
            yield {**shared, "answer": answer}
        if not answers:
            yield Dropped("without an answer")


def _wsc(row: Row, training: bool) -> Iterator[dict[str, Any]]:
    """Mark the pronoun with asterisks: "… and eventually the pony threw *him* over"."""
    target = row.get("target", row)
    text, pronoun = row["text"], target["span2_text"].strip(". ")
    # Some rows' index is off by a word, so take the nearest occurrence of the pronoun.
    places = [
        (abs(_words_before(text, found.start()) - int(target["span2_index"])), *found.span())
        for found in re.finditer(rf"(?<!\w){re.escape(pronoun)}(?!\w)", text, re.IGNORECASE)
    ]
    if not (pronoun and places):
        raise ValueError(f"the text does not contain the pronoun {pronoun!r}")
    _, begin, end = min(places)
    yield {
        "text": f"{text[:begin]}*{text[begin:end]}*{text[end:]}",
        "referent": _with_case_of(target["span1_text"], int(target["span1_index"]), text),
        "pronoun": pronoun,
        "label": row.get("label"),
    }


def _words_before(text: str, at: int) -> int:
    """The number of words that end before character `at`, not counting the word that contains it.

    >>> _words_before('He said "it" broke.', 9)
    2
    """
    words = len(text[:at].split())
    return words - (at > 0 and not text[at - 1].isspace())


def _with_case_of(referent: str, index: int, text: str) -> str:
    """The referent with its first letter in the case of word `index`, if the text does not contain it verbatim.

    >>> _with_case_of("The table.", 3, "The ball crashed the table because it was made of steel.")
    'the table'
    """
    words = text.split()
    if referent in text or index >= len(words):
        return referent
    first = referent[:1].lower() if words[index][0].islower() else referent[:1].upper()
    return " ".join(f"{first}{referent[1:]}".split()).rstrip(".")


def _paragraphs(path: Path) -> Iterator[Row]:
    """The paragraphs of SQuAD's JSON."""
    try:
        articles = read_json_data(path)["data"]
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                yield Row(paragraph, f"{path}: data[{a}].paragraphs[{p}]")
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: is not SQuAD's JSON (data → paragraphs → qas); use `reader: rows`") from None


def _squad(row: Row, training: bool) -> Iterator[Question]:
    """One row per question; unanswerable questions (SQuAD 2) are dropped, because the format has no target for them.

    In MRQA's files answers are texts, and the target is the first one that was found in the passage, as in the paper's
    code (mrqa_to_tsv.py).
    """
    for question in row.get("qas", [row]):
        answers = _answer_texts(question["answers"])
        if not answers:
            yield Dropped("without an answer")
        else:
            yield {
                "id": question["qid"] if "qid" in question else question["id"],
                "question": question["question"],
                "context": row["context"],
                "answer": (_answer_texts(question.get("detected_answers") or []) or answers)[0],
                "answers": answers,
            }


def _answer_texts(given: Any) -> list[str]:
    """The different texts of answers, which are a list of texts or of objects, or columns as on the hub."""
    texts = given["text"] if isinstance(given, dict) else given
    return list(dict.fromkeys(one if isinstance(one, str) else one["text"] for one in texts))


_QUESTIONS: dict[str, Callable[[Row, bool], Iterable[Question]]] = {
    "multirc": _multirc,
    "record": _record,
    "wsc": _wsc,
    "squad": _squad,
}

_COLUMNS = {
    "multirc": ("passage", "paragraph", "question", "answer", "idx", "label"),
    "record": ("passage", "query", "entities", "answers", "qas"),
    "wsc": ("text", "target", "span1_text", "span1_index", "span2_text", "span2_index", "label"),
    "squad": ("id", "qid", "context", "question", "answers", "detected_answers", "qas"),
}
"""The fields that the readers of `_QUESTIONS` use."""
