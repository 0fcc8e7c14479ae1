"""A task's held-out rows, what an answer to them may be, and how good the answers are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from t5_pipeline.config.tuning import LearningConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, Sentinel, Task, encode_labels, encode_task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.metrics import check_metrics, confusion, illegal_share, score
from t5_pipeline.evaluation.predict import AnswerForm, Outputs, ReadingModel, answer_each
from t5_pipeline.modeling.limits import SCORED_EXAMPLES
from t5_pipeline.modeling.prompt_bank import PromptedT5

FIRST_SAMPLES, MORE_SAMPLES = 20, 5


@dataclass(frozen=True)
class HeldOut:
    """Rows of one split of a task, as one T5 reads them."""

    task: TaskConfig
    rows: EncodedTask
    form: AnswerForm

    def __len__(self) -> int:
        return len(self.rows)

    def metrics(self, texts: Sequence[str]) -> dict[str, float]:
        """The task's metrics of answers in the order of the rows; the first one ranks."""
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

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Which answers are a target or another acceptable answer, as they stand."""
        wanted = self.rows.answers or [[target] for target in self.rows.target_texts]
        return [text in answers for text, answers in zip(texts, wanted, strict=True)]

    def scored(self, outputs: Outputs) -> dict[str, Any]:
        """Of a row of scores.json, what the answers decide: metrics, illegal outputs, confusion, examples."""
        labels, texts, targets = self.task.labels, outputs.texts, self.rows.target_texts
        legal = bool(labels and outputs.free)
        return {
            "metrics": self.metrics(texts),
            "illegal": illegal_share(outputs.free, labels or []) if legal else None,
            "illegal_by_label": self._illegal_by_label(outputs.free) if legal else None,
            "labels": labels,
            "confusion": confusion(texts, targets, labels).tolist() if labels else None,
            "samples": [
                {"input": self.rows.input_texts[i], "target": targets[i], "output": texts[i]}
                for i in self._shown(self.right(texts))
            ],
        }

    def _illegal_by_label(self, free: Sequence[str]) -> list[int]:
        """Of the rows of each label, how many free outputs are no label."""
        labels = self.task.labels or []
        none = [t for t, output in zip(self.rows.target_texts, free, strict=True) if output not in set(labels)]
        return [none.count(label) for label in labels]

    def _shown(self, right: Sequence[bool]) -> list[int]:
        """The first rows, and some more right and wrong ones where these are rare."""
        more = [[i for i, is_right in enumerate(right) if is_right == kind][:MORE_SAMPLES] for kind in (True, False)]
        return sorted({*range(min(FIRST_SAMPLES, len(right))), *more[0], *more[1]})


def held_out(
    task: TaskConfig,
    split: str,
    vocabulary: Vocabulary,
    *,
    sentinel: Sentinel,
    max_input_length: int,
    max_target_length: int,
    limit: int = 0,
    spread: bool = False,
    max_output_length: int = 0,
) -> HeldOut:
    """Read a split of a task for scoring.

    Args:
        limit, spread: as encode_task takes them.
        max_output_length: tokens of greedy decoding at most; 0 decodes nothing of a task with labels, and of others as
            many tokens as a target may have. An output longer than every label is no label, so of a task with labels
            decoding stops there.

    Raises:
        InputError: the rows or metrics are not what the task says.
    """
    check_metrics(task.metrics, task.labels, task.name)
    rows = encode_task(
        Task.load(task), split, vocabulary, max_input_length, max_target_length, sentinel, limit=limit, spread=spread
    )
    return HeldOut(task, rows, answer_form(task, vocabulary, sentinel, max_output_length, max_target_length))


def answer_all(
    model: ReadingModel,
    prompts: Sequence[int | None],
    held_out: Sequence[HeldOut],
    *,
    device: torch.device,
    precision: str,
    batch_size: int = SCORED_EXAMPLES,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> list[Outputs]:
    """Each prompt on its own rows, all of them mixed in the same batches; one `Outputs` for each.

    Args:
        prompts: places in the model's bank; or all None, for answers with no prompt.
    """
    asked = [prompt for prompt, rows in zip(prompts, held_out, strict=True) for _ in range(len(rows))]
    outputs = answer_each(
        model,
        None if None in prompts else [prompt for prompt in asked if prompt is not None],
        [ids for rows in held_out for ids in rows.rows.inputs],
        [rows.form for rows in held_out for _ in range(len(rows))],
        batch_size=batch_size,
        device=device,
        precision=precision,
        on_batch=on_batch,
    )
    ends = list(itertools.accumulate((len(rows) for rows in held_out), initial=0))
    return [outputs.part(begin, end) for begin, end in itertools.pairwise(ends)]


def score_prompts(
    model: PromptedT5, held_out: Sequence[HeldOut], device: torch.device, precision: str
) -> list[dict[str, float]]:
    """Metrics of prompt 0, 1, … of a bank, each on its own rows."""
    outputs = answer_all(model, range(len(held_out)), held_out, device=device, precision=precision)
    return [rows.metrics(found.texts) for rows, found in zip(held_out, outputs, strict=True)]


def score_model(
    model: ReadingModel, held_out: Sequence[HeldOut], device: torch.device, precision: str
) -> dict[str, float]:
    """Metrics of a model with no prompt: of one task its own; of several the mean of their first ones, and each."""
    outputs = answer_all(model, [None] * len(held_out), held_out, device=device, precision=precision)
    found = [rows.metrics(of_task.texts) for rows, of_task in zip(held_out, outputs, strict=True)]
    if len(found) == 1:
        return found[0]
    each = {
        f"{rows.task.name} {name}": value
        for rows, metrics in zip(held_out, found, strict=True)
        for name, value in metrics.items()
    }
    return {"mean": sum(next(iter(metrics.values())) for metrics in found) / len(found), **each}


def answer_form(
    task: TaskConfig, vocabulary: Vocabulary, sentinel: Sentinel, max_output_length: int, max_target_length: int
) -> AnswerForm:
    """What an answer of a task may be (`held_out` says what the lengths do)."""
    labels = task.labels or []
    label_ids = target_ids(labels, vocabulary, sentinel)
    longest = max_output_length
    if labels:
        longest = min(longest, max(map(len, label_ids)) + 1)
    elif not longest:
        longest = max_target_length
    return AnswerForm(partial(_text, vocabulary, sentinel), labels, label_ids, longest)


def target_ids(texts: Sequence[str], vocabulary: Vocabulary, sentinel: Sentinel) -> list[list[int]]:
    """Ids of texts as whole targets, as in training."""
    return [ids.tolist() for ids in encode_labels(texts, vocabulary, sentinel)]


def _text(vocabulary: Vocabulary, sentinel: Sentinel, ids: Sequence[int]) -> str:
    return vocabulary.decode(vocabulary.strip_sentinel(ids, sentinel))


def validation_rows(task: TaskConfig, vocabulary: Vocabulary, sentinel: Sentinel, c: LearningConfig) -> HeldOut:
    """The rows by which a stage chooses its checkpoint.

    Raises:
        InputError: there are none, or they are not what the task says.
    """
    if "validation" not in task.splits:
        raise InputError(
            f"tasks.{task.name}.splits: has no `validation`, by which `select: best` chooses a checkpoint; name one, or"
            " set `select: last`"
        )
    try:
        return held_out(
            task,
            "validation",
            vocabulary,
            sentinel=sentinel,
            max_input_length=c.max_input_length,
            max_target_length=c.max_target_length,
            limit=c.validation_limit,
            spread=True,
        )
    except InputError as error:
        raise InputError(f"{error} (`select: best` chooses a checkpoint by them; `select: last` needs none)") from None
