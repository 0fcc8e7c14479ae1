"""Prediction for many tasks on one frozen T5, with different prompts mixed in the same batches.

Input lines:

{"prompt": "sst2", "text": "A fine film."}              fields for the task's own template
{"prompt": "squad", "input": "question: Who … ?"}       or the finished text instead
{"prompt": ["a", "b", "c"], "text": "A fine film."}     several prompts with the same labels vote

Output lines:

{"prompt": "sst2", "output": "positive", "scores": {"negative": -4.1, "positive": -0.3}}
{"prompt": "squad", "output": "Ada Lovelace"}
{"prompt": ["a", "b", "c"], "output": "positive", "votes": {"positive": 2, "negative": 1}}
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.kinds import locate, named_prompts
from t5_pipeline.core.atomic_files import check_output, write_output
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import printable
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.corpora.files import file_format
from t5_pipeline.data_prep.corpora.json_rows import json_rows
from t5_pipeline.data_prep.corpora.row import MISSING, Row, check_unicode
from t5_pipeline.data_prep.corpora.rows import read_rows
from t5_pipeline.data_prep.tasks.encode import encode_inputs, encode_labels
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.ensemble import vote
from t5_pipeline.evaluation.predict import AnswerForm, Outputs, answer_each
from t5_pipeline.execution.progress import Progress
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5

STANDARD = "-"  # standard input, standard output


@dataclass(frozen=True)
class Answer:
    """The likeliest label or the decoded text, and log p of each label (None for free text)."""

    output: str
    scores: dict[str, float] | None = None


class Server:
    """A frozen T5 in memory with a set of prompts."""

    def __init__(
        self, model: PromptedT5, vocabulary: Vocabulary, prompts: Mapping[str, Prompt], precision: str = "fp32"
    ) -> None:
        """The bank of `model` must contain the rows of `prompts` in the same order."""
        self.model = model
        self.vocabulary = vocabulary
        self.prompts = dict(prompts)
        self.precision = precision
        self.device = next(model.parameters()).device
        self._place = {name: index for index, name in enumerate(self.prompts)}

    @classmethod
    def load(
        cls,
        location: str,
        prompts: Mapping[str, Prompt],
        *,
        precision: str = "bf16",
        device: torch.device | None = None,
        asked_by: Mapping[str, str] | None = None,
    ) -> Server:
        """Load a T5 for one or more prompts.

        Args:
            location: a model directory, a stage's directory, or the name of a hub model.
            device: default: the first GPU if there is one, otherwise the CPU.
            asked_by: prompt name → input line to cite in errors (default: none).

        Raises:
            InputError: if a prompt was trained on another T5 or with another vocabulary.
        """
        (path,) = locate("model", location, "--model")
        digest = DigestCache(None).of_artifact("model", path)
        vocabulary: Vocabulary | None = None
        for name, prompt in prompts.items():
            info, begin = prompt.info, f"{asked_by[name]}: " if asked_by else ""
            if info.base_model_digest != digest:
                named = path if path.is_dir() else f"{path} (a hub model, as there is no such directory)"
                raise InputError(
                    f"{begin}prompt `{name}` was trained on another T5 than {named} ({info.base_model}, digest"
                    f" {info.base_model_digest[:12]}, not {digest[:12]}); give the right one as --model"
                )
            vocabulary = vocabulary or Vocabulary.load(path)
            if info.tokenizer_digest != vocabulary.digest:
                raise InputError(
                    f"{begin}prompt `{name}` was trained with another vocabulary than that of {path}; restore the"
                    " model's original spiece.model and tokenizer_config.json"
                )
        assert vocabulary is not None
        t5 = load_t5(path, torch.bfloat16 if precision == "bf16" else torch.float32)
        for name, prompt in prompts.items():
            if prompt.info.width != t5.shape.d_model:  # the digest of a hub model is only that of its name
                raise InputError(
                    f"prompt `{name}` has rows of width {prompt.info.width}, but {path} has width"
                    f" {t5.shape.d_model}; give the T5 that it was trained on as --model"
                )
        bank = PromptBank([prompt.rows_PD for prompt in prompts.values()])
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(PromptedT5(t5, bank).to(device), vocabulary, prompts, precision)

    def answer(
        self,
        questions: Sequence[tuple[str, str]],
        *,
        batch_size: int = 64,
        max_output_length: int = 0,
        on_batch: Callable[[int], None] = lambda examples: None,
    ) -> list[Answer]:
        """Answer questions in order.

        Args:
            questions: pairs of a prompt's name and an input text.
            max_output_length: maximum tokens of free text; 0: the maximum target length in training.
            on_batch: called after each batch with its number of questions.
        """
        ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(questions)
        forms: dict[str, AnswerForm] = {}
        of_prompt: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(questions):
            of_prompt.setdefault(name, []).append(i)
        for name, mine in of_prompt.items():
            info = self.prompts[name].info
            texts = [questions[i][1] for i in mine]
            encoded = encode_inputs(texts, self.vocabulary, info.max_input_length, info.sentinel)
            for i, ids_S in zip(mine, encoded.ids, strict=True):
                ids[i] = ids_S
            labels = info.task.labels or []
            label_ids = [label.tolist() for label in encode_labels(labels, self.vocabulary, info.sentinel)]
            longest = max_output_length or info.max_target_length
            forms[name] = AnswerForm(partial(self._text, info.sentinel), labels, label_ids, 0 if labels else longest)
        outputs = answer_each(
            self.model,
            [self._place[name] for name, _ in questions],
            ids,
            [forms[name] for name, _ in questions],
            batch_size=batch_size,
            device=self.device,
            precision=self.precision,
            on_batch=on_batch,
        )
        return [
            Answer(text, dict(zip(forms[name].labels, scores, strict=True)) if scores else None)
            for (name, _), text, scores in zip(questions, outputs.texts, outputs.scores, strict=True)
        ]

    def _text(self, sentinel: Sentinel, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(self.vocabulary.strip_sentinel(ids, sentinel))


def predict(
    model: str,
    prompts: str,
    source: str,
    to: str,
    *,
    batch_size: int = 64,
    precision: str = "bf16",
    max_output_length: int = 0,
) -> int:
    """Answer every line of a file with one JSON line, in the same order.

    All lines are checked before the model is loaded, and the output is written atomically.

    Args:
        model: as for `--model`.
        prompts: as for `--prompts`.
        source: JSONL, CSV, TSV or Parquet file, or "-" for JSON lines from standard input.
        to: output file, or "-" for standard output.

    Returns:
        The number of lines.

    Raises:
        InputError: for an unknown prompt, a missing field or a prompt of another T5; cites file and line.
    """
    check_output(to)
    places = named_prompts(prompts, "--prompts")
    rows = list(_rows(source, places))
    asked = [_names(row, places) for row in rows]
    loaded = {name: Prompt.load(places[name]) for names in asked for name in names}
    tasks = {name: Task.load(prompt.info.task) for name, prompt in loaded.items()}
    for row, names in zip(rows, asked, strict=True):
        _check_vote(row, names, tasks)
    questions = [(name, _text(row, tasks[name])) for row, names in zip(rows, asked, strict=True) for name in names]
    answers: list[Answer] = []
    if questions:
        first = {n: row.where for row, names in zip(reversed(rows), reversed(asked), strict=True) for n in names}
        server = Server.load(model, loaded, precision=precision, asked_by=first)
        began = time.monotonic()
        with Progress("predict", len(questions), unit="example") as progress:
            answers = server.answer(
                questions,
                batch_size=batch_size,
                max_output_length=max_output_length,
                on_batch=lambda n: progress.advance(
                    n, {"examples_per_second": (progress.done + n) / (time.monotonic() - began)}
                ),
            )
    left = iter(answers)
    text = "".join(_line(names, [next(left) for _ in names]) for names in asked)
    # On a terminal, control characters are written as escapes of JSON: the same values.
    write_output(to, (printable(text, keep="\n") if to == STANDARD else text).encode())
    return len(rows)


def _rows(source: str, places: Mapping[str, Path]) -> Iterator[Row]:
    """The rows of an input file, read as in training: without a header if the only prompt's task has none."""
    if source == STANDARD:
        return json_rows(sys.stdin.buffer, "stdin")
    path, named = Path(source), set(places)
    if len(places) > 1:
        if file_format(path) != ".parquet":
            return read_rows(path)
        named = {name for row in read_rows(path, (), optional=["prompt"]) for name in _names(row, places)}
    tasks = [Task.load(Prompt.load(places[name]).info.task) for name in sorted(named)]
    fields = dict.fromkeys(["prompt", "input", *(field for task in tasks for field in task.input_template.fields)])
    header = len(places) > 1 or tasks[0].has_header
    return read_rows(path, (), optional=list(fields), header=header)


def _names(row: Row, places: Mapping[str, Path]) -> list[str]:
    """The prompts that a row names; optional if there is only one prompt."""
    if "prompt" not in row and len(places) == 1:
        return [next(iter(places))]
    if "prompt" not in row:
        raise InputError(f'{row.where}: names no prompt; add "prompt": NAME, one of: {", ".join(places)}')
    named = row["prompt"] if isinstance(row["prompt"], list) and row["prompt"] else [row["prompt"]]
    for name in named:
        if not isinstance(name, str) or name not in places:
            close = difflib.get_close_matches(str(name), places, n=1)
            raise InputError(
                f"{row.where}: there is no prompt {name!r}; {f'did you mean `{close[0]}`? ' if close else ''}prompts"
                f" (named after their directories): {', '.join(places)}"
            )
    return named


def _check_vote(row: Row, names: Sequence[str], tasks: Mapping[str, Task]) -> None:
    """Check that voting prompts have the same labels."""
    for name in names[1:]:
        if tasks[name].labels != tasks[names[0]].labels:
            raise InputError(
                f"{row.where}: prompts `{names[0]}` and `{name}` have different labels and cannot vote; use separate"
                " lines"
            )


def _text(row: Row, task: Task) -> str:
    """The input text of a row: the filled template, or `input` if the row has no field of the template."""
    fields = {name: row.field(name) for name in task.input_template.fields}
    present = {name: value for name, value in fields.items() if value is not MISSING and value is not None}
    # A table has empty values in the columns that a row does not use.
    blank = all(value == "" for value in present.values()) and row.get("input") not in (None, "")
    if "input" not in row or "input" in fields or (len(present) == len(fields) and not blank):
        return task.inputs(row)
    if present and not blank:
        absent = ", ".join(name for name in fields if name not in present)
        raise InputError(
            f"{row.where}: has `input` and {', '.join(present)}, but not {absent}; give all fields of the template, or"
            " only `input`"
        )
    if not isinstance(row["input"], str):
        raise InputError(
            f"{row.where}: `input` must be text, not {type(row['input']).__name__}; put the values in quotes"
        )
    return check_unicode(row["input"], row.where)


def _line(names: Sequence[str], answers: Sequence[Answer]) -> str:
    line: dict[str, Any] = {"prompt": names[0], "output": answers[0].output}
    if len(names) > 1:
        labels = list(answers[0].scores or ())
        outputs = [Outputs([a.output], [], [list((a.scores or {}).values())]) for a in answers]
        line = {"prompt": list(names), "output": vote(outputs, labels).texts[0]}
        line["votes"] = dict(Counter(answer.output for answer in answers).most_common())
    elif answers[0].scores is not None:
        line["scores"] = {label: round(score, 6) for label, score in answers[0].scores.items()}
    return json.dumps(line, ensure_ascii=False) + "\n"
