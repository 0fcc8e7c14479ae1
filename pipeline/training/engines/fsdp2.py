"""FSDP2: every process has a slice of each weight, gradient and moment, along its first dimension.

Built on torch's own `fully_shard`, so that it is the same on GPUs and on CPU processes (accelerate's FSDP does nothing
on a CPU, in silence). Each block of the encoder and the decoder is gathered while it computes; what lies outside of the
blocks, embedding and output matrix, is gathered for the whole of a forward and backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pipeline.training.engines.base import (
    MODEL,
    OPTIMIZER,
    Engine,
    Inside,
    MakeOptimizer,
    check_untied,
    states_saved,
    trained_parameters,
)
from pipeline.training.pieces import Piece, SavedTensors
from pipeline.training.ranks import Ranks

# Parameters of at most so many elements stay whole on every process where they train beside a frozen model: a bank of
# prompts, whose optimizer works prompt by prompt.
WHOLE_BESIDE_FROZEN = 1 << 26


class FSDP2(Engine):
    """Weights, gradients and moments in slices; prompts, small beside the frozen model, whole on every process."""

    def __init__(
        self,
        inside: Inside,
        make_optimizer: MakeOptimizer,
        ranks: Ranks,
        device: torch.device,
        *,
        reshard: bool = True,
        offload: bool = False,
    ) -> None:
        """reshard: a block's weights are let go after its forward pass, and gathered again for its backward pass.

        offload: what a process holds lies in the memory of the host.
        """
        self.ranks = ranks
        self.device = device
        self.model = inside.model
        names = [name for name, _ in inside.named_parameters()]
        frozen = any(not p.requires_grad for p in inside.parameters())
        trained = trained_parameters(self.model)
        beside = sum(p.numel() for p in trained.values()) <= WHOLE_BESIDE_FROZEN
        whole = set(trained.values()) if frozen and beside else set()
        if whole:
            for module in self.model.modules():
                for p in module.parameters(recurse=False):
                    if p in whole:
                        p.data = p.data.to(device)

        mesh = init_device_mesh(device.type, (ranks.world,))
        options: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
        options["offload_policy"] = CPUOffloadPolicy() if offload else OffloadPolicy()
        for block in blocks_of(self.model):
            fully_shard(block, reshard_after_forward=reshard, **options)
        fully_shard(inside, **options)
        for module in inside.modules():
            if isinstance(module, FSDPModule):
                # A plain sum: the losses are normalised over the global batch already, and gloo knows no scaled one.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        for module in inside.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self.inside = inside

        check_untied(names, inside)
        self.trained = trained_parameters(self.model)
        self.whole = {name for name, p in self.trained.items() if not isinstance(p, DTensor)}
        sharded = [p for p in inside.parameters() if isinstance(p, DTensor)]
        if not sharded or any(p.device_mesh.size() != ranks.world for p in sharded):
            raise RuntimeError(f"FSDP2 was asked to shard over {ranks.world} processes and did not")
        self.optimizer = make_optimizer(list(self.trained.values()))

    def call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return self.inside(do, *arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        whole = [self.trained[name] for name in sorted(self.whole)]
        for p in whole:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.ranks.sum([p.grad for p in whole if p.grad is not None])
        squares = [_local(p.grad).square().sum() for p in self.trained.values() if isinstance(p.grad, DTensor)]
        square = torch.stack(squares).sum().to(self.device) if squares else torch.zeros((), device=self.device)
        self.ranks.sum([square])
        if whole:
            square = square + torch.stack([p.grad.square().sum() for p in whole if p.grad is not None]).sum()
        norm = square.sqrt()
        if not skip_nonfinite or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> list[Piece]:
        return [self._piece(MODEL + name, p, p.detach()) for name, p in self.trained.items()]

    def moments(self) -> list[Piece]:
        return [
            self._piece(f"{OPTIMIZER}{name}/{key}", p, value)
            for name, p in self.trained.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        ]

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        self.optimizer.state.clear()
        # After a forward pass alone the outermost weights are still gathered, and would be used as they were.
        for module in self.inside.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for piece in self.weights():
            piece.values_N.copy_(saved.read(piece.name, piece.start, piece.stop))
        for name, p in self.trained.items():
            for key in states_saved(saved, name):
                full = f"{OPTIMIZER}{name}/{key}"
                if isinstance(p, DTensor) and saved.shape(full) == tuple(p.shape):
                    value: Tensor = torch.zeros_like(p)
                    piece = self._piece(full, p, value)
                    piece.values_N.copy_(saved.read(full, piece.start, piece.stop))
                else:
                    value = saved.tensor(full)
                    value = value if key == "step" else value.to(_local(p).device)
                self.optimizer.state[p][key] = value

    def _piece(self, name: str, parameter: nn.Parameter, value: Tensor) -> Piece:
        if not isinstance(value, DTensor):
            return Piece.whole(name, value)
        # Along the first dimension, as torch.chunk cuts: the earlier processes have one size, the last ones less.
        local, rows = value.to_local(), -(-value.shape[0] // self.ranks.world)
        start = min(self.ranks.rank * rows, value.shape[0]) * math.prod(value.shape[1:])
        return Piece(name, tuple(value.shape), start, local.reshape(-1))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a T5, ours or transformers': the members of the lists that both call `block`."""
    return [block for name, blocks in model.named_modules() if name.endswith("block") for block in blocks.children()]


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
