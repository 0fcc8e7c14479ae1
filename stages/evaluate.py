"""Evaluation on held-out rows: prompts, what they are compared with, and what they must beat.

    classification   ŷ = argmax over labels of log p(label | [P; X]), summed over the label's tokens
    otherwise        greedy decoding

Prompts of a task are answered in the same batches, each input once with each prompt; those that differ only in their
seed also vote. Beside them: the class that is most frequent in the training rows, and the same frozen T5 with no
prompt. The share of illegal outputs is of greedy decoding, which is free to write no label at all.

In:  "prompt", "model" (tuned), "mixture", "text_prompt", "adapter": any of them, each with the T5 that it was made on
Out: "scores" (scores.json: one row for each task, model, method and seed)
Run: accelerate launch stages/evaluate.py --prompts runs/sst2 --output-dir runs/sst2-scores
 or: accelerate launch stages/evaluate.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import Task
from t5_pipeline.evaluation.ensemble import vote
from t5_pipeline.evaluation.evaluator import Evaluator
from t5_pipeline.evaluation.held_out import HeldOut
from t5_pipeline.evaluation.nearest_tokens import nearest_pieces
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.base import Candidate, check_also_on, load_candidates, scored_on

Rows = list[dict[str, Any]]


def evaluate(stage: Stage[EvaluateConfig]) -> None:
    c = stage.config
    inputs = [(name, artifact) for name in c.scored_inputs() for artifact in stage.inputs(name)]
    solutions = [solution for name, artifact in inputs for solution in load_candidates(name, artifact)]
    check_also_on(solutions, c.also_on)
    digests = list(dict.fromkeys(solution.digest for solution in solutions))

    rows: Rows = []
    with MetricsLog(stage.directory / "metrics.jsonl") as metrics, Progress(stage.name, None, unit="example") as bar:
        metrics.truncate_after(-1)

        def count(examples: int) -> None:
            bar.advance(examples, {"examples_per_second": (bar.done + examples) / stage.seconds})

        for digest in digests:
            for row in score_on_one_model(stage, [s for s in solutions if s.digest == digest], rows, count):
                name, found = row.get("cell") or row["method"], row["metrics"]
                metrics.write({"step": bar.done, "cell": name, "task": row["task"], "method": row["method"], **found})
                log.info("%s  %s  %s", row["task"], name, "  ".join(f"{m} {v:.3f}" for m, v in found.items()))
                rows.append(row)

    def write(directory: Path) -> None:
        text = json.dumps({"rows": rows, "seconds": round(stage.seconds, 1)}, indent=1, ensure_ascii=False)
        (directory / "scores.json").write_text(text, encoding="utf-8")

    stage.cells[0].facts.update(solutions=len(solutions), models=len(digests))
    stage.publish("scores", write)


def score_on_one_model(stage: Stage[EvaluateConfig], solutions: list[Candidate], before: Rows, count: Any) -> Rows:
    """Rows of everything that the same T5 answers, and of that T5 with no prompt."""
    c = stage.config
    exam = Evaluator(stage, solutions, count)
    rows: Rows = []
    tasks: list[TaskConfig] = []
    for solution in solutions:
        tasks += [task for task in scored_on(solution, c.scored(solution.task), also_on(c)) if task not in tasks]
    for task in tasks:
        sitting = [s for s in solutions if task in scored_on(s, c.scored(s.task), also_on(c))]
        about = {"task": task.name, "model": exam.name, "split": c.split}
        rows += [about | row for row in baselines(c, exam, task, sitting[0], before)]
        answers = exam.answer(task, sitting)
        for solution, held_out, outputs in answers:
            more = solution.about | {"examples": len(held_out), "cell": solution.artifact.cell}
            if solution.task.name != task.name:
                more["trained_on"] = solution.task.name
            elif solution.single and c.neighbours:
                more["neighbours"] = nearest_pieces(
                    solution.prompts[0].rows_PD, exam.t5.shared.weight, exam.vocabulary.names(), c.neighbours
                )
            rows.append(about | {"method": solution.method} | more | held_out.scored(outputs))
        if c.ensembles:
            rows += [about | row for row in ensembles(task, answers)]
    return rows


def also_on(c: EvaluateConfig) -> list[TaskConfig]:
    return [c.scored(task) for task in c.also_on]


def baselines(c: EvaluateConfig, exam: Evaluator, task: TaskConfig, first: Candidate, before: Rows) -> Rows:
    """The frozen T5 with no prompt, for each model, and the most frequent class."""
    rows: Rows = []
    if not c.baselines:
        return rows
    held_out = exam.held_out(task, first)
    about = {"examples": len(held_out)}
    if not first.tuned:
        rows.append(about | {"method": "no prompt", "trained": 0} | held_out.scored(exam.bare(held_out)))
    # Models that were tuned are many, and it is the same for all: once is enough.
    known = any((row["task"], row["method"]) == (task.name, "majority class") for row in before)
    if task.labels and not (first.tuned and known):
        majority = Outputs([most_frequent(Task.load(task))] * len(held_out))
        rows.append(about | {"method": "majority class", "trained": 0} | held_out.scored(majority))
    return rows


def ensembles(task: TaskConfig, answers: list[tuple[Candidate, HeldOut, Outputs]]) -> Rows:
    """The majority vote of prompts that differ in nothing but their seed (Lester et al. 2021, §6)."""
    left = [answer for answer in answers if answer[0].single]
    rows: Rows = []
    while left:
        first, held_out, _ = left[0]
        alike = [answer for answer in left if answer[0].alike(first)]
        left = [answer for answer in left if answer not in alike]
        if len(alike) > 1:
            voted = vote([outputs for _, _, outputs in alike], task.labels or ())
            kept = ("prompt_length", "prompt_init")
            more: dict[str, Any] = {name: first.about[name] for name in kept} | {"variant": f"{len(alike)} prompts"}
            if first.task.name != task.name:
                more["trained_on"] = first.task.name
            more["trained"] = sum(solution.about["trained"] for solution, _, _ in alike)
            rows.append({"method": "ensemble", "examples": len(held_out)} | more | held_out.scored(voted))
    return rows


def most_frequent(task: Task) -> str:
    """The most frequent target of the training rows; of equally frequent ones the first label."""
    counts = Counter(task.targets(row) for row in task.rows("train"))
    return max(task.settings.labels or [], key=lambda label: counts[label])


if __name__ == "__main__":
    main(evaluate, EvaluateConfig)
