"""Everything that one T5 answers, with the T5 and all of its prompts in memory once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.ensemble import answer_mixture, together
from t5_pipeline.evaluation.held_out import HeldOut, answer_all, held_out, target_ids
from t5_pipeline.evaluation.predict import Outputs, ReadingModel
from t5_pipeline.execution.context import Stage
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.peft import PeftT5
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import BareT5, PromptBank, PromptedT5


class Evaluator:
    """One T5 and the solutions that it answers with.

    Attributes:
        name: of the T5, as rows of scores have it.
        count: told the number of examples after each batch.
    """

    def __init__(
        self, stage: Stage[EvaluateConfig], solutions: Sequence[Candidate], count: Callable[[int], None]
    ) -> None:
        """
        Raises:
            InputError: the T5 is not where the solutions say, or is another one.
        """
        self.c, self.device, self.count = stage.config, stage.accelerator.device, count
        first = solutions[0]
        source = first.artifact if first.tuned else stage.model_of(first.artifact, first.model, first.digest)
        self.name = first.model if first.tuned else source.name
        self.path = source.path
        self.t5 = load_t5(self.path, torch.bfloat16 if self.c.precision == "bf16" else torch.float32)
        self.vocabulary = Vocabulary.load(self.path)
        rows = [prompt.rows_PD for solution in solutions for prompt in solution.prompts]
        model = PromptedT5(self.t5, PromptBank(rows)) if rows else BareT5(self.t5)
        self.model = model.to(self.device)
        # Where each solution's prompts stand in the bank.
        self.places: dict[int, list[int]] = {}
        begin = 0
        for solution in solutions:
            self.places[id(solution)] = list(range(begin, begin + len(solution.prompts)))
            begin += len(solution.prompts)
        self._held_out: dict[tuple[str, str, int, int], HeldOut] = {}

    def held_out(self, task: TaskConfig, solution: Candidate) -> HeldOut:
        """The rows of a task as a solution reads them; read once for all that read them alike."""
        lengths = (solution.max_input_length, solution.max_target_length)
        key = (task.name, solution.sentinel, *lengths)
        if key not in self._held_out:
            self._held_out[key] = held_out(
                task,
                self.c.split,
                self.vocabulary,
                sentinel=solution.sentinel,
                max_input_length=lengths[0],
                max_target_length=lengths[1],
                limit=self.c.limit,
                max_output_length=self.c.max_output_length,
            )
        return self._held_out[key]

    def bare(self, rows: HeldOut) -> Outputs:
        """What the T5 answers with no prompt."""
        return self._all(self.model, [None], [rows])[0]

    def answer(self, task: TaskConfig, solutions: Sequence[Candidate]) -> list[tuple[Candidate, HeldOut, Outputs]]:
        """What each solution answers to a task, in their order; single prompts share batches."""
        rows = {id(solution): self.held_out(task, solution) for solution in solutions}
        single = [solution for solution in solutions if solution.single]
        found = {}
        if single:
            places = [self.places[id(solution)][0] for solution in single]
            answers = self._all(self.model, places, [rows[id(solution)] for solution in single])
            found = {id(solution): outputs for solution, outputs in zip(single, answers, strict=True)}
        for solution in solutions:
            if not solution.single:
                found[id(solution)] = self._one(solution, rows[id(solution)])
        return [(solution, rows[id(solution)], found[id(solution)]) for solution in solutions]

    def _one(self, solution: Candidate, rows: HeldOut) -> Outputs:
        if solution.weights:
            answer = together(
                self.model,
                self.places[id(solution)],
                rows.rows.inputs,
                batch_size=self.c.batch_size,
                device=self.device,
                precision=self.c.precision,
                on_batch=self.count,
            )
            encode = partial(target_ids, vocabulary=self.vocabulary, sentinel=solution.sentinel)
            return answer_mixture(answer, solution.weights, [rows.form] * len(rows), encode)
        if solution.words is not None:
            inputs = solution.words.encode(rows.rows.input_texts, self.vocabulary)
            return self.bare(HeldOut(rows.task, rows.rows.with_inputs(inputs), rows.form))
        if solution.adapter is not None:
            model = PeftT5.load(solution.adapter, self.path).to(self.device)
            return self._all(model, [None], [rows])[0]
        return self.bare(rows)

    def _all(self, model: ReadingModel, prompts: Sequence[int | None], rows: Sequence[HeldOut]) -> list[Outputs]:
        return answer_all(
            model,
            prompts,
            rows,
            device=self.device,
            precision=self.c.precision,
            batch_size=self.c.batch_size,
            on_batch=self.count,
        )
