"""Evaluation of every candidate that shares one T5, loading the model and its prompts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.ensemble import Answer, ensemble_rows, mixture_answers
from t5_pipeline.evaluation.held_out import HeldOut, answer_all, load_held_out
from t5_pipeline.evaluation.nearest_tokens import nearest_pieces
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.execution.context import Stage
from t5_pipeline.methods.base import Candidate, ReadingModel
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import BareT5, PromptBank, PromptedT5

Row = dict[str, Any]
"""A row of scores.json."""


class Evaluator:
    """One T5 and the candidates that answer with it.

    Attributes:
        name: name of the T5 in scores.json.
        model: the T5 with the prompts of all candidates in one bank.
    """

    def __init__(
        self, stage: Stage[EvaluateConfig], candidates: Sequence[Candidate], on_batch: Callable[[int], None]
    ) -> None:
        """
        Args:
            on_batch: receives the number of examples after each batch.

        Raises:
            InputError: if the T5 is not where the candidates expect it, or is another one.
        """
        self.stage, self.c, self.candidates = stage, stage.config, candidates
        self.answering = {
            "device": stage.accelerator.device,
            "precision": self.c.precision,
            "batch_size": self.c.batch_size,
            "on_batch": on_batch,
        }
        first = candidates[0]
        source = first.artifact if first.fine_tuned else stage.model_of(first.artifact, first.model, first.digest)
        self.name = first.model if first.fine_tuned else source.name
        self.path = source.path
        self.t5 = load_t5(self.path, torch.bfloat16 if self.c.precision == "bf16" else torch.float32)
        self.vocabulary = Vocabulary.load(self.path)
        prompts = [rows_PD for candidate in candidates for rows_PD in candidate.prompts]
        model = PromptedT5(self.t5, PromptBank(prompts)) if prompts else BareT5(self.t5)
        self.model: ReadingModel = model.to(stage.accelerator.device)
        # Each candidate's prompts in the bank.
        self.places: dict[int, range] = {}
        begin = 0
        for candidate in candidates:
            self.places[id(candidate)] = range(begin, begin + len(candidate.prompts))
            begin += len(candidate.prompts)
        self._splits: dict[tuple[str, str, int, int], HeldOut] = {}

    def rows(self, earlier: Iterable[Row]) -> list[Row]:
        """The rows of all candidates, task by task, with baselines and ensembles.

        Args:
            earlier: rows of other T5s, which may contain baselines that are the same for all.
        """
        c = self.c
        also_on = [c.scored(task) for task in c.also_on]
        tasks_of = [candidate.scored_on(c.scored(candidate.task), also_on) for candidate in self.candidates]
        tasks: list[TaskConfig] = []
        for each in tasks_of:
            tasks += [task for task in each if task not in tasks]
        rows: list[Row] = []
        for task in tasks:
            candidates = [one for one, of_one in zip(self.candidates, tasks_of, strict=True) if task in of_one]
            found = self.baselines(task, candidates[0], earlier)
            answers = self.answers(task, candidates)
            found += [self._row(task, *answer) for answer in answers]
            if c.ensembles:
                found += ensemble_rows(task, answers)
            rows += [{"task": task.name, "model": self.name, "split": c.split} | row for row in found]
        return rows

    def baselines(self, task: TaskConfig, first: Candidate, earlier: Iterable[Row]) -> list[Row]:
        """Rows of the T5 without a prompt, and of the most frequent class."""
        rows: list[Row] = []
        if not self.c.baselines:
            return rows
        split = self.split(task, first)
        about = {"examples": len(split)}
        if not first.fine_tuned:
            rows.append(about | {"method": "no prompt", "trained": 0} | split.scored(self._bare(split)))
        # There may be many fine-tuned models, and this baseline is the same for all of them.
        known = any((row["task"], row["method"]) == (task.name, "majority class") for row in earlier)
        if task.labels and not (first.fine_tuned and known):
            majority = Outputs([most_frequent(Task.load(task))] * len(split))
            rows.append(about | {"method": "majority class", "trained": 0} | split.scored(majority))
        return rows

    def answers(self, task: TaskConfig, candidates: Sequence[Candidate]) -> list[Answer]:
        """Each candidate's answers to a task; single prompts share batches."""
        splits = {id(one): self._as_read(self.split(task, one), one) for one in candidates}
        single = [one for one in candidates if one.is_single_prompt]
        found: dict[int, Outputs] = {}
        if single:
            places = [self.places[id(one)][0] for one in single]
            shared = answer_all(self.model, places, [splits[id(one)] for one in single], **self.answering)
            found = {id(one): outputs for one, outputs in zip(single, shared, strict=True)}
        for one in candidates:
            if not one.is_single_prompt:
                found[id(one)] = self._answer(one, splits[id(one)])
        return [(one, splits[id(one)], found[id(one)]) for one in candidates]

    def split(self, task: TaskConfig, candidate: Candidate) -> HeldOut:
        """The rows of a task with a candidate's sentinels and lengths, loaded once for all that agree in these."""
        lengths = (candidate.max_input_length, candidate.max_target_length)
        key = (task.name, candidate.sentinel, *lengths)
        if key not in self._splits:
            self._splits[key] = load_held_out(
                task,
                self.c.split,
                self.vocabulary,
                sentinel=candidate.sentinel,
                max_input_length=lengths[0],
                max_target_length=lengths[1],
                limit=self.c.limit,
                max_output_length=self.c.max_output_length,
            )
            self.stage.record_rows([self._splits[key].rows.counts])
        return self._splits[key]

    def _as_read(self, split: HeldOut, candidate: Candidate) -> HeldOut:
        if candidate.encode is None:
            return split
        worded = split.with_inputs(candidate.encode(split.rows.input_texts, self.vocabulary))
        self.stage.record_rows([worded.rows.counts])
        return worded

    def _answer(self, candidate: Candidate, split: HeldOut) -> Outputs:
        if candidate.weights:
            return mixture_answers(self.model, self.places[id(candidate)], candidate.weights, split, **self.answering)
        if candidate.load_model is not None:
            model = candidate.load_model(self.path).to(self.answering["device"])
            return answer_all(model, [None], [split], **self.answering)[0]
        return self._bare(split)

    def _bare(self, split: HeldOut) -> Outputs:
        return answer_all(self.model, [None], [split], **self.answering)[0]

    def _row(self, task: TaskConfig, candidate: Candidate, split: HeldOut, outputs: Outputs) -> Row:
        row = {"method": candidate.method, **candidate.about}
        row |= {"examples": len(split), "cell": candidate.artifact.cell}
        if candidate.task.name != task.name:
            row["trained_on"] = candidate.task.name
        elif candidate.is_single_prompt and self.c.neighbours:
            pieces = self.vocabulary.names()
            row["neighbours"] = nearest_pieces(candidate.prompts[0], self.t5.shared.weight, pieces, self.c.neighbours)
        return row | split.scored(outputs)


def most_frequent(task: Task) -> str:
    """The most frequent target of the training rows; on ties the first label."""
    counts = Counter(task.targets(row) for row in task.rows("train"))
    return max(task.settings.labels or [], key=lambda label: counts[label])
