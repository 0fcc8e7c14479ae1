"""Prompt design (Brown et al. 2020), the baseline without training: describe the task to a frozen T5 in text.

    input = row_1 target_1 … row_k target_k  template(row),   k training rows as demonstrations (0: zero-shot)

The best of several templates on the validation rows is published.

In:  "model" (a T5), a task
Out: "text_prompt" (the template and the demonstrations), one for each cell
Run: accelerate launch stages/prompt_design.py --model runs/adapted --task tasks/rte.yaml --shots 4 --output-dir runs/x
 or: accelerate launch stages/prompt_design.py --recipe recipes/study.yaml
"""

from __future__ import annotations

import torch

from t5_pipeline.config.tuning import PromptDesignConfig
from t5_pipeline.core.scores import scores_text
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.evaluation.held_out import score_model, validation_rows
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.text_prompt import TextPrompt, demonstrations
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.loaded import ModelSource
from t5_pipeline.modeling.prompt_bank import BareT5


def prompt_design(stage: Stage[PromptDesignConfig]) -> None:
    c, source = stage.config, stage.model_source()
    task = Task.load(c.task)
    rows = demonstration_rows(stage, task) if c.shots else []

    candidates = [
        TextPrompt(
            **source.identity,
            task=c.task,
            template=template,
            demonstrations=demonstrations(rows, c.task.labels, c.shots, c.seed, template, c.demonstration),
            separator=c.separator,
            seed=c.seed,
            max_input_length=c.max_input_length,
            max_target_length=c.max_target_length,
        )
        for template in c.templates
    ]
    best = best_on_validation(stage, candidates, source) if c.runs_model() else candidates[0]
    stage.cells[0].facts.update(template=best.template, shown=len(best.demonstrations), scores=best.scores)
    stage.publish("text_prompt", best.save)


def demonstration_rows(stage: Stage[PromptDesignConfig], task: Task) -> list[tuple[str, str]]:
    """Input and target of the training rows."""
    rows = task.rows("train", training=True)
    texts = [(task.inputs(row), task.targets(row)) for row in rows]
    stage.record_rows([task.counts("train", rows, [target for _, target in texts])])
    return texts


def best_on_validation(
    stage: Stage[PromptDesignConfig], candidates: list[TextPrompt], source: ModelSource
) -> TextPrompt:
    """The candidate with the highest average of the task's metrics, then the lowest loss; of equal ones the first."""
    c, options = stage.config, AnswerOptions(stage.accelerator.device, stage.config.precision)
    t5 = load_t5(stage.input("model").path, torch.bfloat16 if c.precision == "bf16" else torch.float32)
    stage.configure_execution(t5)
    model = BareT5(t5).to(options.device)
    split = validation_rows(c.task, source, c)
    scored = []
    for prompt in candidates:
        worded = split.with_inputs(prompt.encode(split.rows.input_texts, source.vocabulary), source.vocabulary)
        stage.record_rows([worded.rows.counts])
        measured = score_model(model, [worded], options)
        scores = measured.scores
        scored.append((measured.score, -measured.loss, prompt.model_copy(update={"scores": scores})))
        log.info("%s: %r: %s", stage.name, prompt.template, scores_text(scores))
    return max(scored, key=lambda found: found[:2])[2]


if __name__ == "__main__":
    main(prompt_design, PromptDesignConfig)
