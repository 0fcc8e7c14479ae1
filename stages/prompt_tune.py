"""Prompt tuning (Lester et al. 2021, §2): freeze a T5 and learn a task as a soft prompt.

    max over P of  log p(y | [P; X]),   P ∈ R^{p×d} learned,  X the embedded input,  every weight of the T5 frozen

Prompts that share a frozen T5 train in one batch, whatever their tasks, lengths, inits, seeds, learning rates and
reparametrizations, with the same result as alone. The best checkpoint on each task's validation rows is published. A
sweep publishes the best of its prompts.

In:  "model" (a T5), a task
Out: "prompt" (p·d numbers and how to use them), one for each cell
Run: accelerate launch stages/prompt_tune.py --model runs/adapted --task tasks/sst2.yaml --output-dir runs/sst2
 or: accelerate launch stages/prompt_tune.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor

from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.evaluation.held_out import score_prompts
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.bank import (
    halving_of,
    initial_prompt,
    make_bank,
    optimizer_of,
    sweep_facts,
    trials_of,
    winners,
)
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.prompt_bank import PromptedT5
from t5_pipeline.training.best_checkpoint import prompt_rows
from t5_pipeline.training.loss import batch_losses, target_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.schedules import schedule_of
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer


def prompt_tune(stage: Stage[PromptTuneConfig]) -> None:
    c, loaded = stage.config, stage.load_model()
    trials = trials_of(stage.cells)  # a prompt for each cell, or several in a sweep
    configs, names, task_of = [t.config for t in trials], [t.name for t in trials], [t.number for t in trials]
    halving = halving_of(trials)
    bank = make_bank([initial_prompt(loaded, trial) for trial in trials], configs, apart=halving.takes_turns)
    if c.precision == "bf16":
        loaded.t5.to(torch.bfloat16)
    model = PromptedT5(loaded.t5, bank)  # freezes the T5

    tasks = [cell.config.task for cell in stage.cells]
    rows = training_rows(stage, loaded, tasks)
    batches = TaskBatches(
        [rows[number] for number in task_of], [c.batch_size for c in configs], [c.seed for c in configs], c.loss,
        halving.turn,
    )  # fmt: skip

    def loss_fn(model: PromptedT5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
        loss_BT = target_loss(model, hidden_BTD, batch.targets_BT, c)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, len(bank))

    def publish(step: int, result: TrainingResult) -> None:
        shape, prompts = loaded.t5.shape, result.prompts(bank)
        for index in winners(trials, result):
            cell, config, best = trials[index].cell, trials[index].config, result.best(index)
            known = {**loaded.identity, "width": shape.d_model, "step": best.step, "scores": best.scores}
            prompt = Prompt(prompts[index], PromptInfo.tuned(config, **known))
            stage.publish("prompt", prompt.save, step=step, cell=cell, chosen=result.chosen(index))
            trained = config.trained_parameters(shape)
            cell.facts.update(parameters=shape.parameters, trained=trained, best_step=best.step)
            cell.facts.update(sweep_facts(trials, index, result, halving))

    selection = select_best(
        stage, loaded, tasks, score_prompts, cells=names, kept=prompt_rows, task_of=task_of, halving=halving
    )
    trainer = Trainer(
        c, stage.launch, stage.accelerator, model, batches, loss_fn, optimizer=optimizer_of(bank, configs),
        selection=selection, cells=names, schedules=[schedule_of(c) for c in configs],
    )  # fmt: skip
    train_stage(stage, trainer, publish)


if __name__ == "__main__":
    main(prompt_tune, PromptTuneConfig)
