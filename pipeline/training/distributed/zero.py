"""DeepSpeed ZeRO engine: moments (1), gradients (2) and weights (3) in flat partitions, one for each process.

Accelerate makes DeepSpeed's engine from the launch configuration. DeepSpeed's own checkpoints are pickles and tied to
one world size; here its partitions are read and written as tensor shards, as in any other engine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t5_pipeline.modeling.limits import ZERO_BUCKET
from t5_pipeline.modeling.load import check_untied
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import (
    MODEL,
    OPTIMIZER,
    Engine,
    ForwardScope,
    MakeOptimizer,
    states_saved,
    trained_parameters,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("t5-pipeline")


@dataclass(frozen=True)
class _Partition:
    """The elements `start` … of a flattened parameter that this process optimizes.

    Attributes:
        name, shape: those of the whole parameter.
        numel: number of elements.
        flat: fp32 tensor of the optimizer with the elements of many parameters; their moments are as long.
        offset: place of the first element in `flat`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    flat: Tensor
    offset: int

    @property
    def stop(self) -> int:
        return self.start + self.numel

    def view(self, flat: Tensor) -> Tensor:
        """Its elements [N] in `flat`, or in a moment of it."""
        return flat.narrow(0, self.offset, self.numel)


class Zero(Engine):
    """The optimizer sees flat fp32 partitions, so it must be elementwise (AdamW)."""

    def __init__(
        self, scope: ForwardScope, make_optimizer: MakeOptimizer, group: ProcessGroup, accelerator: Accelerator
    ) -> None:
        self.group = group
        self.device = accelerator.device
        self.model = scope.model
        self.precision = scope.precision
        names = [name for name, _ in scope.named_parameters()]
        trained = trained_parameters(self.model)
        plugin = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires a number; it has no effect
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            # When offloading, DeepSpeed would replace our AdamW by its own Adam, with another weight decay.
            "zero_force_ds_cpu_optimizer": False,
        }
        # DeepSpeed allocates its whole gradient bucket (2 GB by default), even for the few gradients of a prompt.
        bucket = min(ZERO_BUCKET, sum(p.numel() for p in trained.values()))
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = bucket
        self.engine, _ = accelerator.prepare(scope, make_optimizer(list(trained.values())))
        self.scope = self.engine
        self.zero = self.engine.optimizer
        self.stage = self.engine.zero_optimization_stage()
        self.trained = {name: trained[name] for name in trained_parameters(self.model)}
        check_untied(names, scope)
        if self.stage not in (1, 2, 3) or self.engine.dp_world_size != group.world:
            raise RuntimeError(
                f"expected ZeRO over {group.world} processes, but DeepSpeed runs ZeRO-{self.stage} over"
                f" {self.engine.dp_world_size}"
            )
        if self.stage == 3:
            self._gather_around_blocks(scope)
            _run_eagerly(self.model)
        self.optimizer = self.zero

    def _gather_around_blocks(self, scope: ForwardScope) -> None:
        """Gather the parameters outside of the blocks for the whole forward pass.

        The embedding is also used as output matrix, and the encoder's forward reads the bank of prompts. For few
        queries, cross-attention reads the weights of its projections directly.
        """
        import deepspeed

        for name, p in scope.named_parameters():
            if ".block." not in name:
                deepspeed.zero.register_external_parameter(scope, p)
        for name, module in scope.named_modules():
            if name.endswith(".EncDecAttention"):
                for projection in (module.k, module.v):
                    deepspeed.zero.register_external_parameter(module, projection.weight)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed divides the sum of the gradients by the number of processes.
        self.engine.backward(loss * self.group.world, scale_wrt_gas=False)

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        """DeepSpeed itself skips a step whose norm is not finite, and reports it as infinite."""
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def weights(self) -> list[TensorShard]:
        return [TensorShard(MODEL + p.name, p.shape, p.start, p.view(p.flat)) for p in self._partitions()]

    def moments(self) -> list[TensorShard]:
        found = []
        for p in self._partitions():
            for key, value in self.zero.optimizer.state.get(p.flat, {}).items():
                full = f"{OPTIMIZER}{p.name}/{key}"
                if value.dim() == 0:
                    if p.start == 0:  # saved by the process with the first element
                        found.append(TensorShard(full, (), 0, value.reshape(1)))
                else:
                    found.append(TensorShard(full, p.shape, p.start, p.view(value)))
        return found

    def _partitions(self) -> Iterator[_Partition]:
        """The partitions on this process, one for each parameter that has elements here."""
        parameters: dict[str, Any] = {**self.trained}  # typed Any: DeepSpeed adds attributes of its own
        for name, p in parameters.items():
            if self.stage == 3:
                group, offset, padded = self.zero.grad_position[self.zero.get_param_id(p)]
                flat = self.zero.fp32_partitioned_groups_flat[group]
                start = self.group.rank * padded  # each parameter is padded to a multiple of the world size
                numel = max(0, min(padded, math.prod(p.ds_shape) - start))
                if numel:
                    yield _Partition(name, tuple(p.ds_shape), start, numel, flat, offset)
            elif (mapping := p._hp_mapping) is not None:
                flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
                here, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
                yield _Partition(name, tuple(p.shape), start, here.numel, flat, here.start)

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        self.zero.optimizer.state.clear()
        for p in self._partitions():
            p.view(p.flat).copy_(saved.read(MODEL + p.name, p.start, p.stop))
            for key in states_saved(saved, p.name):
                full = f"{OPTIMIZER}{p.name}/{key}"
                state = self.zero.optimizer.state[p.flat]
                if saved.shape(full) == ():
                    state[key] = saved.tensor(full)
                    continue
                state.setdefault(key, torch.zeros_like(p.flat))
                p.view(state[key]).copy_(saved.read(full, p.start, p.stop))
        self._weights_from_partitions(saved)

    def _weights_from_partitions(self, saved: SavedTensors) -> None:
        """Copy the loaded values to the weights that a forward pass reads."""
        parameters: dict[str, Any] = {**self.trained}
        for name, p in parameters.items():
            if self.stage < 3:
                p.data.copy_(saved.tensor(MODEL + name).to(p.dtype))
                continue
            start = self.group.rank * p.ds_tensor.ds_numel
            stop = min(start + p.ds_tensor.ds_numel, math.prod(p.ds_shape))
            if start < stop:
                p.ds_tensor.narrow(0, 0, stop - start).copy_(saved.read(MODEL + name, start, stop))
        if self.stage == 3 and self.zero.persistent_parameters:
            # Small weights stay gathered between steps.
            persistent: list[Any] = self.zero.persistent_parameters
            for p in persistent:
                p.partition()
            persistent[0].all_gather(persistent)


def _run_eagerly(model: nn.Module) -> None:
    """Do not compile blocks: ZeRO-3 gathers weights in hooks of the modules inside them."""
    compiled: list[Any] = [module for module in model.modules() if getattr(module, "compiled", False)]
    for block in compiled:
        block.compiled = False
    if compiled:
        log.info("compile: has no effect under ZeRO-3")
