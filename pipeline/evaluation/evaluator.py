"""Evaluation of every candidate that shares one T5, loading the model and its prompts once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import Reading
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.evaluation.answering import Answerer, Asked
from t5_pipeline.evaluation.costs import artifact_costs, latency_seconds, trained_numbers
from t5_pipeline.evaluation.decoding import Decoding, NoAnswer
from t5_pipeline.evaluation.ensemble import Answer, ensemble_rows
from t5_pipeline.evaluation.held_out import HeldOut, load_held_out
from t5_pipeline.evaluation.nearest_tokens import nearest_pieces
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.execution.context import Stage
from t5_pipeline.methods.base import Candidate

Row = dict[str, Any]
"""A row of scores.json, and its predictions."""

_NAMES = ("task", "model", "method", "variant", "source", "cell", "trained_on")


class Evaluator:
    """One T5 and the candidates that answer with it.

    Attributes:
        name: name of the T5 in scores.json.
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
        first = candidates[0]
        source = first.artifact if first.fine_tuned else stage.model_of(first.artifact, first.model, first.digest)
        self.name = first.model if first.fine_tuned else source.name
        self.answerer = Answerer(source.path, candidates, self.c.precision, stage.accelerator.device)
        stage.configure_execution(self.answerer.t5)
        self.on_batch = on_batch
        self._splits: dict[tuple[str, Reading], HeldOut] = {}

    def rows(self, earlier: Iterable[Row]) -> list[Row]:
        """The rows of all candidates, task by task, with baselines and ensembles.

        Args:
            earlier: rows of other T5s, which may contain baselines that are the same for all.
        """
        c = self.c
        also_on = [c.scored(task) for task in c.also_on]
        # Tasks of one name have the same rows here, and may differ in those of training.
        tasks: dict[tuple[str, ...], tuple[TaskConfig, list[Candidate]]] = {}
        for candidate in self.candidates:
            for task in candidate.scored_on(c.scored(candidate.task), also_on):
                tasks.setdefault((task.name, *task.metrics), (task, []))[1].append(candidate)
        rows: list[Row] = []
        for task, candidates in tasks.values():
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
            rows.append(about | {"method": "no prompt", "trained": 0} | split.scored(*self._asked([(None, split)])))
        # There may be many fine-tuned models, and this baseline is the same for all of them.
        known = any((row["task"], row["method"]) == (task.name, "majority class") for row in earlier)
        if task.labels and not (first.fine_tuned and known):
            majority = [most_frequent(Task.load(task), self.c.split)] * len(split)
            rows.append(about | {"method": "majority class", "trained": 0} | split.scored_texts(majority))
        return rows

    def answers(self, task: TaskConfig, candidates: Sequence[Candidate]) -> list[Answer]:
        """Each candidate's answers to a task; single prompts share batches."""
        splits = [self._as_read(self.split(task, one), one) for one in candidates]
        outputs = self._asked(list(zip(candidates, splits, strict=True)))
        return list(zip(candidates, splits, outputs, strict=True))

    def _asked(self, pairs: Sequence[tuple[Candidate | None, HeldOut]]) -> list[Outputs]:
        """Each candidate's answers to its rows of one task; None is the T5 without a prompt.

        Raises:
            NoAnswer: if one of them computes numbers that are not finite.
        """
        asked = [Asked(ids, split.form, candidate=one) for one, split in pairs for ids in split.rows.inputs]
        outputs = self.answerer.answer(asked, self.c.batch_size, self._decoding(pairs[0][1].task), self.on_batch)
        found = outputs.parts([len(split) for _, split in pairs])
        for (one, _), of_candidate in zip(pairs, found, strict=True):
            if any(of_candidate.broken):
                raise NoAnswer(self.name if one is None else str(one.artifact.path))
        return found

    def _decoding(self, task: TaskConfig) -> Decoding:
        """Labels are decoded greedily, as in the selection of checkpoints."""
        return Decoding() if task.labels else Decoding(self.c.beams, self.c.length_penalty)

    def split(self, task: TaskConfig, candidate: Candidate) -> HeldOut:
        """The rows of a task with a candidate's sentinels and lengths, loaded once for all that agree in these."""
        lengths = (candidate.max_input_length, candidate.max_target_length)
        reading = Reading(self.answerer.vocabulary, *lengths, candidate.sentinel)
        key = (task.model_dump_json(), reading)
        if key not in self._splits:
            c = self.c
            self._splits[key] = load_held_out(
                task, c.split, reading, scoring=c.scoring, limit=c.limit, max_output_length=c.max_output_length
            )
            self.stage.record_rows([self._splits[key].rows.counts])
        return self._splits[key]

    def _as_read(self, split: HeldOut, candidate: Candidate) -> HeldOut:
        if candidate.encode is None:
            return split
        vocabulary = self.answerer.vocabulary
        worded = split.with_inputs(candidate.encode(split.rows.input_texts, vocabulary), vocabulary)
        self.stage.record_rows([worded.rows.counts])
        return worded

    def _row(self, task: TaskConfig, candidate: Candidate, split: HeldOut, outputs: Outputs) -> Row:
        row = {"method": candidate.method, **candidate.about}
        artifact = candidate.artifact
        row |= {"source": artifact.source, "cell": artifact.origin.cell, "settings": artifact.settings_digest}
        row |= {"examples": len(split), "trained": trained_numbers(candidate), **artifact_costs(artifact)}
        if self.c.latency_tasks and candidate.task.name == task.name:
            row["latency_seconds"] = latency_seconds(
                self.answerer, candidate, split, self.c.latency_tasks, self._decoding(task)
            )
        if candidate.task.name != task.name:
            row["trained_on"] = candidate.task.name
        elif candidate.is_single_prompt and self.c.neighbors:
            pieces = self.answerer.vocabulary.names()
            row["neighbors"] = nearest_pieces(
                candidate.prompts[0], self.answerer.t5.shared.weight, pieces, self.c.neighbors
            )
        return row | split.scored(outputs)


def write_scores(directory: Path, rows: Sequence[Row], data: Sequence[RowCounts], seconds: float) -> None:
    """Write scores.json, and predictions.jsonl: what each method answered to each row.

    Args:
        rows: rows of scores.json, with their predictions.
        data: counts of the rows of each split.
        seconds: time of the evaluation.
    """
    with (directory / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            about = {name: row[name] for name in _NAMES if row.get(name) is not None}
            file.writelines(json.dumps(about | line, ensure_ascii=False) + "\n" for line in row["predictions"])
    scored = [{name: value for name, value in row.items() if name != "predictions"} for row in rows]
    content = {"rows": scored, "data": [counts.model_dump() for counts in data], "seconds": round(seconds, 3)}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (directory / "scores.json").write_text(text, encoding="utf-8")


def most_frequent(task: Task, split: str) -> str:
    """The most frequent target of the training rows, or those of `split` if there are none; on ties the first label."""
    counts = Counter(task.targets(row) for row in task.rows("train" if "train" in task.settings.splits else split))
    return max(task.settings.labels or [], key=lambda label: counts[label])
