"""A mixture of soft prompts (Qin and Eisner 2021): several prompts of one task on a frozen T5, with learnt weights.

    max over P_1 … P_K, w of  log Σ_k w_k p(y | [P_k; X]),   w = softmax of K learnt numbers

Each prompt starts with a seed of its own, all train at once, and each input is read once with every prompt.

In:  "model" (a T5), a task
Out: "mixture" (K prompts and their weights), one for each cell
Run: accelerate launch stages/prompt_mixture.py --model runs/adapted --task tasks/rte.yaml --output-dir runs/rte-mixture
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from t5_pipeline.config.tuning import PromptMixtureConfig
from t5_pipeline.data_prep.tasks.encode import Task, TaskBatches, encode_task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.ensemble import mixture_answers
from t5_pipeline.evaluation.held_out import HeldOut, validation_rows
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import main
from t5_pipeline.methods.mixture import Mixture, MixtureWeights, mixture_optimizer
from t5_pipeline.methods.prompt_init import initial_rows
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_dir import read_metadata
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.trainer import Trained, train_stage


def prompt_mixture(stage: Stage[PromptMixtureConfig]) -> None:
    c, device = stage.config, stage.accelerator.device
    source = stage.input("model")
    t5 = load_t5(source.path)
    t5.set_dropout(c.dropout)
    t5.set_execution(c.reference_ops, c.recompute)
    vocabulary = Vocabulary.load(source.path)
    vocabulary.check_fits(t5.shape.vocab_size, source.path)
    sentinel = read_metadata(source.path).sentinel

    start = stage.input("init_prompt").path if c.init_prompt else None
    prompted = PromptedT5(
        t5, PromptBank([initial_rows(t5, vocabulary, c, c.seed + k, start) for k in range(c.components)])
    )
    if c.precision == "bf16":
        t5.to(torch.bfloat16)
    model, bank = MixtureWeights(prompted, c.components), prompted.bank

    lengths = (c.max_input_length, c.max_target_length)
    rows = encode_task(Task.load(c.task), "train", vocabulary, *lengths, sentinel, training=True)
    batches = TaskBatches([rows], [c.batch_size], [c.seed], c.loss)

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        logits_K, rows_RD = parameters
        rate = c.weight_learning_rate / c.learning_rate
        return mixture_optimizer(c.optimizer, rows_RD, bank.row_prompt_R, logits_K, c.weight_decay, rate)

    def loss_fn(model: MixtureWeights, batch: TensorBatch) -> Tensor:
        loss: Tensor = model(batch.inputs_BS, batch.targets_BT, batch.weights_B, c.z_loss, "loss" in c.reference_ops)
        return loss

    def measure(model: MixtureWeights, split: HeldOut) -> list[dict[str, float]]:
        weights, prompts = model.weights, range(c.components)
        outputs = mixture_answers(prompted, prompts, weights, split, device=device, precision=c.precision)
        return [split.metrics(outputs.texts)]

    selection = None
    if c.select == "best":
        split = validation_rows(c.task, vocabulary, sentinel, c)
        selection = Selection([""], partial(measure, split=split), None, every=c.validate_every, patience=c.patience)

    made_on = {
        "base_model": source.name,
        "base_model_digest": source.digest,
        "tokenizer_digest": vocabulary.digest,
        "sentinel": sentinel,
        "width": t5.shape.d_model,
    }

    def publish(step: int, trained: Trained) -> None:
        best, learnt = trained.best(), trained.weights()
        tuned = learnt["model.bank.rows_RD"].split(c.prompt_length)
        infos = [PromptInfo.tuned(c, **made_on | {"seed": c.seed + k, "step": best.step}) for k in range(c.components)]
        prompts = [Prompt(rows_PD, info) for rows_PD, info in zip(tuned, infos, strict=True)]
        weights = learnt["logits_K"].double().softmax(dim=0).tolist()
        numbers = c.components * (c.prompt_length * t5.shape.d_model + 1)
        stage.cells[0].facts.update(parameters=t5.shape.parameters, trained=numbers, best_step=best.step)
        stage.publish("mixture", Mixture(prompts, weights, best.step, best.scores).save, step=step)

    train_stage(
        stage,
        model,
        batches,
        publish=publish,
        loss_fn=loss_fn,
        optimizer=optimizer,
        selection=selection,
        unit="examples",
    )


if __name__ == "__main__":
    main(prompt_mixture, PromptMixtureConfig)
