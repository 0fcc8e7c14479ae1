"""Model tuning, the baseline of prompt tuning (Lester et al. 2021, §3): train every weight of a T5 on a task.

    max over θ of  log p_θ(y | X),   θ all weights of the T5, tuned on one task or on several at once

Several tasks are mixed in proportion to their training rows, or equally; their inputs must differ (by a `task_prefix`,
as in T5's own mixtures). The best checkpoint on the validation rows is published, by the mean over the tasks of each
one's average of metrics.

In:  "model" (a T5), tasks
Out: "model" (the tuned T5, with the tasks it answers), one for each cell
Run: accelerate launch stages/model_tune.py --model runs/adapted --tasks tasks/rte.yaml --output-dir runs/rte-tuned
 or: accelerate launch stages/model_tune.py --recipe recipes/wikipedia-study.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from t5_pipeline.config.tuning import ModelTuneConfig
from t5_pipeline.data_prep.tasks.mixture import MixedTaskBatches
from t5_pipeline.evaluation.held_out import HeldOut, score_model
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.modeling.model_metadata import LineageStage, TunedTask
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.loss import batch_losses, target_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.pretraining_state import pretraining_optimizer
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer


def model_tune(stage: Stage[ModelTuneConfig]) -> None:
    c, model = stage.config, stage.load_model()
    parameters = model.t5.shape.parameters
    rows = training_rows(stage, model, c.tasks)
    batches = MixedTaskBatches(rows, c.batch_size, c.seed, c.mixing, c.mixing_limit)

    def loss_fn(t5: T5, batch: TensorBatch) -> Tensor:
        hidden_BTD = t5.predict(batch.inputs_BS, batch.targets_BT)
        return batch_losses(target_loss(t5, hidden_BTD, batch.targets_BT, c), batch.weights_B, batch.prompt_B)

    def score(t5: T5, splits: Sequence[HeldOut], options: AnswerOptions) -> list[Measured]:
        return [score_model(BareT5(t5), splits, options)]

    def publish(step: int, result: TrainingResult) -> None:
        best = result.best()
        names = [task.name for task in c.tasks]
        made = LineageStage(stage="model_tune", step=best.step, tasks=names, of=model.digest)
        metadata = model.metadata.with_stage(made).with_tasks(
            [
                TunedTask(
                    max_input_length=c.max_input_length,
                    max_target_length=c.max_target_length,
                    trained=parameters,
                    task=task,
                    seed=c.seed,
                    base_model=model.name,
                )
                for task in c.tasks
            ]
        )
        facts = {"parameters": parameters, "trained": parameters, "best_step": best.step, "scores": best.scores}
        stage.cells[0].facts.update(facts)
        chosen = result.chosen()
        stage.publish("model", lambda place: model.save(place, metadata, result.weights()), step=step, chosen=chosen)

    selection, optimizer = select_best(stage, model, c.tasks, score), pretraining_optimizer(stage, model.t5)
    trainer = Trainer(
        c, stage.launch, stage.accelerator, model.t5, batches, loss_fn, optimizer=optimizer, selection=selection
    )
    train_stage(stage, trainer, publish)


if __name__ == "__main__":
    main(model_tune, ModelTuneConfig)
