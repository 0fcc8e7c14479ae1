"""Evaluation: prompts on held-out rows, beside what they must beat.

    classification   ŷ = argmax over labels of log p(label | [P; X]), summed over the label's tokens
    otherwise        greedy decoding

Beside each prompt: the class that is most frequent in the training rows, and the same frozen T5 with no prompt. The
share of illegal outputs is of greedy decoding, which is free to write no label at all.

In:  "prompt" (every prompt of a stage, or one directory), each with the T5 it was trained on
Out: "scores" (scores.json: one row for each task, model, method and seed)
Run: accelerate launch stages/evaluate.py --prompts runs/sst2 --output-dir runs/sst2-scores
 or: accelerate launch stages/evaluate.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_prep.tasks import EncodedTask, Task, encode_labels, encode_task
from data_prep.vocabulary import Vocabulary
from pipeline.entry import main
from pipeline.evaluate_settings import EvaluateSettings
from pipeline.evaluation.metrics import check_metrics, confusion, illegal_share, score
from pipeline.evaluation.predict import Outputs, answer
from pipeline.modeling.load import load_t5
from pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from pipeline.modeling.prompt_file import Prompt
from pipeline.stage import Artifact, Stage, log
from pipeline.task_settings import TaskSettings
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.progress import Progress

SAMPLES = 20


def evaluate(stage: Stage[EvaluateSettings]) -> None:
    prompts = [(artifact, Prompt.load(artifact.path)) for artifact in stage.inputs("prompts")]
    for _, prompt in prompts:
        prompt.info = prompt.info.model_copy(update={"task": stage.config.scored(prompt.info.task)})
        check_metrics(prompt.info.task.metrics, prompt.info.task.labels, prompt.info.task.name)
    models = list(dict.fromkeys(prompt.info.base_model_digest for _, prompt in prompts))

    rows: list[dict[str, Any]] = []
    with MetricsLog(stage.directory / "metrics.jsonl") as metrics, Progress(stage.name, None, unit="example") as bar:
        metrics.truncate_after(-1)
        for digest in models:
            rows += score_on_one_model(
                stage, [p for p in prompts if p[1].info.base_model_digest == digest], bar, metrics
            )

    def write(directory: Path) -> None:
        text = json.dumps({"rows": rows, "seconds": round(stage.seconds, 1)}, indent=1, ensure_ascii=False)
        (directory / "scores.json").write_text(text, encoding="utf-8")

    stage.cells[0].facts.update(prompts=len(prompts), models=len(models))
    stage.publish("scores", write)


def score_on_one_model(
    stage: Stage[EvaluateSettings], prompts: list[tuple[Artifact, Prompt]], bar: Progress, metrics: MetricsLog
) -> list[dict[str, Any]]:
    """Rows of all prompts that share a frozen T5, and of that T5 with none."""
    c, device = stage.config, stage.accelerator.device
    source = stage.model_of(prompts[0][0], prompts[0][1].info.base_model, prompts[0][1].info.base_model_digest)
    t5 = load_t5(source.path, torch.bfloat16 if c.precision == "bf16" else torch.float32)
    vocabulary = Vocabulary.load(source.path)
    model = PromptedT5(t5, PromptBank([prompt.rows_PD for _, prompt in prompts])).to(device)

    def count(examples: int) -> None:
        bar.advance(examples, {"examples_per_second": (bar.done + examples) / stage.seconds})

    rows: list[dict[str, Any]] = []
    for index, (artifact, prompt) in enumerate(prompts):
        info = prompt.info
        task = Task.load(info.task)
        held_out = encode_task(
            task, c.split, vocabulary, info.max_input_length, info.max_target_length, info.sentinel, limit=c.limit
        )
        label_ids = [ids.tolist() for ids in encode_labels(info.task.labels or [], vocabulary, info.sentinel)]
        # An output longer than every label is no label, so decoding may stop there.
        longest = max(map(len, label_ids)) + 1 if label_ids else c.max_output_length

        def decode(ids: Sequence[int], variant: str = info.sentinel) -> str:
            return vocabulary.decode(vocabulary.strip_sentinel(ids, variant))

        answers = partial(
            answer,
            model,
            inputs=held_out.inputs,
            decode=decode,
            labels=info.task.labels,
            label_ids=label_ids,
            batch_size=c.batch_size,
            max_length=min(longest, c.max_output_length),
            device=device,
            precision=c.precision,
            on_batch=count,
        )
        about = {"task": info.task.name, "model": source.name, "split": c.split, "examples": len(held_out.inputs)}
        if c.baselines and not any(row["task"] == info.task.name for row in rows):
            rows.append(about | {"method": "no prompt"} | scored(info.task, held_out, answers(None)))
            if info.task.labels:
                majority = Outputs([most_frequent(task)] * len(held_out.inputs), [])
                rows.append(about | {"method": "majority class"} | scored(info.task, held_out, majority))
        described = {"prompt_length": info.prompt_length, "prompt_init": info.prompt_init, "step": info.step}
        about |= {"method": "prompt tuning", "cell": artifact.cell, "seed": info.seed, **described}
        rows.append(about | scored(info.task, held_out, answers(index)))
        name, found = artifact.cell or artifact.name, rows[-1]["metrics"]
        metrics.write({"step": bar.done, "cell": name, "task": info.task.name, **found})
        log.info("%s  %s %.3f", name, info.task.metrics[0], found[info.task.metrics[0]])
    return rows


def scored(task: TaskSettings, held_out: EncodedTask, outputs: Outputs) -> dict[str, Any]:
    """Metrics, illegal share, confusion and a few examples of what a model answered."""
    texts: Sequence[str] = held_out.target_texts
    labels = task.labels
    samples = [
        {"input": held_out.input_texts[i], "target": texts[i], "output": outputs.texts[i]}
        for i in range(min(SAMPLES, len(texts)))
    ]
    return {
        "metrics": score(task.metrics, outputs.texts, texts, labels),
        "illegal": illegal_share(outputs.free, labels) if labels and outputs.free else None,
        "labels": labels,
        "confusion": confusion(outputs.texts, texts, labels).tolist() if labels else None,
        "samples": samples,
    }


def most_frequent(task: Task) -> str:
    """The most frequent target of the training rows; of equally frequent ones the first label."""
    counts = Counter(task.targets(row) for row in task.rows("train"))
    return max(task.settings.labels or [], key=lambda label: counts[label])


if __name__ == "__main__":
    main(evaluate, EvaluateSettings)
