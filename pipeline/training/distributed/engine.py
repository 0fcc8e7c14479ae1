"""What the training loop asks of an engine.

    loss of a microbatch → backward, once for each microbatch → step: gradients summed over all processes, optimizer

No loss and no gradient is divided by anything: the weights of a batch's rows are normalised over the global batch, so
what the processes have adds up to the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t5_pipeline.training.checkpoints.tensor_shards import SavedTensors, TensorShard
from t5_pipeline.training.distributed.collectives import ProcessGroup

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
MODEL, OPTIMIZER = "model/", "optimizer/"


class ForwardScope(nn.Module):
    """A model, and a way to do anything with it within one forward pass: the module that sharding engines wrap.

    They gather weights when a forward pass begins and let them go when it ends, so whatever uses weights (losses,
    validation, decoding) has to happen inside of one.
    """

    def __init__(self, model: nn.Module, precision: Literal["fp32", "bf16"], device_type: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.device_type = device_type

    def forward(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments), with matrix products in the precision; weights stay as they are.

        While training, autocast keeps no copies of weights of its own: each is used once, and they would outlast their
        blocks until the end of the forward pass.
        """
        bf16, cached = self.precision == "bf16", not torch.is_grad_enabled()
        with torch.autocast(self.device_type, torch.bfloat16, enabled=bf16, cache_enabled=cached):
            return do(self.model, *arguments)


class Engine(ABC):
    """A model and its optimizer, spread over the processes or not.

    Attributes:
        trained: the parameters that train, by their names in the model. Frozen ones have neither gradients nor moments.
        lockstep: True where the processes exchange something in each microbatch, and so need as many.
    """

    lockstep = True

    group: ProcessGroup
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]

    @abstractmethod
    def call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """do(model, *arguments) within a forward pass. Sharded, every process must call it, as often as the others."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of a microbatch's loss; `last` says that the step has no other."""

    @abstractmethod
    def step(self, *, skip_nonfinite: bool = False) -> Tensor:
        """Sums the gradients over the processes, applies the optimizer, and clears the gradients.

        skip_nonfinite: leave everything as it is where the norm is not finite; that costs a wait for the device.
        Returns the norm of the summed gradient, 0-d.
        """

    @abstractmethod
    def weights(self) -> list[TensorShard]:
        """This process's shards of everything that trains, `model/…`, as views to read or write."""

    @abstractmethod
    def moments(self) -> list[TensorShard]:
        """This process's shards of the optimizer's state, `optimizer/<parameter>/<key>`, as views."""

    @abstractmethod
    def load(self, saved: SavedTensors) -> None:
        """Takes up weights and moments that some engine, of any number of processes, has saved."""

    def set_training(self, training: bool) -> None:
        self.model.train(training)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def states_saved(saved: SavedTensors, name: str) -> Iterator[str]:
    """Keys of the optimizer's state of one parameter."""
    prefix = f"{OPTIMIZER}{name}/"
    return (found.removeprefix(prefix) for found in saved.names(prefix))
