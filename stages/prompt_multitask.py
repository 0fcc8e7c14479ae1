"""Multitask prompt tuning (Wang et al. 2023, §3): several tasks on a frozen T5 as one shared prompt, scaled for each.

    max over P*, u, v of  Σ_k log p(y_k | [P_k; X_k]),   P_k = P* ∘ (u_k·v_kᵀ),   ∘ number by number

A step has a batch of every task. The best checkpoint is that of the best mean over the tasks of each one's average of
metrics on its validation rows. A prompt of another task starts from P* and the means of u and v:
`prompt_tune --prompt-init shared --init-shared runs/src --reparametrization rank_one`.

In:  "model" (a T5), tasks
Out: "task_prompts" (the prompt of each task, and the shared one), one for each cell
Run: accelerate launch stages/prompt_multitask.py --model runs/adapted --tasks rte.yaml cb.yaml --output-dir runs/src
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t5_pipeline.config.soft_prompt import PromptMultitaskConfig
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.evaluation.held_out import HeldOut, mean_of_tasks, score_prompts, scores_of_task
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.multitask import SharedPrompt, TaskPrompts
from t5_pipeline.methods.prompt_init import initial_rows
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.prompt_bank import PromptedT5, SharedBank
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.loss import batch_losses, target_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import PromptRule, bank_optimizer
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer


def prompt_multitask(stage: Stage[PromptMultitaskConfig]) -> None:
    c, loaded, K = stage.config, stage.load_model(), len(stage.config.tasks)
    start = stage.input(c.init_input).path if c.init_input else None
    bank = SharedBank(initial_rows(loaded.t5, loaded.vocabulary, c, c.seed, start), K)
    if c.precision == "bf16":
        loaded.t5.to(torch.bfloat16)
    model = PromptedT5(loaded.t5, bank)  # freezes the T5
    batches = TaskBatches(training_rows(stage, loaded, c.tasks), [c.batch_size] * K, [c.seed] * K, c.loss)

    def loss_fn(model: PromptedT5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
        loss_BT = target_loss(model, hidden_BTD, batch.targets_BT, c)
        return batch_losses(loss_BT, batch.weights_B, torch.zeros_like(batch.prompt_B))

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        factor_rate = c.factor_learning_rate / c.learning_rate
        rule = PromptRule(c.weight_decay, step_offset=c.optimizer_step_offset, factor_rate=factor_rate)
        return bank_optimizer(c.optimizer, parameters, bank.parts, [rule] * K)

    def publish(step: int, result: TrainingResult) -> None:
        best, shape = result.best(), loaded.t5.shape
        learned = {name.removeprefix("bank."): tensor for name, tensor in result.weights().items()}
        prompts = []
        for task, rows_PD in zip(c.tasks, bank.prompts_of(learned), strict=True):
            own = scores_of_task(best.scores, task.name, [one.name for one in c.tasks])
            about = loaded.identity | {"task": task, "width": shape.d_model, "step": best.step, "scores": own}
            prompts.append(Prompt(rows_PD, PromptInfo.tuned(c, **about)))
        trained = c.trained_parameters(shape)
        stage.cells[0].facts.update(parameters=shape.parameters, trained=trained, best_step=best.step)
        made = TaskPrompts(prompts, SharedPrompt.of(learned), best.step, best.scores)
        stage.publish("task_prompts", made.save, step=step, chosen=result.chosen())

    selection = select_best(stage, loaded, c.tasks, score)
    trainer = Trainer(
        c, stage.launch, stage.accelerator, model, batches, loss_fn, optimizer=optimizer, selection=selection
    )
    train_stage(stage, trainer, publish)


def score(model: PromptedT5, splits: Sequence[HeldOut], options: AnswerOptions) -> list[Measured]:
    """Validation of all tasks together, each with its own prompt."""
    return [mean_of_tasks(splits, score_prompts(model, splits=splits, options=options))]


if __name__ == "__main__":
    main(prompt_multitask, PromptMultitaskConfig)
