"""FSDP2 engine: each weight, gradient and moment sharded over the processes along its first dimension.

Built on torch's `fully_shard`, so it works the same on GPUs and CPU processes (accelerate's FSDP silently does nothing
on a CPU). Each block of the encoder and the decoder is gathered while it computes; embedding and output matrix, which
are outside of the blocks, are gathered for the whole forward and backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.limits import REPLICATED_ELEMENTS
from t5_pipeline.modeling.load import check_untied
from t5_pipeline.training.adafactor import Adafactor
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import Engine, ForwardScope, MakeOptimizer, trained_parameters


class FSDP2(Engine):
    """Shards weights, gradients and moments; prompts, small beside the frozen model, are replicated."""

    def __init__(
        self,
        scope: ForwardScope,
        make_optimizer: MakeOptimizer,
        group: ProcessGroup,
        device: torch.device,
        *,
        reshard: bool,
        offload: bool,
    ) -> None:
        """
        Args:
            reshard: free a block's weights after its forward pass and gather them again for its backward pass.
            offload: keep a process's shards in host memory.
        """
        self.group = group
        self.device = device
        self.model = scope.model
        self.precision = scope.precision
        self.scope = scope
        names = [name for name, _ in scope.named_parameters()]
        frozen = any(not p.requires_grad for p in scope.parameters())
        trained = list(trained_parameters(self.model).values())
        replicates = frozen and sum(p.numel() for p in trained) <= REPLICATED_ELEMENTS
        if replicates:
            for p in trained:
                p.data = p.data.to(device)
        self._shard_modules(set(trained) if replicates else set(), reshard, offload)

        check_untied(names, scope)
        self.trained = trained_parameters(self.model)
        self.whole = {name for name, p in self.trained.items() if not isinstance(p, DTensor)}
        sharded = [p for p in scope.parameters() if isinstance(p, DTensor)]
        if not sharded or any(p.device_mesh.size() != group.world for p in sharded):
            raise RuntimeError(f"FSDP2 did not shard the model over {group.world} processes")
        self.optimizer = make_optimizer(list(self.trained.values()))
        if frozen and not replicates and isinstance(self.optimizer, Adafactor):
            raise InputError(
                f"optimizer: adafactor needs whole prompts, of which fsdp2 replicates at most {REPLICATED_ELEMENTS:,}"
                " numbers; set `optimizer: adamw`, train fewer prompts at a time, or launch with DDP"
            )

    def _shard_modules(self, whole: set[nn.Parameter], reshard: bool, offload: bool) -> None:
        """Shard each block, then what is outside of the blocks, except the parameters that stay whole."""
        mesh = init_device_mesh(self.device.type, (self.group.world,))
        options: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
        options["offload_policy"] = CPUOffloadPolicy() if offload else OffloadPolicy()
        for block in blocks_of(self.model):
            fully_shard(block, reshard_after_forward=reshard, **options)
        fully_shard(self.scope, **options)
        for module in self.scope.modules():
            if isinstance(module, FSDPModule):
                # A plain sum: the losses are already normalized over the global batch, and gloo has no scaled sum.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        whole = [self.trained[name] for name in sorted(self.whole)]
        for p in whole:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.group.sum([p.grad for p in whole if p.grad is not None])
        squares = [_local(p.grad).square().sum() for p in self.trained.values() if isinstance(p.grad, DTensor)]
        square = torch.stack(squares).sum().to(self.device) if squares else torch.zeros((), device=self.device)
        self.group.sum([square])
        if whole:
            square = square + torch.stack([p.grad.square().sum() for p in whole if p.grad is not None]).sum()
        norm = square.sqrt()
        if not skip_nonfinite or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        # After a forward pass without backward the outermost weights are still gathered, and would be stale.
        for module in self.scope.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        super().load(saved)

    def _shard(self, name: str, value: Tensor) -> TensorShard:
        if not isinstance(value, DTensor):
            return super()._shard(name, value)
        # Sharded along the first dimension like torch.chunk: equal sizes, smaller or empty on the last ranks.
        local, rows = value.to_local(), -(-value.shape[0] // self.group.world)
        start = min(self.group.rank * rows, value.shape[0]) * math.prod(value.shape[1:])
        return TensorShard(name, tuple(value.shape), start, local.reshape(-1))

    def _read(self, saved: SavedTensors, name: str, to: Tensor) -> None:
        if not isinstance(to, DTensor):
            return super()._read(saved, name, to)
        shard = self._shard(name, to.detach())
        shard.values_N.copy_(saved.read(name, shard.start, shard.stop))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a T5, ours or transformers' (both name their lists `block`)."""
    return [block for name, blocks in model.named_modules() if name.endswith("block") for block in blocks.children()]


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
