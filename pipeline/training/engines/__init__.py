"""How weights, gradients and moments lie among the processes, and how they are brought together: one module each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from torch import nn

from pipeline.devices import engine_asked_for
from pipeline.training.engines.base import Engine, Inside, MakeOptimizer
from pipeline.training.engines.whole import Whole
from pipeline.training.ranks import Ranks

__all__ = ["Engine", "MakeOptimizer", "make_engine"]

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_engine(
    accelerator: Accelerator,
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Engine:
    """Spread a model over the processes as the launch configuration says.

    Args:
        make_optimizer: called with the parameters that train, once they are on their device and in their parts.
    """
    name, device = engine_asked_for(accelerator.num_processes), accelerator.device
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    inside = Inside(model, precision, device.type)
    if name == "fsdp2":
        from pipeline.training.engines.fsdp2 import FSDP2

        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true"
        offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false") == "true"
        return FSDP2(inside, make_optimizer, ranks, device, reshard=reshard, offload=offload)
    if name.startswith("zero"):
        from pipeline.training.engines.zero import Zero

        return Zero(inside, make_optimizer, ranks, accelerator)
    return Whole(inside, make_optimizer, ranks, device)
