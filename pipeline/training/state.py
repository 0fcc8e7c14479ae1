"""What a step changes, and what a checkpoint therefore holds.

Everything in which one engine differs from another is here (how gradients are summed, where weights and moments lie),
so the loop does not know whether weights are whole or sharded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.training.meter import Meter
from pipeline.training.ranks import Ranks
from pipeline.training.selection import Selection

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainState:
    """A model, its optimizer, and how many steps they have behind them.

    Every rank holds the whole model and the whole optimizer; ranks sum their gradients themselves, so the model is not
    to be wrapped in DDP. Only parameters that train are saved: a frozen T5 is not part of its prompts' checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device: torch.device = accelerator.device
        self.precision = precision
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes)
        self.step = 0
        self.meter = Meter(self.ranks)
        self.selection: Selection | None = None
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._elapsed_before = 0.0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before the checkpoint that this process started from included."""
        return self._elapsed_before + time.monotonic() - self._started

    def autocast(self) -> torch.autocast:
        """The precision of matrix products; weights, gradients and moments stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def sum_gradients(self) -> Tensor:
        """Sums the gradients over the ranks; returns the norm of the sum, 0-d, on the device."""
        gradients = []
        for p in self.trained.values():
            if p.grad is None and self.ranks.world > 1:
                p.grad = torch.zeros_like(p)  # a rank without examples still takes part in the sum
            if p.grad is not None:
                gradients.append(p.grad)
        self.ranks.sum(gradients)
        return torch.stack(torch._foreach_norm(gradients)).norm()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by name.

        `model/…`, `optimizer/<parameter>/<key>`, `selection/…`, `meter`
        """
        tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in self.trained.items()}
        for name, p in self.trained.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        if self.selection is not None:
            tensors |= self.selection.tensors()
        tensors["meter"] = self.meter.history_NC
        return tensors

    def scalars(self) -> dict[str, Any]:
        chosen = {} if self.selection is None else {"selection": self.selection.scalars()}
        return {"elapsed_s": self.elapsed, **chosen}

    @torch.no_grad()
    def load(self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Goes back to what `tensors()` and `scalars()` gave after `step` steps.

        Raises:
            InputError: the tensors are not those of this model.
        """
        for name, p in self.trained.items():
            saved = tensors.get(f"model/{name}")
            if saved is None or saved.shape != p.shape:
                found = "is missing" if saved is None else f"has shape {list(saved.shape)}, not {list(p.shape)}"
                raise InputError(f"checkpoint of step {step:,}: {name} {found}; it was made by another model")
        unknown = [name for name in tensors if name.startswith("model/") and name[6:] not in self.trained]
        if unknown:
            raise InputError(f"checkpoint of step {step:,}: {unknown[0][6:]} is not in this model")
        self.optimizer.state.clear()
        for name, p in self.trained.items():
            p.copy_(tensors[f"model/{name}"])
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, parameter, key = name.split("/")
                p = self.trained[parameter]
                # Step counts stay on the CPU, where the optimizers made them: reading one must not wait for a device.
                self.optimizer.state[p][key] = value.clone() if key == "step" else value.to(p.device, copy=True)
        if self.selection is not None:
            self.selection.load(tensors, scalars["selection"])
        self.step = step
        self.meter.history_NC = tensors["meter"].clone()
        self._elapsed_before = scalars["elapsed_s"]
        self._started = time.monotonic()
