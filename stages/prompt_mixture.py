"""A mixture of soft prompts (Qin and Eisner 2021): several prompts of one task on a frozen T5, with learned weights.

    max over P_1 … P_K, w of  log Σ_k w_k p(y | [P_k; X]),   w = softmax of K learned numbers

Each prompt starts from its own seed, all are trained together, and each input is read once with every prompt.

In:  "model" (a T5), a task
Out: "mixture" (K prompts and their weights), one for each cell
Run: accelerate launch stages/prompt_mixture.py --model runs/adapted --task tasks/rte.yaml --output-dir runs/rte-mixture
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t5_pipeline.config.soft_prompt import PromptMixtureConfig
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.evaluation.held_out import HeldOut, score_mixture
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.evaluation.selection import select_best
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.mixture import Mixture, MixtureModel, check_starts, mixture_optimizer
from t5_pipeline.methods.prompt_init import initial_rows
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.task_rows import training_rows
from t5_pipeline.training.trainer import Trainer


def prompt_mixture(stage: Stage[PromptMixtureConfig]) -> None:
    c, loaded = stage.config, stage.load_model()
    t5, vocabulary = loaded.t5, loaded.vocabulary
    start = stage.input(c.init_input).path if c.init_input else None
    starts = [initial_rows(t5, vocabulary, c, seed, start) for seed in c.component_seeds()]
    bank = PromptBank(check_starts(starts, c.dropout))
    if c.precision == "bf16":
        t5.to(torch.bfloat16)
    model = MixtureModel(PromptedT5(t5, bank), c.components, t5.special.pad)
    batches = TaskBatches(training_rows(stage, loaded, [c.task]), [c.batch_size], [c.seed], c.loss)

    def loss_fn(model: MixtureModel, batch: TensorBatch) -> Tensor:
        loss: Tensor = model(batch.inputs_BS, batch.targets_BT, batch.weights_B, c.z_loss, "loss" in c.reference_ops)
        return loss

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        logits_K, rows_RD = parameters
        rate = c.weight_learning_rate / c.learning_rate
        return mixture_optimizer(
            c.optimizer, rows_RD, bank.row_prompt_R, logits_K, c.weight_decay, rate, c.optimizer_step_offset
        )

    def publish(step: int, result: TrainingResult) -> None:
        best, learned = result.best(), result.weights()
        prompts = []
        for seed, rows_PD in zip(c.component_seeds(), bank.split(learned["model.bank.rows_RD"]), strict=True):
            about = loaded.identity | {"width": t5.shape.d_model, "seed": seed, "step": best.step}
            prompts.append(Prompt(rows_PD, PromptInfo.tuned(c, **about)))
        weights = learned["logits_K"].double().softmax(dim=0).tolist()
        trained = sum(tensor.numel() for tensor in learned.values())
        stage.cells[0].facts.update(parameters=t5.shape.parameters, trained=trained, best_step=best.step)
        mixture = Mixture(prompts, weights, best.step, best.scores)
        stage.publish("mixture", mixture.save, step=step, chosen=result.chosen())

    selection = select_best(stage, loaded, [c.task], score)
    trainer = Trainer(
        c, stage.launch, stage.accelerator, model, batches, loss_fn, optimizer=optimizer, selection=selection
    )
    train_stage(stage, trainer, publish)


def score(model: MixtureModel, splits: Sequence[HeldOut], options: AnswerOptions) -> list[Measured]:
    """Validation of the mixture's answers on the validation rows of its task."""
    prompted, (split,) = model.model, splits
    assert isinstance(prompted, PromptedT5)
    return [score_mixture(prompted, model.weights, split, options)]


if __name__ == "__main__":
    main(prompt_mixture, PromptMixtureConfig)
