"""The held-out rows of a task as one T5 reads them, the form of their answers, and their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t5_pipeline.config.stage import Scoring
from t5_pipeline.config.tuning import TaskStageConfig
from t5_pipeline.core.normal_form import normal_form
from t5_pipeline.core.rounding import rounded
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.core.scores import MEAN_OF_TASKS
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, EncodedTexts, Reading, encode_labels, encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.confusion import confusion
from t5_pipeline.evaluation.metrics import Scores, bootstrap_errors, illegal_share, right, score, task_average
from t5_pipeline.evaluation.predict import AnswerForm, AnswerOptions, Outputs, Query, answer_each, answer_mixture
from t5_pipeline.evaluation.text_metrics import check_installed
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.loaded import ModelSource
from t5_pipeline.modeling.prompt_bank import PromptedT5
from t5_pipeline.training.best_checkpoint import Measured

FIRST_SAMPLES, MORE_SAMPLES = 20, 5


@dataclass(frozen=True)
class HeldOut:
    """The rows of one split of a task as one T5 reads them, and the answers that are scored."""

    task: TaskConfig
    rows: EncodedTask
    form: AnswerForm
    scoring: Scoring = "decode"

    def __len__(self) -> int:
        return len(self.rows)

    def with_inputs(self, inputs: EncodedTexts, vocabulary: Vocabulary) -> HeldOut:
        """The same rows with other input ids of the vocabulary."""
        return replace(self, rows=self.rows.with_inputs(inputs, vocabulary))

    def score(self, texts: Sequence[str]) -> Scores:
        """The task's metrics of answers in the order of the rows."""
        rows = self.rows
        return score(
            self.task.metrics,
            texts,
            rows.target_texts,
            self.task.labels,
            answers=rows.answers,
            groups=rows.groups,
            holds=rows.holds,
        )

    def queries_with_targets(self) -> list[Query]:
        """The rows as queries for `measured`, which needs the log p of the target also for free text."""
        if self.task.labels:
            form = self.form if self.scoring == "decode" else replace(self.form, max_length=0)
            return [Query(ids, form) for ids in self.rows.inputs]
        return [
            Query(ids, replace(self.form, labels=[text], label_ids=[target.tolist()]))
            for ids, text, target in zip(self.rows.inputs, self.rows.target_texts, self.rows.targets, strict=True)
        ]

    def answers(self, outputs: Outputs) -> list[str]:
        """The answers that are compared with the targets."""
        return outputs.texts if self.task.labels and self.scoring == "likelihood" else outputs.decoded

    def measured(self, outputs: Outputs) -> Measured:
        """The validation that outputs of `queries_with_targets` give. Targets that do not hold are not in the loss."""
        metrics, rows, log_p = self.score(self.answers(outputs)).metrics, self.rows, outputs.scores
        index = [0] * len(self) if rows.label_index is None else rows.label_index.tolist()
        true = [i for i in range(len(self)) if rows.holds is None or rows.holds[i]]
        tokens = sum(len(rows.targets[i]) for i in true)
        loss = -sum(log_p[i][index[i]] for i in true) / tokens if tokens else 0.0
        return Measured(metrics, task_average(metrics), loss)

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Whether each answer is right, as the task's metrics see it."""
        rows = self.rows
        return right(self.task.metrics, texts, rows.target_texts, answers=rows.answers, holds=rows.holds)

    def scored(self, outputs: Outputs) -> dict[str, Any]:
        """The entries of a row of scores.json; with labels also both ways of scoring and the illegal outputs."""
        labels, found = self.task.labels, self.scored_texts(self.answers(outputs))
        if labels:
            by_scoring = {"decode": outputs.decoded, "likelihood": outputs.texts}
            found |= {
                "scoring": self.scoring,
                "by_scoring": {way: self.score(texts).metrics for way, texts in by_scoring.items()},
                "illegal": illegal_share(outputs.decoded, labels),
                "illegal_by_label": self._illegal_by_label(outputs.decoded),
            }
            for line, text in zip(found["predictions"], outputs.decoded, strict=True):
                line["decoded"] = text
            for line, scores in zip(found["predictions"], outputs.scores, strict=False):  # a vote has none
                line["scores"] = {label: rounded(score, 6) for label, score in zip(labels, scores, strict=True)}
        return found

    def scored_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        """The entries of a row of scores.json that follow from the answers: metrics, confusion, texts."""
        labels, targets, is_right = self.task.labels, self.rows.target_texts, self.right(texts)
        scores = self.score(texts)
        drawn = bootstrap_errors(self.task.metrics, texts, targets, answers=self.rows.answers)
        return {
            "metrics": scores.metrics,
            "standard_errors": {**scores.standard_errors, **drawn},
            "scoring": None,
            "by_scoring": None,
            "illegal": None,
            "illegal_by_label": None,
            "labels": labels,
            "confusion": confusion(texts, targets, labels).tolist() if labels else None,
            "samples": [
                {"input": self.rows.input_texts[i], "target": targets[i], "output": texts[i], "right": is_right[i]}
                for i in self._shown(is_right)
            ],
            # Each row's answer, as a line of predictions.jsonl.
            "predictions": [
                {"row": i + 1, "input": self.rows.input_texts[i], "target": targets[i], "output": texts[i]}
                for i in range(len(self))
            ],
        }

    def _illegal_by_label(self, decoded: Sequence[str]) -> list[int]:
        """Number of decoded texts that are not a label, by true label."""
        labels = self.task.labels or []
        legal = set(labels)
        missed = Counter(t for t, text in zip(self.rows.target_texts, decoded, strict=True) if text not in legal)
        return [missed[label] for label in labels]

    def _shown(self, right: Sequence[bool]) -> list[int]:
        """The first rows, and more right and wrong ones if these are rare."""
        more = [[i for i, is_right in enumerate(right) if is_right == kind][:MORE_SAMPLES] for kind in (True, False)]
        return sorted({*range(min(FIRST_SAMPLES, len(right))), *more[0], *more[1]})


def load_held_out(
    task: TaskConfig,
    split: str,
    reading: Reading,
    *,
    scoring: Scoring,
    limit: int = 0,
    max_output_length: int = 0,
) -> HeldOut:
    """Read a split of a task for scoring.

    Args:
        limit: as for encode_task.
        max_output_length: maximum tokens of free text (0: those of a target in `reading`).

    Raises:
        InputError: if the rows do not match the task's settings, or the package of a metric is not installed.
    """
    check_installed(task.metrics)
    rows = encode_task(Task.load(task), split, reading, limit=limit)
    longest = max_output_length or reading.max_target_length
    form = answer_form(task.labels or [], reading.vocabulary, reading.sentinel, longest)
    counts = rows.counts.model_copy(update={"unwritable": _unwritable(task, rows, form)})
    return HeldOut(task, replace(rows, counts=counts), form, scoring)


def _unwritable(task: TaskConfig, rows: EncodedTask, form: AnswerForm) -> int:
    """Number of free-text targets that count as wrong even if a T5 gives exactly their ids."""
    compared = next((metric for metric in ("accuracy", "exact_match") if metric in task.metrics), None)
    if task.labels or compared is None:
        return 0
    written = [form.decode(ids.tolist()) for ids in rows.targets]
    return right([compared], written, rows.target_texts, answers=rows.answers).count(False)


def answer_all(
    model: ReadingModel, prompts: Sequence[int | None], splits: Sequence[HeldOut], options: AnswerOptions
) -> list[Outputs]:
    """Each prompt's answers to its own rows for `HeldOut.measured`, in mixed batches.

    Args:
        prompts: prompts in the model's bank; or all None, for answers without a prompt.
        splits: rows of each prompt.
    """
    asked = [prompt for prompt, rows in zip(prompts, splits, strict=True) for _ in range(len(rows))]
    outputs = answer_each(
        model,
        None if None in prompts else [prompt for prompt in asked if prompt is not None],
        [query for rows in splits for query in rows.queries_with_targets()],
        options,
    )
    return outputs.parts([len(rows) for rows in splits])


def score_prompts(
    model: PromptedT5,
    prompts: Sequence[int] | None = None,
    *,
    splits: Sequence[HeldOut],
    options: AnswerOptions,
) -> list[Measured]:
    """Validation of prompts of a bank, by default all, each on its own rows.

    Args:
        splits: rows of every prompt of the bank.
    """
    prompts = range(len(splits)) if prompts is None else prompts
    own = [splits[prompt] for prompt in prompts]
    outputs = answer_all(model, prompts, own, options)
    return [rows.measured(found) for rows, found in zip(own, outputs, strict=True)]


def score_mixture(model: PromptedT5, weights: Sequence[float], split: HeldOut, options: AnswerOptions) -> Measured:
    """Validation of a mixture of all prompts of a bank."""
    outputs = answer_mixture(model, range(len(weights)), weights, split.queries_with_targets(), options)
    return split.measured(outputs)


def score_model(model: ReadingModel, splits: Sequence[HeldOut], options: AnswerOptions) -> Measured:
    """Validation of a model without a prompt; for several tasks the mean of their averages, and all metrics."""
    outputs = answer_all(model, [None] * len(splits), splits, options)
    return mean_of_tasks(splits, [rows.measured(of_task) for rows, of_task in zip(splits, outputs, strict=True)])


def mean_of_tasks(splits: Sequence[HeldOut], found: Sequence[Measured]) -> Measured:
    """The validation of one result on several tasks: the mean of their averages, and all metrics as `TASK METRIC`."""
    if len(found) == 1:
        return found[0]
    each = {
        f"{rows.task.name} {name}": value
        for rows, measured in zip(splits, found, strict=True)
        for name, value in measured.scores.items()
    }
    mean = sum(measured.score for measured in found) / len(found)
    return Measured({MEAN_OF_TASKS: mean, **each}, mean, sum(measured.loss for measured in found) / len(found))


def scores_of_task(scores: Mapping[str, float], task: str, tasks: Sequence[str]) -> dict[str, float]:
    """The metrics of one task in the scores that `mean_of_tasks` gives for several, or for one.

    >>> scores_of_task({"mean": 0.5, "a accuracy": 0.4, "a b accuracy": 0.6}, "a", ["a", "a b"])
    {'accuracy': 0.4}
    """
    if len(tasks) == 1:
        return dict(scores)

    def owner(name: str) -> str:
        return max((one for one in tasks if name.startswith(f"{one} ")), key=len, default="")

    return {name.removeprefix(f"{task} "): value for name, value in scores.items() if owner(name) == task}


def answer_form(
    labels: Sequence[str], vocabulary: Vocabulary, sentinel: Sentinel, max_output_length: int
) -> AnswerForm:
    """The form of answers.

    With labels, decoding stops one token after the longest label, because a longer output is not a label.

    Args:
        labels: those of a task; empty for free text.
        max_output_length: maximum tokens of free text.
    """
    label_ids = [ids.tolist() for ids in encode_labels(labels, vocabulary, sentinel)]

    def text(ids: Sequence[int]) -> str:
        return vocabulary.decode(vocabulary.strip_sentinel(ids, sentinel))

    # A vocabulary that normalizes text does not return every label as it is written; one that does not (ByT5's) can
    # write a label in two Unicode forms.
    written = {normal_form(label): label for label in labels}
    written |= {text(ids): label for label, ids in zip(labels, label_ids, strict=True)}

    def decode(ids: Sequence[int]) -> str:
        found = text(ids)
        return written.get(found) or written.get(normal_form(found), found)

    longest = max(map(len, label_ids)) + 1 if labels else max_output_length
    return AnswerForm(decode, labels, label_ids, longest)


def validation_rows(task: TaskConfig, source: ModelSource, c: TaskStageConfig) -> HeldOut:
    """The validation rows of a stage's task, for its T5.

    Raises:
        InputError: if there are none, or they do not match the task's settings.
    """
    reading = source.reading(c.max_input_length, c.max_target_length)
    return load_held_out(task, "validation", reading, scoring=c.scoring, limit=c.validation_limit)
