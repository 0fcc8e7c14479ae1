"""Prefix tuning (Li and Liang 2021) and P-tuning (Liu et al. 2021), by the PEFT library, beside prompt tuning.

    prefix_tuning   max over K, V of  log p(y | X; [K; K_l], [V; V_l] in each decoder layer l)
    p_tuning        max over θ of  log p(y | [f_θ; X]),   f_θ a small network that writes the prompt

The T5 is frozen, and transformers' own. What is published is the checkpoint that is best on the validation rows.

In:  "model" (a T5), a task
Out: "adapter" (in PEFT's own format), one for each cell
Run: accelerate launch stages/peft_tune.py --model runs/adapted --task rte.yaml --method p_tuning --output-dir runs/x
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from t5_pipeline.config.tuning import PeftTuneConfig
from t5_pipeline.data_prep.tasks.encode import Task, TaskBatches, encode_task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import score_model, validation_rows
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.peft import AdapterInfo, PeftT5
from t5_pipeline.modeling.model_dir import read_metadata
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.loss import batch_losses, token_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.trainer import Trained, train_stage


def peft_tune(stage: Stage[PeftTuneConfig]) -> None:
    c, device = stage.config, stage.accelerator.device
    source = stage.input("model")
    vocabulary = Vocabulary.load(source.path)
    sentinel = read_metadata(source.path).sentinel
    model = PeftT5.start(source.path, c.method, c.virtual_tokens, c.hidden_size, c.dropout, c.seed)

    lengths = (c.max_input_length, c.max_target_length)
    rows = encode_task(Task.load(c.task), "train", vocabulary, *lengths, sentinel, training=True)
    batches = TaskBatches([rows], [c.batch_size], [c.seed])

    def loss_fn(model: PeftT5, batch: TensorBatch) -> Tensor:
        loss_BT = token_loss(model(batch.inputs_BS, batch.targets_BT), batch.targets_BT, c.z_loss)
        return batch_losses(loss_BT, batch.weights_B, batch.prompt_B)

    selection = None
    if c.select == "best":
        split = validation_rows(c.task, vocabulary, sentinel, c)
        score = partial(score_model, splits=[split], device=device, precision=c.precision)
        selection = Selection([""], lambda model: [score(model)], None, every=c.validate_every, patience=c.patience)

    def publish(step: int, trained: Trained) -> None:
        best = trained.best()
        with torch.no_grad():
            for name, tensor in trained.weights().items():
                model.trained[name].copy_(tensor)
        numbers = sum(tensor.numel() for tensor in model.trained.values())
        info = AdapterInfo(
            method=c.method,
            base_model=source.name,
            base_model_digest=source.digest,
            tokenizer_digest=vocabulary.digest,
            task=c.task,
            sentinel=sentinel,
            virtual_tokens=c.virtual_tokens,
            trained=numbers,
            max_input_length=c.max_input_length,
            max_target_length=c.max_target_length,
            seed=c.seed,
            step=best.step,
            scores=best.scores,
        )
        stage.cells[0].facts.update(trained=numbers, best_step=best.step)
        stage.publish("adapter", partial(model.save, info=info), step=step)

    train_stage(stage, model, batches, publish=publish, loss_fn=loss_fn, selection=selection, unit="examples")


if __name__ == "__main__":
    main(peft_tune, PeftTuneConfig)
