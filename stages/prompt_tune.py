"""Prompt tuning (Lester et al. 2021, §2): freeze a T5 and learn a task as a soft prompt.

    max over P of  log p(y | [P; X]),   P ∈ R^{p×d} learned,  X the embedded input,  every weight of the T5 frozen

Prompts that share a frozen T5 train in one batch, whatever their tasks, lengths, inits, seeds, learning rates and
reparametrizations, with the same result as alone. The best checkpoint on each task's validation rows is published.

In:  "model" (a T5), a task
Out: "prompt" (p·d numbers and how to use them), one for each cell
Run: accelerate launch stages/prompt_tune.py --model runs/adapted --task tasks/sst2.yaml --output-dir runs/sst2
 or: accelerate launch stages/prompt_tune.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor

from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.evaluation.held_out import score_prompts
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import CellRun, Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.bank import initial_prompt, make_bank, optimizer_of
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.prompt_bank import PromptedT5
from t5_pipeline.modeling.reparametrization import Reparametrization
from t5_pipeline.training.best_checkpoint import prompt_rows
from t5_pipeline.training.loss import batch_losses, target_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.schedules import schedule_of
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer, TrainingResult, train_stage


def prompt_tune(stage: Stage[PromptTuneConfig]) -> None:
    c, cells, loaded = stage.config, stage.cells, stage.load_model()
    configs = [cell.config for cell in cells]
    bank = make_bank([start_of(loaded, cell) for cell in cells], configs)
    if c.precision == "bf16":
        loaded.t5.to(torch.bfloat16)
    model = PromptedT5(loaded.t5, bank)  # freezes the T5

    tasks = [c.task for c in configs]
    batches = TaskBatches(
        training_rows(stage, loaded, tasks), [c.batch_size for c in configs], [c.seed for c in configs], c.loss
    )

    def loss_fn(model: PromptedT5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
        loss_BT = target_loss(model, hidden_BTD, batch.targets_BT, c)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, len(bank))

    def publish(step: int, result: TrainingResult) -> None:
        width = loaded.t5.shape.d_model
        for index, (cell, rows_PD) in enumerate(zip(cells, result.prompts(bank), strict=True)):
            best = result.best(index)
            info = PromptInfo.tuned(cell.config, **loaded.identity, width=width, step=best.step, scores=best.scores)
            chosen = result.chosen(index)
            stage.publish("prompt", Prompt(rows_PD, info).save, step=step, cell=cell, chosen=chosen)
            size = loaded.t5.shape.parameters
            trained = cell.config.trained_parameters(loaded.t5.shape)
            cell.facts.update(parameters=size, trained=trained, best_step=best.step)

    ids = [cell.id for cell in cells]
    selection = select_best(stage, loaded, tasks, score_prompts, cells=ids, kept=prompt_rows)
    trainer = Trainer(
        c, stage.launch, stage.accelerator, model, batches, loss_fn, optimizer=optimizer_of(bank, configs),
        selection=selection, cells=ids, schedules=[schedule_of(c) for c in configs],
    )  # fmt: skip
    train_stage(stage, trainer, publish)


def start_of(loaded: LoadedT5, cell: CellRun[PromptTuneConfig]) -> Tensor | Reparametrization:
    """The prompt of a cell as it starts."""
    return initial_prompt(loaded, cell.config, cell.input("init_prompt").path if cell.config.init_prompt else None)


if __name__ == "__main__":
    main(prompt_tune, PromptTuneConfig)
