"""DeepSpeed ZeRO: moments (1), gradients (2) and weights (3) cut into flat partitions, one for each process.

Accelerate makes DeepSpeed's engine from the launch configuration. Its own checkpoints are pickles and belong to one
number of processes; here its partitions are read and written as shards, like those of any other engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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


class Zero(Engine):
    """The optimizer sees flat fp32 partitions, so it must be one that works element by element (AdamW)."""

    def __init__(
        self, scope: ForwardScope, make_optimizer: MakeOptimizer, group: ProcessGroup, accelerator: Accelerator
    ) -> None:
        self.group = group
        self.device = accelerator.device
        self.model = scope.model
        names = [name for name, _ in scope.named_parameters()]
        trained = trained_parameters(self.model)
        plugin = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants one; nothing follows from it
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            # Offloaded, DeepSpeed would put its own Adam in the place of ours, whose weight decay is another.
            "zero_force_ds_cpu_optimizer": False,
        }
        # DeepSpeed reserves the bucket in which it sums gradients whole, 2 GB by default, also for a prompt's few.
        bucket = min(ZERO_BUCKET, sum(p.numel() for p in trained.values()))
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = bucket
        self.engine, _ = accelerator.prepare(scope, make_optimizer(list(trained.values())))
        self.zero = self.engine.optimizer
        self.stage = self.engine.zero_optimization_stage()
        self.trained = {name: trained[name] for name in trained_parameters(self.model)}
        check_untied(names, scope)
        if self.stage not in (1, 2, 3) or self.engine.dp_world_size != group.world:
            raise RuntimeError(
                f"DeepSpeed was asked to shard over {group.world} processes and runs ZeRO-{self.stage} over"
                f" {self.engine.dp_world_size}"
            )
        if self.stage == 3:
            self._gather_around_blocks(scope)
        self.optimizer = self.zero

    def _gather_around_blocks(self, scope: ForwardScope) -> None:
        """What lies outside of the blocks is gathered for the whole of a forward pass: the embedding is used as output
        matrix too, and a bank of prompts is read by the encoder's own forward. Cross-attention reads the weights of its
        projections itself where the queries are few."""
        import deepspeed

        for name, p in scope.named_parameters():
            if ".block." not in name:
                deepspeed.zero.register_external_parameter(scope, p)
        for name, module in scope.named_modules():
            if name.endswith(".EncDecAttention"):
                for projection in (module.k, module.v):
                    deepspeed.zero.register_external_parameter(module, projection.weight)

    def call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return self.engine(do, *arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed divides the sum of the gradients by the number of processes.
        self.engine.backward(loss * self.group.world, scale_wrt_gas=False)

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        """DeepSpeed itself leaves out a step whose norm is not finite, and says that it was infinite."""
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def weights(self) -> list[TensorShard]:
        return [TensorShard(MODEL + name, shape, start, flat_N) for name, shape, start, flat_N, _ in self._partitions()]

    def moments(self) -> list[TensorShard]:
        found = []
        for name, shape, start, flat_N, (flat, offset) in self._partitions():
            for key, value in self.zero.optimizer.state.get(flat, {}).items():
                full = f"{OPTIMIZER}{name}/{key}"
                if value.dim() == 0:
                    if start == 0:  # one of the processes has the beginning
                        found.append(TensorShard(full, (), 0, value.reshape(1)))
                else:
                    found.append(TensorShard(full, shape, start, value.narrow(0, offset, flat_N.numel())))
        return found

    def _partitions(self) -> Iterator[tuple[str, tuple[int, ...], int, Tensor, tuple[Tensor, int]]]:
        """Of each parameter that this process has a part of: name, whole shape, where the part starts, the part itself
        (fp32, a view), and the flat tensor that the optimizer knows with the place of the part in it."""
        parameters: dict[str, Any] = {**self.trained}  # DeepSpeed has hung its own records on them
        for name, p in parameters.items():
            if self.stage == 3:
                group, offset, padded = self.zero.grad_position[self.zero.get_param_id(p)]
                flat = self.zero.fp32_partitioned_groups_flat[group]
                start = self.group.rank * padded  # each parameter is padded to a multiple of the processes
                numel = max(0, min(padded, math.prod(p.ds_shape) - start))
                if numel:
                    yield name, tuple(p.ds_shape), start, flat.narrow(0, offset, numel), (flat, offset)
            elif (mapping := p._hp_mapping) is not None:
                flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
                offset = mapping.hp_fragment_address.start
                yield (
                    name,
                    tuple(p.shape),
                    mapping.lp_fragment_address.start,
                    flat.narrow(0, offset, mapping.hp_fragment_address.numel),
                    (flat, offset),
                )

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        self.zero.optimizer.state.clear()
        for name, _, start, flat_N, (flat, offset) in self._partitions():
            flat_N.copy_(saved.read(MODEL + name, start, start + flat_N.numel()))
            for key in states_saved(saved, name):
                full = f"{OPTIMIZER}{name}/{key}"
                state = self.zero.optimizer.state[flat]
                if saved.shape(full) == ():
                    state[key] = saved.tensor(full)
                    continue
                state.setdefault(key, torch.zeros_like(flat))
                state[key].narrow(0, offset, flat_N.numel()).copy_(saved.read(full, start, start + flat_N.numel()))
        self._weights_from_partitions(saved)

    def _weights_from_partitions(self, saved: SavedTensors) -> None:
        """The weights that a forward pass reads follow the fp32 partitions."""
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
