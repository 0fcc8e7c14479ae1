"""Prompt tuning (Lester et al. 2021, §2): freeze a T5 and learn a task as a soft prompt.

    max over P of  log p(y | [P; X]),   P ∈ R^{p×d} learned,  X the embedded input,  every weight of the T5 frozen

Prompts that share a frozen T5 train in one batch, whatever their tasks, lengths, inits and seeds; each becomes what it
would have become alone. What is published is the checkpoint that is best on the task's own validation rows.

In:  "model" (a T5), a task
Out: "prompt" (p·d numbers and how to use them), one for each cell
Run: accelerate launch stages/prompt_tune.py --model runs/adapted --task tasks/sst2.yaml --output-dir runs/sst2
 or: accelerate launch stages/prompt_tune.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTask, Task, TaskBatches, encode_task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import score_prompts, validation_rows
from t5_pipeline.execution.context import CellRun, Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.prompt_init import initial_rows
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_dir import read_metadata
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.loss import batch_losses
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import prompt_optimizer
from t5_pipeline.training.trainer import Trained, target_loss, train_stage


def prompt_tune(stage: Stage[PromptTuneConfig]) -> None:
    c = stage.config
    source = stage.input("model")
    t5 = load_t5(source.path)
    t5.set_dropout(c.dropout)
    t5.set_execution(c.reference_ops, c.recompute)
    vocabulary = Vocabulary.load(source.path)
    vocabulary.check_fits(t5.shape.vocab_size, source.path)
    sentinel = read_metadata(source.path).sentinel

    bank = PromptBank([start_of(t5, vocabulary, cell) for cell in stage.cells])
    if c.precision == "bf16":
        t5.to(torch.bfloat16)
    model = PromptedT5(t5, bank)

    encoded: dict[str, EncodedTask] = {}
    for cell in stage.cells:
        task = cell.config.task
        encoded.setdefault(
            task.model_dump_json(),
            encode_task(
                Task.load(task), "train", vocabulary, c.max_input_length, c.max_target_length, sentinel, training=True
            ),
        )
    batches = TaskBatches(
        [encoded[cell.config.task.model_dump_json()] for cell in stage.cells],
        [cell.config.batch_size for cell in stage.cells],
        [cell.config.seed for cell in stage.cells],
        c.loss,
    )

    def optimizer(rows: Sequence[Tensor]) -> torch.optim.Optimizer:
        (rows_RD,) = rows
        return prompt_optimizer(c.optimizer, rows_RD, bank.row_prompt_R, c.weight_decay)

    def loss_fn(model: PromptedT5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
        loss_BT = target_loss(model, hidden_BTD, batch.targets_BT, c)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B, len(bank))

    cells = [cell.id for cell in stage.cells]
    selection = None
    if c.select == "best":
        splits = [validation_rows(cell.config.task, vocabulary, sentinel, c) for cell in stage.cells]
        measure = partial(score_prompts, splits=splits, device=stage.accelerator.device, precision=c.precision)
        selection = Selection(
            cells,
            measure,
            lambda model, index: {"rows": model.bank.prompt(index)},
            every=c.validate_every,
            patience=c.patience,
        )

    made_on = {
        "base_model": source.name,
        "base_model_digest": source.digest,
        "tokenizer_digest": vocabulary.digest,
        "sentinel": sentinel,
        "width": t5.shape.d_model,
    }

    def publish(step: int, trained: Trained) -> None:
        last = bank.split(trained.checkpoint.tensor("model/bank.rows_RD"))
        for index, cell in enumerate(stage.cells):
            best = trained.best(index)
            info = PromptInfo.tuned(cell.config, **made_on, step=best.step, scores=best.scores)
            rows_PD = best.tensors.get("rows", last[index])
            stage.publish("prompt", Prompt(rows_PD, info).save, step=step, cell=cell)
            cell.facts.update(parameters=t5.shape.parameters, trained=cell.config.prompt_length * t5.shape.d_model)

    train_stage(
        stage,
        model,
        batches,
        publish=publish,
        loss_fn=loss_fn,
        optimizer=optimizer,
        selection=selection,
        cells=cells,
        unit="examples",
    )


def start_of(t5: T5, vocabulary: Vocabulary, cell: CellRun[PromptTuneConfig]) -> Tensor:
    """The rows [P, D] that one prompt starts from."""
    c = cell.config
    return initial_rows(t5, vocabulary, c, c.seed, cell.input("init_prompt").path if c.init_prompt else None)


if __name__ == "__main__":
    main(prompt_tune, PromptTuneConfig)
