"""Engines: the placement of weights, gradients and moments on the processes. One module each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.stage import Precision
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import Engine, ForwardScope, MakeOptimizer
from t5_pipeline.training.distributed.replicated import Replicated

__all__ = ["Engine", "MakeOptimizer", "make_engine"]

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_engine(
    launch: LaunchContext,
    accelerator: Accelerator,
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    precision: Precision = "fp32",
    *,
    cuda_graphs: bool = False,
) -> Engine:
    """Place a model on the processes with the engine of the launch configuration.

    Args:
        make_optimizer: called with the trained parameters, once they are on their device and sharded.
        precision: of matrix products; weights stay as they are.
        cuda_graphs: replay microbatches as CUDA graphs, if the engine can.
    """
    name, device = launch.engine, accelerator.device
    group = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    scope = ForwardScope(model, precision, device.type)
    if name == "fsdp2":
        from t5_pipeline.training.distributed.fsdp2 import FSDP2

        return FSDP2(scope, make_optimizer, group, device, reshard=launch.reshard, offload=launch.offload)
    if name.startswith("zero"):
        from t5_pipeline.training.distributed.zero import Zero

        return Zero(scope, make_optimizer, group, accelerator)
    return Replicated(scope, make_optimizer, group, device, cuda_graphs=cuda_graphs)
