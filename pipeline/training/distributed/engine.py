"""Engine: the interface between the training loop and a way to distribute the model.

    loss of a microbatch → backward, once for each microbatch → step: gradients summed over all processes, optimizer

Losses and gradients are summed, never averaged: row weights are normalized over the global batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t5_pipeline.config.stage import Precision
from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.collectives import ProcessGroup

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
MODEL, OPTIMIZER = "model/", "optimizer/"


class ForwardScope(nn.Module):
    """Runs any function of the model as one forward pass: the module that sharding engines wrap.

    They gather weights when a forward pass begins and free them when it ends, so everything that uses weights (losses,
    validation, decoding) must run inside one.
    """

    def __init__(self, model: nn.Module, precision: Precision, device_type: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.device_type = device_type

    def forward(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments), with matrix products in `precision`; weights stay as they are.

        While training, autocast does not cache its copies of weights: each is used once, and the cache would keep all
        of them until the end of the forward pass.
        """
        bf16, cached = self.precision == "bf16", not torch.is_grad_enabled()
        with torch.autocast(self.device_type, torch.bfloat16, enabled=bf16, cache_enabled=cached):
            return do(self.model, *arguments)


class Engine(ABC):
    """A model and its optimizer, sharded over the processes or replicated.

    Attributes:
        scope: the `ForwardScope` around the model, perhaps wrapped.
        precision: of matrix products.
        trained: the trained parameters by name; frozen ones have neither gradients nor moments.
        lockstep: the engine runs collectives in every microbatch, so all ranks need the same number of them.
    """

    lockstep = True

    group: ProcessGroup
    device: torch.device
    model: nn.Module
    precision: Precision
    scope: nn.Module
    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]

    def call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments) as one forward pass. Collective if the model is sharded."""
        return self.scope(do, *arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of a microbatch's loss; `last`: of the last microbatch of the step."""
        loss.backward()

    def accumulate(self, loss_fn: Callable[..., Tensor], batch: Any, *, last: bool) -> Tensor:
        """Add the gradient of loss_fn(model, microbatch); returns its losses [C], which the next call may overwrite."""
        losses_C: Tensor = self.call(loss_fn, batch)
        self.backward(losses_C.sum(), last=last)
        return losses_C.detach()

    def release_graphs(self) -> bool:
        """Run without CUDA graphs from now on, with clear gradients and the memory of the graphs; False without any."""
        return False

    @abstractmethod
    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        """Sum the gradients over the processes, apply the optimizer, and clear the gradients.

        Args:
            skip_nonfinite: leave the weights unchanged if the norm is not finite (costs a device synchronization).

        Returns:
            The norm of the summed gradient, 0-d.
        """

    def weights(self) -> list[TensorShard]:
        """This process's shards of the trained parameters, `model/…`."""
        return [self._shard(MODEL + name, p.detach()) for name, p in self.trained.items()]

    def moments(self) -> list[TensorShard]:
        """This process's shards of the optimizer's state, `optimizer/<parameter>/<key>`."""
        return [
            self._shard(f"{OPTIMIZER}{name}/{key}", value)
            for name, p in self.trained.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        ]

    @torch.no_grad()
    def load(self, saved: SavedTensors) -> None:
        """Load weights and moments saved by any engine on any number of processes."""
        self.optimizer.state.clear()
        for name, p in self.trained.items():
            self._read(saved, MODEL + name, p)
            for key in states_saved(saved, name):
                self.optimizer.state[p][key] = self._moment(saved, f"{OPTIMIZER}{name}/{key}", p)

    def _moment(self, saved: SavedTensors, name: str, p: nn.Parameter) -> Tensor:
        if name.endswith("/step"):
            # Stays on the CPU, where the optimizers create it: reading a step count must not wait for a device.
            return saved.tensor(name)
        if saved.shape(name) != tuple(p.shape):
            return saved.tensor(name).to(p.device)
        value = torch.empty_like(p)
        self._read(saved, name, value)
        return value

    def _shard(self, name: str, value: Tensor) -> TensorShard:
        """This process's shard of a parameter or a moment."""
        return TensorShard.whole(name, value)

    def _read(self, saved: SavedTensors, name: str, to: Tensor) -> None:
        """Copy this process's part of a saved tensor to a parameter or a moment."""
        to.copy_(saved.tensor(name))

    def set_training(self, training: bool) -> None:
        self.model.train(training)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def states_saved(saved: SavedTensors, name: str) -> Iterator[str]:
    """Keys of the optimizer's state of one parameter."""
    prefix = f"{OPTIMIZER}{name}/"
    return (found.removeprefix(prefix) for found in saved.names(prefix))
