"""`t5-pipeline predict`: a stream of rows to a stream of answers, in the same order.

Input lines:

{"prompt": "sst2", "text": "A fine film."}              fields for the task's own template
{"prompt": "squad", "input": "question: Who … ?"}       or the finished text instead
{"prompt": ["a", "b", "c"], "text": "A fine film."}     several prompts with the same labels vote

Output lines:

{"prompt": "sst2", "output": "positive", "scores": {"negative": -4.1, "positive": -0.3}}
{"prompt": "squad", "output": "Ada Lovelace"}
{"prompt": ["a", "b", "c"], "output": "positive", "votes": {"positive": 2, "negative": 1}}
{"line": 4, "error": "there is no prompt 'ss2'; did you mean `sst2`? …"}

Rows are answered in windows of several batches, which are sorted by length. The windows of a file are always the same,
so that the answers of a resumed command are bit-identical. Rows from a stream are answered as they arrive.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

import torch

from t5_pipeline import __version__
from t5_pipeline.core.atomic_files import STDOUT, check_output, is_stream, open_output
from t5_pipeline.core.checksums import file_digest, json_digest
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import printable, say
from t5_pipeline.core.rounding import rounded
from t5_pipeline.data_prep.corpora.files import file_format, lines
from t5_pipeline.data_prep.corpora.json_rows import is_blank, json_row
from t5_pipeline.data_prep.corpora.row import Row, listed
from t5_pipeline.data_prep.corpora.rows import read_rows
from t5_pipeline.data_prep.tasks.counts import Truncated
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.execution.progress import Progress
from t5_pipeline.serving.engine import Answer, Engine
from t5_pipeline.serving.question import Question

STDIN = "-"
WINDOW = 16
"""Batches of a window."""
WAIT = 0.05
"""Seconds that a row of a stream waits, at most, for others to share its batch."""

_ERROR = '{"line": '
"""Beginning of the output line of a row that cannot be answered."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be answered: its line, element or row number (from 1), and the reason."""

    line: int
    error: str

    @classmethod
    def of(cls, error: InputError, where: str) -> BadRow:
        """The row at `where`, such as "data/new.jsonl:7", which the error names too."""
        found = re.search(r"\d+$", where)
        return cls(int(found[0]) if found else 0, str(error).removeprefix(f"{where}: "))


@dataclass
class Counts:
    """Rows of a prediction.

    Attributes:
        rows: number of rows with an output line.
        bad: number of these without an answer.
        resumed: number of these that an earlier command had answered.
        cut: tokens that this command cut from each input that was too long.
    """

    rows: int = 0
    bad: int = 0
    resumed: int = 0
    cut: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Predict:
    """Settings of a prediction, besides its rows."""

    batch_size: int = 64
    max_output_length: int = 0
    decoding: Decoding = field(default_factory=Decoding)

    def __call__(self, engine: Engine, source: str, to: str) -> Counts:
        """Answer every row of a file or of standard input with one JSON line.

        Args:
            source: JSONL, JSON, CSV, TSV or Parquet file; "-" for JSON lines from standard input; or a FIFO of JSON
                lines, such as the shell's <(command).
            to: output file, which appears when it is complete, or "-" for standard output.

        Raises:
            InputError: if the input cannot be read or has no rows, or the output cannot be written. A row that cannot
                be answered is not an error: its output line says why.
        """
        check_output(to)
        size, counts, kept, partial = WINDOW * self.batch_size, Counts(), 0, None
        if source == STDIN:
            windows, total = _arriving(_json_lines(_stdin(), "stdin"), size), None
        elif is_stream(path := Path(source)):
            windows, total = _arriving(_stream_lines(path), size), None
        else:
            total = _check(path, engine)
            if to != STDOUT:
                if Path(to).exists() and Path(to).samefile(path):
                    raise InputError(f"--output: {to} is the input file; choose another one for the answers")
                partial = self._partial(engine, path, Path(to))
                counts, kept = _answered(partial, size)
            windows = _in_windows(itertools.islice(_rows(path, engine), counts.rows, None), size)
        if counts.resumed:
            say(f"resuming after {counts.rows:,} of {total:,} rows")
        try:
            with open_output(to, partial, kept) as write, Progress("predict", total, unit="row") as progress:
                began = time.monotonic()
                for window in windows:
                    text, bad = self._window(engine, window, counts, progress, began)
                    # On a terminal, control characters are written as escapes of JSON: the same values.
                    write((printable(text, keep="\n") if to == STDOUT else text).encode())
                    counts.rows, counts.bad = counts.rows + len(window), counts.bad + bad
            if counts.cut:
                answered = plural(counts.rows - counts.resumed, "row")
                say(f"predict: {answered}; inputs truncated: {Truncated.of(counts.cut)}")
        except KeyboardInterrupt:
            if partial is not None:
                say(f"stopped after {counts.rows:,} of {total:,} rows; run the same command to resume")
            raise
        return counts

    def _window(
        self, engine: Engine, window: Sequence[Row | BadRow], counts: Counts, progress: Progress, began: float
    ) -> tuple[str, int]:
        """Output lines of a window, and how many of them are errors."""
        asked: list[Question | BadRow] = []
        for number, row in enumerate(window, counts.rows):
            try:
                asked.append(row if isinstance(row, BadRow) else _question(engine, row, number))
            except InputError as error:
                assert isinstance(row, Row)
                asked.append(BadRow.of(error, row.where))
        done = 0

        def advance(examples: int) -> None:
            nonlocal done
            done = min(done + examples, len(window))  # a row of several prompts is several examples
            rows = counts.rows + done
            progress.update(rows, {"examples_per_second": (rows - counts.resumed) / (time.monotonic() - began)})

        answers = engine.answer(
            [one for one in asked if isinstance(one, Question)],
            batch_size=self.batch_size,
            max_output_length=self.max_output_length,
            decoding=self.decoding,
            on_batch=advance,
        )
        counts.cut += [answer.cut for answer in answers if answer.cut]
        left = iter(answers)
        ended: list[BadRow | tuple[Question, Answer]] = []
        for one, row in zip(asked, window, strict=True):
            found = one if isinstance(one, BadRow) else (one, next(left))
            if isinstance(found, tuple) and found[1].error is not None:
                assert isinstance(row, Row)
                found = BadRow.of(found[1].error, row.where)
            ended.append(found)
        text = "".join(_error(found) if isinstance(found, BadRow) else _line(*found) for found in ended)
        return text, sum(isinstance(found, BadRow) for found in ended)

    def _partial(self, engine: Engine, source: Path, to: Path) -> Path:
        """The file in which the answers grow; its name covers all that they depend on."""
        fingerprint = json_digest({
            "input": file_digest(source), "prompts": engine.digest, "precision": engine.precision,
            "device": engine.device.type, "compiled": engine.compiled, "threads": torch.get_num_threads(),
            "settings": asdict(self), "versions": [__version__, torch.__version__],
        })  # fmt: skip
        target = to.resolve()
        return target.with_name(f"{target.name}.{fingerprint[:12]}.partial")


# ------------------------------------------------------------------------------------------------------------- rows


def _check(path: Path, engine: Engine) -> int:
    """The number of rows of a file.

    Raises:
        InputError: if the file cannot be read, is a table without rows or without a column that a prompt uses, or no
            row names a prompt although there are several.
    """
    rows = _rows(path, engine)
    first = next(rows, None)
    if file_format(path) not in (".jsonl", ".ndjson", ".json"):
        header = engine.has_header and file_format(path) != ".parquet"
        if first is None:
            raise InputError(f"{path}: has no rows{' below its header line' if header else ''}; check the file")
        named = {name.partition(".")[0] for name in engine.fields} | {*engine.fields, "input"}
        if isinstance(first, Row) and not named.intersection(first):
            columns = f" ({listed(first, most=8)})" if first else ""
            raise InputError(
                f"{path}: none of its columns{columns} is `input` or a field of a prompt ({listed(engine.fields)});"
                f" {'name the columns in the first line' if header else 'rename its columns'}"
            )
    total, readable, named_rows = 0, None, 0
    for row in [] if first is None else itertools.chain([first], rows):
        total += 1
        if isinstance(row, Row):
            readable = readable or row
            named_rows += _names_prompt(row)
    if readable is not None and not named_rows and len(_names(engine)) > 1:
        raise InputError(
            f"{readable.where}: neither this row nor any other names its prompt; add `prompt`, one of:"
            f" {listed(engine.prompts)}"
        )
    return total


def _rows(path: Path, engine: Engine) -> Iterator[Row | BadRow]:
    """The rows of a file, read as in training; a bad line of JSON does not end them."""
    if file_format(path) in (".jsonl", ".ndjson"):
        return _json_lines(lines(path), path)
    columns = dict.fromkeys(["prompt", "input", *engine.fields])
    return read_rows(path, (), optional=list(columns), header=engine.has_header)


def _json_lines(found: Iterator[bytes], source: Path | str) -> Iterator[Row | BadRow]:
    for number, line in enumerate(found, 1):
        if not is_blank(line):
            try:
                yield json_row(line, source, number)
            except InputError as error:
                yield BadRow.of(error, f"{source}:{number}")


def _stdin() -> IO[bytes]:
    """Standard input, with a buffer of its own: Python aborts at the end if a thread waits for that of `sys.stdin`."""
    if sys.stdin is None:
        raise InputError("--input: standard input is closed; give a file")
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _stream_lines(path: Path) -> Iterator[Row | BadRow]:
    try:
        with path.open("rb") as file:
            yield from _json_lines(file, path)
    except OSError as error:
        raise InputError(f"--input: cannot read {path} ({error}); check the path") from None


def _in_windows(rows: Iterator[Row | BadRow], size: int) -> Iterator[list[Row | BadRow]]:
    while window := list(itertools.islice(rows, size)):
        yield window


def _arriving(rows: Iterator[Row | BadRow], size: int) -> Iterator[list[Row | BadRow]]:
    """Windows of the rows that have arrived: at most `size`, at least one, whose wait is bounded."""
    arrived: Queue[Row | BadRow | BaseException | None] = Queue(size)

    def read() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        window: list[Row | BadRow] = []
        until = float("inf")
        while len(window) < size:
            try:
                row = arrived.get(timeout=None if not window else max(0.0, until - time.monotonic()))
            except Empty:
                break
            if row is None:
                ended = True
                break
            if isinstance(row, BaseException):
                raise row
            window.append(row)
            until = min(until, time.monotonic() + WAIT)
        if window:
            yield window


def _question(engine: Engine, row: Row, number: int) -> Question:
    """The question of a row, which names its prompt or prompts unless there is only one.

    `prompt` is a field if the template of the only prompt has one of that name; the prompt's own name beside `input` is
    a name.
    """
    names = _names(engine)
    if not _names_prompt(row):
        if len(names) > 1:
            raise InputError(f'{row.where}: names no prompt; add "prompt": NAME, one of: {listed(engine.prompts)}')
        return engine.question(names, row, number)
    asked = row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]]
    is_field = len(names) == 1 and engine.has_field(names[0], "prompt")
    if is_field and (asked != names or "input" not in row):
        return engine.question(names, row, number)
    reading = next((name for name in asked if engine.has_field(name, "prompt")), None)
    if reading is None:
        return engine.question(asked, row, number)
    if row.get("input") is None:
        raise InputError(
            f"{row.where}: the template of `{reading}` has a field `prompt`, but `prompt` is the name of the prompt"
            " here; give the finished text as `input`, or give --prompts this prompt alone"
        )
    return engine.question(asked, row, number, text=row["input"])


def _names_prompt(row: Row) -> bool:
    """Whether a row names its prompt; tables have null or an empty value where it does not."""
    return row.get("prompt") not in (None, "", [])


def _names(engine: Engine) -> list[str]:
    """All prompts; if there are several, a row must name its own."""
    return [*engine.prompts, *engine.refused]


# ----------------------------------------------------------------------------------------------------------- answers


def _answered(partial: Path, size: int) -> tuple[Counts, int]:
    """The whole windows in a partial output: their rows, and their bytes."""
    counts, kept, rows, bad, at = Counts(), 0, 0, 0, 0
    if partial.exists():
        with partial.open("rb") as file:
            for line in file:
                rows, bad, at = rows + 1, bad + line.startswith(_ERROR.encode()), at + len(line)
                if rows % size == 0 and line.endswith(b"\n"):
                    counts, kept = Counts(rows, bad, rows), at
    return counts, kept


def _error(row: BadRow) -> str:
    return json.dumps({"line": row.line, "error": row.error}, ensure_ascii=False) + "\n"


def _line(question: Question, answer: Answer) -> str:
    names = list(question.names)
    line: dict[str, Any] = {"prompt": names if len(names) > 1 else names[0], "output": answer.output}
    if answer.votes is not None:
        line["votes"] = answer.votes
    if answer.scores is not None:
        line["scores"] = {label: rounded(score, 6) for label, score in answer.scores.items()}
    return json.dumps(line, ensure_ascii=False) + "\n"
