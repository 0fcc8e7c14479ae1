"""Answers for many tasks on one frozen T5, with different prompts mixed in the same batches.

    engine = Engine.load("runs/demo/lm_adapt", "prompts")
    questions = [engine.question([name], Row({"text": text}, f"text {i}")) for i, (name, text) in enumerate(asked)]
    answers = engine.answer(questions)

A prompt is any solution of a task that evaluate can score: a soft prompt, a mixture, a text prompt, an adapter of PEFT,
or a fine-tuned T5, which answers with its own weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.collection import read_each, unusable
from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.kinds import named_artifacts
from t5_pipeline.config.command_line import flag
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.stage import Precision
from t5_pipeline.core.checksums import json_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.suggestions import close_to
from t5_pipeline.data_prep.corpora.row import Row, listed
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.answering import Answerer, Asked
from t5_pipeline.evaluation.decoding import Decoding, NoAnswer
from t5_pipeline.evaluation.ensemble import check_votes, vote, votes
from t5_pipeline.evaluation.held_out import answer_form
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.registry import METHODS
from t5_pipeline.modeling.execution import configure_execution
from t5_pipeline.serving.frozen_t5 import FrozenT5, OtherModel
from t5_pipeline.serving.question import Question, finished_text, input_text


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        output: the likeliest label, or the decoded text.
        scores: log p of each label; None for free text and votes.
        votes: number of prompts with each answer; None for a single prompt.
        cut: tokens that were cut from the input, because it is longer than those in training (the most of all prompts).
        error: why there is no answer; then the output is empty.
    """

    output: str
    scores: dict[str, float] | None = None
    votes: dict[str, int] | None = None
    cut: int = 0
    error: NoAnswer | None = None


class Engine:
    """A frozen T5 and its prompts. T5s are loaded at the first answer that needs them.

    Attributes:
        prompts: name → solution.
        refused: name → reason, for prompts that are damaged or of other T5s.
        digest: digest of the T5, of the prompts and of their names.
    """

    def __init__(
        self,
        t5: FrozenT5 | None,
        prompts: Mapping[str, Candidate],
        *,
        precision: Precision = "fp32",
        device: torch.device | None = None,
        compiled: bool = False,
        damaged: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            t5: the T5 that all prompts were trained on; may be None if all of them are fine-tuned T5s.
            device: default: the first GPU if there is one, otherwise the CPU.
            compiled: compile the T5s with torch.compile.
            damaged: name → reason, for prompts that could not be read.
        """
        self.t5, self.precision = t5, precision
        self.compiled = compiled
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        reasons = {name: self._problem(name, one) for name, one in prompts.items()}
        self.refused = {name: reason for name, reason in reasons.items() if reason is not None}
        self.prompts = {name: one for name, one in prompts.items() if name not in self.refused}
        self.refused |= damaged or {}
        digests = {**{name: one.artifact.digest for name, one in prompts.items()}, **(damaged or {})}
        self.digest = json_digest(["" if t5 is None else t5.digest, [*digests.items()]])
        self._tasks = {name: Task.load(one.task) for name, one in self.prompts.items()}
        self._answerers: dict[Path, Answerer] = {}
        self._lock = threading.Lock()  # held while prompts and answerers change

    @classmethod
    def load(
        cls,
        model: str | None,
        prompts: str,
        *,
        precision: Precision = "bf16",
        device: torch.device | None = None,
        compiled: bool = False,
        named: Callable[[str], str] = flag,
    ) -> Engine:
        """The prompts at a location, by the names of their directories, and their T5.

        A T5 that was fine-tuned on several tasks gives one prompt for each: NAME:TASK. A prompt that is damaged or of
        another T5 is refused when a question names it.

        Args:
            model: a model directory, a stage's directory, or the name of a hub model.
            prompts: a prompt, the directory of a stage, or a folder of these.
            named: what the user calls `model` and `prompts`, for errors: by default their flags.

        Raises:
            InputError: if there are no prompts, or all of them are damaged or of other T5s.
        """
        digests = DigestCache(None)
        places = named_artifacts(tuple(METHODS), prompts, named("prompts"))
        where = f"{named('prompts')}: {prompts}"
        collection = read_each(where, places, lambda _, place: _solutions(*place, digests))
        found = {
            name if len(solutions) == 1 else f"{name}:{one.task.name}": one
            for name, solutions in collection.sound.items()
            for one in solutions
        }
        t5 = None if model is None else FrozenT5.find(model, named("model"))
        engine = cls(t5, found, precision=precision, device=device, compiled=compiled, damaged=collection.damaged)
        if not engine.prompts:
            raise unusable(where, engine.refused, len(engine.refused))
        return engine

    @property
    def fields(self) -> list[str]:
        """The fields that the templates of the prompts use."""
        return list(dict.fromkeys(name for task in self._tasks.values() for name in task.input_template.fields))

    @property
    def has_header(self) -> bool:
        """Whether CSV and TSV files name their columns; the templates of a single prompt may number them."""
        return len(self.prompts) > 1 or all(task.has_header for task in self._tasks.values())

    def has_field(self, name: object, field: str) -> bool:
        """Whether the template of a prompt has a field, or fields in an object of this name."""
        task = self._tasks.get(name) if isinstance(name, str) else None
        return task is not None and any(used.partition(".")[0] == field for used in task.input_template.fields)

    def question(self, names: Sequence[str], row: Row, number: int = 0, text: object = None) -> Question:
        """A question to one prompt, or to several with the same labels that vote.

        Args:
            row: the fields of the task's template, or `input`, the finished text if the template has no such field;
                `row.where` is named in errors.
            number: what samples depend on, besides the seed.
            text: the finished text instead of the row.

        Raises:
            InputError: if a prompt is unknown, damaged or of another T5, prompts cannot vote or are named twice, or the
                row lacks fields.
        """
        with self._lock:  # another thread may replace both
            prompts, tasks = self.prompts, self._tasks
        for name in names:
            if not isinstance(name, str) or name not in tasks:
                raise InputError(f"{row.where}: {self._unknown(name)}")
            if tasks[name].labels != tasks[names[0]].labels:
                raise InputError(
                    f"{row.where}: prompts `{names[0]}` and `{name}` have different labels and cannot vote; use"
                    " separate lines"
                )
        try:
            check_votes(names)
        except InputError as error:
            raise InputError(f"{row.where}: {error}") from None
        texts = tuple(
            input_text(row, tasks[name]) if text is None else finished_text(text, row.where) for name in names
        )
        return Question(tuple(names), texts, tuple(prompts[name] for name in names), number)

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_size: int = 64,
        max_output_length: int = 0,
        decoding: Decoding | None = None,
        on_batch: Callable[[int], None] = lambda examples: None,
    ) -> list[Answer]:
        """Answer questions in order, in mixed batches; each answer is that of its prompt alone, up to rounding.

        A prompt that was replaced or removed since the question was made still answers it.

        Args:
            batch_size: examples per batch.
            max_output_length: maximum tokens of free text; 0: the maximum target length in training.
            decoding: the way to decode free text (default: greedily).
            on_batch: called after each batch with its number of examples.

        Returns:
            The answers. One whose prompt computes numbers that are not finite has an `error`.
        """
        parts = [(q, k) for q in questions for k in range(len(q.names))]
        outputs = Outputs.none(len(parts))
        of_t5: dict[Path, list[int]] = {}
        cut: dict[int, int] = {}
        for i, (q, k) in enumerate(parts):
            of_t5.setdefault(self._t5_of(q.solutions[k]), []).append(i)
        for path, places in of_t5.items():
            of_path = [parts[i] for i in places]
            answerer = self._answerer(path, [q.solutions[k] for q, k in of_path])
            asked, lost = self._asked(of_path, answerer.vocabulary, max_output_length)
            outputs.put(places, answerer.answer(asked, batch_size, decoding, on_batch))
            cut |= dict(zip(places, lost, strict=True))
        cuts = iter([cut[i] for i in range(len(parts))])
        return [
            self._answer(q, found, cut=max(next(cuts) for _ in q.names))
            for q, found in zip(questions, outputs.parts([len(q.names) for q in questions]), strict=True)
        ]

    def stream(
        self, question: Question, *, max_output_length: int = 0, decoding: Decoding | None = None
    ) -> tuple[int, Iterator[str]]:
        """The tokens that were cut from an input, and the text of its answer so far, after each of its tokens.

        Args:
            question: a question to one prompt that decodes free text.

        Raises:
            InputError: for a vote, labels, a mixture or beam search, whose texts do not grow token by token.
            NoAnswer: while the text is read, if the prompt computes numbers that are not finite.
        """
        one, decoding = question.solutions[0], decoding or Decoding()
        if len(question.names) > 1 or one.task.labels or one.weights or decoding.beams > 1:
            raise InputError(f"`{'+'.join(question.names)}`: cannot be streamed; ask for the whole answer")
        answerer = self._answerer(self._t5_of(one), [one])
        (asked,), (cut,) = self._asked([(question, 0)], answerer.vocabulary, max_output_length)
        return cut, answerer.stream(asked, decoding, f"prompt `{question.names[0]}`")

    def add(self, name: str, path: Path) -> None:
        """Add a soft prompt from its directory, or replace the solution of its name.

        Questions that were made before, here or in other threads, are answered by the solution before.

        Raises:
            InputError: if it is damaged, or of another T5.
        """
        (one,) = _solutions("prompt", path, DigestCache(None))
        problem = self._problem(name, one)
        if problem is not None:
            raise InputError(problem)
        task = Task.load(one.task)
        with self._lock:
            self.prompts = {**self.prompts, name: one}
            self._tasks = {**self._tasks, name: task}
            self.refused = {other: reason for other, reason in self.refused.items() if other != name}
            self._update_answerer(self._t5_of(one))

    def remove(self, name: str) -> None:
        """Remove the solution of a name, which frees its memory; questions that were made before are still answered.

        Raises:
            InputError: if there is none.
        """
        with self._lock:
            if name not in self.prompts:
                raise InputError(self._unknown(name))
            one = self.prompts[name]
            self._tasks = {other: task for other, task in self._tasks.items() if other != name}
            self.prompts = {other: kept for other, kept in self.prompts.items() if other != name}
            self._update_answerer(self._t5_of(one))

    def _update_answerer(self, path: Path) -> None:
        """Let a T5 answer with the present prompts, if it is loaded; call it with the lock held."""
        if path not in self._answerers:
            return
        if self._is_used(path):
            self._answerers[path] = self._answerers[path].with_candidates(self._solutions_of(path))
        else:
            del self._answerers[path]

    def _solutions_of(self, path: Path) -> list[Candidate]:
        """The present prompts of a T5."""
        return [one for one in self.prompts.values() if self._t5_of(one) == path]

    def _is_used(self, path: Path) -> bool:
        """Whether a T5 stays in memory: a fine-tuned one does while it is among the prompts."""
        return bool(self._solutions_of(path)) or (self.t5 is not None and path == self.t5.path)

    def _asked(
        self, parts: Sequence[tuple[Question, int]], vocabulary: Vocabulary, max_output_length: int
    ) -> tuple[list[Asked], list[int]]:
        """The inputs as ids, with the form of their answers; and the tokens that were cut from each."""
        of_solution: dict[int, list[int]] = {}
        for i, (q, k) in enumerate(parts):
            of_solution.setdefault(id(q.solutions[k]), []).append(i)
        asked: dict[int, tuple[Asked, int]] = {}
        for places in of_solution.values():
            q, k = parts[places[0]]
            one = q.solutions[k]
            form = answer_form(
                one.task.labels or [], vocabulary, one.sentinel, max_output_length or one.max_target_length
            )
            if one.task.labels:  # an answer is a label, so nothing is decoded
                form = replace(form, max_length=0)
            inputs = one.read([parts[i][0].texts[parts[i][1]] for i in places], vocabulary)
            for i, ids, cut in zip(places, inputs.ids, inputs.cut, strict=True):
                asked[i] = Asked(ids, form, parts[i][0].number, one), cut
        found = [asked[i] for i in range(len(parts))]
        return [one for one, _ in found], [cut for _, cut in found]

    @staticmethod
    def _answer(question: Question, outputs: Outputs, cut: int) -> Answer:
        if True in outputs.broken:
            return Answer("", cut=cut, error=NoAnswer(f"prompt `{question.names[outputs.broken.index(True)]}`"))
        labels = question.solutions[0].task.labels or []
        if len(question.names) > 1:
            each = outputs.parts([1] * len(question.names))
            return Answer(vote(each, labels).texts[0], votes=votes(outputs.texts), cut=cut)
        scores = dict(zip(labels, outputs.scores[0], strict=True)) if labels else None
        return Answer(outputs.texts[0], scores, cut=cut)

    def _t5_of(self, one: Candidate) -> Path:
        if one.fine_tuned:
            return one.artifact.path
        assert self.t5 is not None
        return self.t5.path

    def _answerer(self, path: Path, asked: Sequence[Candidate]) -> Answerer:
        """The T5 of a path, loaded once, with its prompts and those that are asked."""
        with self._lock:
            mine = self._solutions_of(path)
            answerer = self._answerers.get(path)
            if answerer is None:
                answerer = Answerer(path, mine, self.precision, self.device, keep_models=True)
                configure_execution(answerer.t5, self.device.type, compile="true" if self.compiled else "false")
                if self._is_used(path):
                    self._answerers[path] = answerer
            present = {id(one) for one in mine}
            before = {id(one): one for one in asked if id(one) not in present}  # replaced or removed since
            return answerer.with_candidates([*mine, *before.values()]) if before else answerer

    def _problem(self, name: str, one: Candidate) -> str | None:
        """Why the T5 cannot answer with a prompt."""
        if one.fine_tuned:
            return None
        if self.t5 is None:
            return f"prompt `{name}` needs its T5 ({one.model}); give it as --model"
        widths = [rows_PD.size(1) for rows_PD in one.prompts]
        try:
            self.t5.check(
                f"prompt `{name}`", model=one.model, digest=one.digest, vocabulary=one.tokenizer_digest, widths=widths
            )
        except OtherModel as error:
            return str(error)
        return None

    def _unknown(self, name: object) -> str:
        for refused in (name, str(name).partition(":")[0]):  # the latter of NAME:TASK
            if isinstance(refused, str) and refused in self.refused:
                return self.refused[refused]
        meant = close_to(str(name), self.prompts)
        return (
            f"there is no prompt {name!r}; {f'did you mean `{meant}`? ' if meant else ''}prompts (named after their"
            f" directories): {listed(self.prompts) or 'none'}"
        )


def _solutions(kind: str, path: Path, digests: DigestCache) -> list[Candidate]:
    """The solutions in a directory. They are checked first, because the digest reads all of their weights."""
    artifact = Artifact(InputRef(path=str(path)), path, "")
    found = list(METHODS[kind](artifact))
    for one in found:
        Task.load(one.task)
    artifact = replace(artifact, digest=digests.of_artifact(kind, path))
    return [replace(one, artifact=artifact) for one in found]
