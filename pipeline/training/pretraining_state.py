"""The optimizer state with which a T5 was pretrained, from its T5X checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.context import Stage
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.modeling.t5x import t5x_moments
from t5_pipeline.modeling.t5x_layout import find_t5x
from t5_pipeline.training.adafactor import Adafactor
from t5_pipeline.training.distributed import MakeOptimizer
from t5_pipeline.training.distributed.engine import trained_parameters

log = logging.getLogger("t5-pipeline")


def pretraining_optimizer(stage: Stage[Any], model: T5) -> MakeOptimizer | None:
    """Makes Adafactor with the second moments and the step of a T5X checkpoint; None for a new optimizer.

    Args:
        stage: its `optimizer_state` decides; its input "model" is the checkpoint.

    Raises:
        InputError: if the state is requested and the checkpoint contains none.
    """
    c = stage.config
    if c.optimizer_state == "fresh":
        return None
    directory = stage.input("model").path
    checkpoint = find_t5x(directory)
    if checkpoint is None:
        raise InputError(
            f"{directory}: contains no state of Adafactor, only T5X checkpoints do; set `optimizer_state: fresh` to"
            " start without"
        )
    step, moments = t5x_moments(checkpoint, model.shape)
    names = list(trained_parameters(model))
    if stage.is_main:
        log.info("%s: Adafactor continues from step %s", checkpoint, f"{step:,}")

    def make(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = Adafactor(parameters, weight_decay=c.weight_decay)
        optimizer.restore([moments[name] for name in names], step)
        return optimizer

    return make
