"""Language-model training: span corruption and LM adaptation, with their held-out loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t5_pipeline.config.adaptation import LanguageModelConfig
from t5_pipeline.execution.context import Stage
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import batch_losses, model_loss, target_loss
from t5_pipeline.training.microbatches import ArrayBatch, BatchSource, TensorBatch
from t5_pipeline.training.pretraining_state import pretraining_optimizer
from t5_pipeline.training.probing import Probing
from t5_pipeline.training.result import TrainingResult
from t5_pipeline.training.stage_training import train_stage
from t5_pipeline.training.state import TrainState
from t5_pipeline.training.trainer import Trainer, Validation


def train_language_model(
    stage: Stage[Any],
    model: T5,
    batches: BatchSource,
    validation: BatchSource | None,
    publish: Callable[[int, TrainingResult], None],
    bytes_V: NDArray[np.int64] | None = None,
    probing: Probing | None = None,
) -> None:
    """Train every weight of a T5 on every target token.

    Args:
        validation: held-out batches; the loss is measured on the first `validation_batches` of them.
        publish: called with (step, result) for every step to be published.
        bytes_V: bytes of text of every id, if the targets are text; held-out bits per byte are then measured too.
        probing: a score of the weights every few steps, which may stop the training.
    """
    c: LanguageModelConfig = stage.config

    def loss_fn(model: T5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.inputs_BS, batch.targets_BT, batch.segments)
        return batch_losses(target_loss(model, hidden_BTD, batch.targets_BT, c), batch.weights_B, batch.prompt_B)

    def measure(state: TrainState) -> dict[str, float]:
        assert validation is not None
        held_out = [validation.at(index) for index in range(c.validation_batches)]
        loss = held_out_loss(state, held_out, c.microbatch_size, "loss" in c.reference_ops)
        if bytes_V is None:
            return {"loss": loss}
        return {"loss": loss, "bits_per_byte": bits_per_byte(loss, held_out, bytes_V, model.special.pad)}

    trainer = Trainer(
        c,
        stage.launch,
        stage.accelerator,
        model,
        batches,
        loss_fn,
        optimizer=pretraining_optimizer(stage, model),
        validation=None if validation is None else Validation(measure, c.validate_every),
        probing=probing,
    )
    train_stage(stage, trainer, publish)


def bits_per_byte(loss: float, batches: Sequence[ArrayBatch], bytes_V: NDArray[np.int64], pad: int) -> float:
    """A mean loss per target token in bits per byte of the targets' text, which does not depend on the vocabulary.

    Args:
        loss: in nats.
        bytes_V: bytes of text of every id.
        pad: id of padding, which is not a target.
    """
    padded = np.concatenate([batch.targets_BT[batch.weights_B > 0].ravel() for batch in batches])
    ids = padded[padded != pad]
    return loss / math.log(2) * len(ids) / max(int(bytes_V[ids].sum()), 1)


def held_out_loss(state: TrainState, batches: Sequence[ArrayBatch], microbatch_size: int, reference: bool) -> float:
    """Mean cross entropy over all target tokens of these batches, in nats, without dropout and z-loss."""

    def sums_of(model: T5, batch: TensorBatch) -> Tensor:
        hidden_BTD = model.predict(batch.inputs_BS, batch.targets_BT, batch.segments)
        loss_BT = model_loss(model, hidden_BTD, batch.targets_BT, 0.0, "fp32", reference)
        counted_BT = (batch.targets_BT != model.special.pad) & (batch.weights_B > 0)[:, None]
        return torch.stack([loss_BT[counted_BT].sum(dtype=torch.float64), counted_BT.sum().double()])

    sums = torch.zeros(2, dtype=torch.float64, device=state.device)
    for batch in batches:
        for micro in state.share(batch, microbatch_size):
            sums += state.evaluate(sums_of, micro.to(state.device))
    state.group.sum([sums])
    return float(sums[0] / sums[1])
