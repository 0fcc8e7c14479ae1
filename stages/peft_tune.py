"""LoRA (Hu et al. 2021), (IA)³ (Liu et al. 2022), prefix tuning (Li and Liang 2021) and P-tuning (Liu et al. 2021).

    lora            max over A, B of  log p(y | X; W + alpha/r · B A)  for projections W of every layer
    ia3             max over l of     log p(y | X; l_k ⊙ K, l_v ⊙ V, l_ff ⊙ inner feed-forward activations)
    prefix_tuning   max over K, V of  log p(y | X; [K; K_l], [V; V_l] in each decoder layer l)
    p_tuning        max over θ of  log p(y | [f_θ; X]),   f_θ a small network that writes the prompt

The T5 is frozen. It is transformers' own, adapted by the PEFT library. The best checkpoint on the validation rows is
published.

In:  "model" (a T5), a task
Out: "adapter" (in PEFT's own format), one for each cell
Run: accelerate launch stages/peft_tune.py --model runs/adapted --task rte.yaml --method p_tuning --output-dir runs/x
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from t5_pipeline.config.tuning import PeftTuneConfig
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.evaluation.held_out import HeldOut, score_model
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.peft import AdapterInfo, PeftT5, adapter_size
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer


def peft_tune(stage: Stage[PeftTuneConfig]) -> None:
    c, source = stage.config, stage.model_source()
    model = PeftT5.start(stage.input("model").path, c)
    batches = TaskBatches(training_rows(stage, source, [c.task]), [c.batch_size], [c.seed])

    def loss_fn(model: PeftT5, batch: TensorBatch) -> Tensor:
        loss_BT = token_loss(model(batch.inputs_BS, batch.targets_BT), batch.targets_BT, c.z_loss, model.special.pad)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B)

    def score(model: PeftT5, splits: Sequence[HeldOut], options: AnswerOptions) -> list[Measured]:
        return [score_model(model, splits, options)]

    @torch.no_grad()
    def publish(step: int, result: TrainingResult) -> None:
        best = result.best()
        for name, tensor in result.weights().items():
            model.trained[name].copy_(tensor)
        numbers = sum(tensor.numel() for tensor in model.trained.values())
        info = AdapterInfo(
            **source.identity,
            **adapter_size(c),
            method=c.method,
            task=c.task,
            trained=numbers,
            max_input_length=c.max_input_length,
            max_target_length=c.max_target_length,
            seed=c.seed,
            step=best.step,
            scores=best.scores,
        )
        stage.cells[0].facts.update(trained=numbers, best_step=best.step)
        stage.publish("adapter", partial(model.save, info=info), step=step, chosen=result.chosen())

    selection = select_best(stage, source, [c.task], score)
    train_stage(
        stage, Trainer(c, stage.launch, stage.accelerator, model, batches, loss_fn, selection=selection), publish
    )


if __name__ == "__main__":
    main(peft_tune, PeftTuneConfig)
