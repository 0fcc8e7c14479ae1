"""Model tuning, what prompt tuning is compared with (Lester et al. 2021, §3): every weight of a T5 learns the task.

    max over θ of  log p_θ(y | X),   θ all weights of the T5, tuned on one task or on several at once

Several tasks are mixed in proportion to their training rows, or equally; their inputs must tell them apart (a task's
`task_prefix`, as in T5's own mixtures). What is published is the checkpoint that is best on the validation rows, by the
mean over the tasks of each one's first metric.

In:  "model" (a T5), tasks
Out: "model" (the tuned T5, with the tasks it answers), one for each cell
Run: accelerate launch stages/model_tune.py --model runs/adapted --tasks tasks/rte.yaml --output-dir runs/rte-tuned
 or: accelerate launch stages/model_tune.py --recipe recipes/wikipedia-study.yaml
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from t5_pipeline.config.tuning import ModelTuneConfig
from t5_pipeline.data_prep.tasks.encode import Task, encode_task
from t5_pipeline.data_prep.tasks.mixture import MixedTaskBatches
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import score_model, validation_rows
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_dir import read_metadata, write_model
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.loss import batch_losses
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.trainer import Trained, target_loss, train_stage


def model_tune(stage: Stage[ModelTuneConfig]) -> None:
    c = stage.config
    source = stage.input("model")
    model = load_t5(source.path)
    model.set_dropout(c.dropout)
    model.set_execution(c.reference_ops, c.recompute)
    vocabulary = Vocabulary.load(source.path)
    vocabulary.check_fits(model.shape.vocab_size, source.path)
    metadata = read_metadata(source.path)
    sentinel = metadata.sentinel

    lengths = (c.max_input_length, c.max_target_length)
    rows = [encode_task(Task.load(task), "train", vocabulary, *lengths, sentinel, training=True) for task in c.tasks]
    batches = MixedTaskBatches(rows, c.batch_size, c.seed, c.mixing, c.mixing_limit)

    def loss_fn(model: T5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.inputs_BS, batch.targets_BT)
        return batch_losses(target_loss(model, hidden_BTD, batch.targets_BT, c), batch.weights_B, batch.prompt_B)

    selection = None
    if c.select == "best":
        splits = [validation_rows(task, vocabulary, sentinel, c) for task in c.tasks]
        score = partial(score_model, splits=splits, device=stage.accelerator.device, precision=c.precision)
        selection = Selection(
            [""], lambda model: [score(BareT5(model))], None, every=c.validate_every, patience=c.patience
        )

    def publish(step: int, trained: Trained) -> None:
        best = trained.best()
        about = {"max_input_length": c.max_input_length, "max_target_length": c.max_target_length}
        about["trained"] = model.shape.parameters
        made = metadata.with_stage(
            stage="model_tune", step=best.step, tasks=[task.name for task in c.tasks], of=source.digest
        ).with_tasks(
            [
                about | {"task": task.model_dump(mode="json"), "seed": c.seed, "base_model": source.name}
                for task in c.tasks
            ],
        )
        stage.cells[0].facts.update(parameters=model.shape.parameters, trained=model.shape.parameters)
        stage.cells[0].facts.update(best_step=best.step, scores=best.scores)
        write = partial(write_model, model=model, vocabulary=vocabulary, metadata=made)
        stage.publish("model", lambda directory: write(directory, tensors=trained.weights()), step=step)

    train_stage(stage, model, batches, publish=publish, loss_fn=loss_fn, selection=selection, unit="examples")


if __name__ == "__main__":
    main(model_tune, ModelTuneConfig)
