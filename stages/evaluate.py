"""Evaluation on held-out rows: prompts, the methods they are compared with, and baselines.

    decode       ŷ = the greedily decoded text of [P; X]; one that is not a label (illegal) is wrong
    likelihood   ŷ = argmax over labels of log p(label | [P; X]), summed over the label's tokens

`scoring` names the one that counts; for tasks with labels the other and the share of illegal outputs are recorded
beside it. Prompts of a task are answered in the same batches, each input once with each prompt; those that differ only
in their seed also vote. Baselines: the most frequent class of the training rows, and the frozen T5 without a prompt.

In:  "prompt", "model" (fine-tuned), "mixture", "text_prompt", "adapter": any of them, each with its T5
Out: "scores" (scores.json: one row per task, model, method and seed; predictions.jsonl: all answers of each)
Run: accelerate launch stages/evaluate.py --prompts runs/sst2 --output-dir runs/sst2-scores
 or: accelerate launch stages/evaluate.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.config.registry import STAGES
from t5_pipeline.core.scores import scores_text
from t5_pipeline.evaluation.evaluator import Evaluator, write_scores
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.base import Method, check_tasks
from t5_pipeline.methods.registry import METHODS


def evaluate(stage: Stage[EvaluateConfig], methods: Mapping[str, Method] = METHODS) -> None:
    inputs = [(kind, artifact) for n, kind in stage.config.scored_inputs().items() for artifact in stage.inputs(n)]
    candidates = [candidate for kind, artifact in inputs for candidate in methods[kind](artifact)]
    check_tasks(candidates, stage.config.also_on, stage.config.split)
    models = list(dict.fromkeys(candidate.digest for candidate in candidates))

    rows: list[dict[str, Any]] = []
    with MetricsLog(stage.directory / "metrics.jsonl") as metrics, Progress(stage.name, None, unit="example") as bar:
        metrics.truncate_after(-1)

        def count(examples: int) -> None:
            bar.advance(examples, {"examples_per_second": (bar.done + examples) / stage.seconds})

        for digest in models:
            evaluator = Evaluator(stage, [one for one in candidates if one.digest == digest], count)
            for row in evaluator.rows(rows):
                method, found = row["method"], row["metrics"]
                cell = row["cell"] if row.get("seed") is not None else None
                metrics.write(
                    {"step": bar.done, "cell": cell or method, "task": row["task"], "method": method, **found}
                )
                more = f", {cell}" if cell else f" on {row['model']}" if len(models) > 1 else ""
                log.info("%s: %s, %s%s: %s", stage.name, row["task"], method, more, scores_text(found))
                rows.append(row)

    stage.cells[0].facts.update(solutions=len(candidates), models=len(models))
    stage.publish("scores", lambda directory: write_scores(directory, rows, stage.cells[0].rows, stage.seconds))


if __name__ == "__main__":
    main(evaluate, cast(type[EvaluateConfig], STAGES["evaluate"]))
