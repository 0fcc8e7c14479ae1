"""T5X's Adafactor, for models and for banks of prompts.

Neither torch's nor transformers' Adafactor will do: torch's caps the rate at 1/√t (a prompt's 0.3 never happens) and
always scales by the parameter; transformers' factors every matrix, prompts too. In both, decay is multiplied by the
rate. Here, as in the code of Lester et al. 2021 (T5X), a step subtracts `weight_decay` of a weight at any rate.

R rows of a prompt bank, D d_model, C prompts in the bank; F, K those of factored prompts
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from t5_pipeline.modeling.limits import FACTORED_FROM, UPDATED_ELEMENTS
from t5_pipeline.modeling.t5x import SecondMoments
from t5_pipeline.training.buckets import buckets
from t5_pipeline.training.segment_sums import segment_sums

_EPSILON1, _EPSILON2 = 1e-30, 1e-3
_BETA2_EXPONENT = 0.8


class _Factored(NamedTuple):
    """The factored prompts of a bank.

    Attributes:
        rows_F: their rows in the bank.
        others_W: rows of the other prompts.
        segments_F: index among the factored prompts of each row of `rows_F`.
        lengths_K: their lengths, in the dtype of the bank.
    """

    rows_F: Tensor
    others_W: Tensor
    segments_F: Tensor
    lengths_K: Tensor

    def means(self, x_F: Tensor) -> Tensor:
        """The mean over the rows of each factored prompt, [K, …]."""
        sums_K = segment_sums(x_F, self.segments_F, len(self.lengths_K))
        return sums_K / self.lengths_K.view(-1, *[1] * (x_F.ndim - 1))


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018) without momentum, with T5X's rules. At the t-th step (t = 1, 2, …):

        β₂ = 1 − (t + step_offset)^−0.8
        v  ← β₂·v + (1 − β₂)·(g² + ε₁)        factored: v_ij ≈ r_i·c_j / mean(r), of row and column means
        u  = g / √v
        u  ← u / max(1, RMS(u) / clipping)
        w  ← w·(1 − weight_decay) − lr·s·u    s = max(ε₂, RMS(w)) with parameter scaling, else 1

    A parameter is factored over its two largest dimensions if the smaller of them is at least `min_dim_to_factor`
    (None: nothing is). The rate of a step is `group["lr"]` at that time.

    A group with `segments` contains one prompt bank: a parameter [R, D] and the prompt index of each row, int64 [R].
    Factoring, means and both RMS are those of each prompt, so it moves as if it were alone.

    v starts at 0 whatever `step_offset` is. With a large offset it grows so slowly that nearly every u is clipped, to
    RMS 1: official prompt tuning restores the step of the model (1,100,000) but not its moments.

    State of a parameter: `mean_square` of its shape, or `row` and `column`, and the 0-d `step`. A bank has all of them,
    `mean_square` [W, D] of its other prompts and `row` [F], `column` [K, D] of its factored ones.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0,
        *,
        weight_decay: float = 0.0,
        parameter_scaling: bool = True,
        min_dim_to_factor: int | None = FACTORED_FROM,
        step_offset: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "parameter_scaling": parameter_scaling,
            "min_dim_to_factor": min_dim_to_factor,
            "step_offset": step_offset,
            "clipping": 1.0,
            "segments": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # Without the decorator that keeps torch.compile out: it imports the compiler for that, which takes seconds.
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)
        group = self.param_groups[-1]
        if group["segments"] is None:
            return
        if len(group["params"]) != 1 or group["params"][0].shape[:-1] != group["segments"].shape:
            raise ValueError("a group with `segments` needs one parameter [R, D] and the prompt of each row, int64 [R]")
        bank_RD = group["params"][0]
        segments_R = group["segments"] = group["segments"].to(bank_RD.device)
        lengths_C = torch.bincount(segments_R)
        group["numbers"] = lengths_C.to(bank_RD.dtype) * bank_RD.shape[1]
        dims = [factored_dims((length, bank_RD.shape[1]), group["min_dim_to_factor"]) for length in lengths_C.tolist()]
        factored_C = torch.tensor([found is not None for found in dims], device=bank_RD.device)
        group["factored"] = None
        if factored_C.any():
            # Rows by index: a boolean mask would make the GPU wait in every step.
            factored_R = factored_C[segments_R]
            rows_F, others_W = factored_R.nonzero().squeeze(1), (~factored_R).nonzero().squeeze(1)
            segments_F = (factored_C.cumsum(0) - 1)[segments_R[rows_F]]
            group["factored"] = _Factored(rows_F, others_W, segments_F, lengths_C[factored_C].to(bank_RD.dtype))

    def zero_grad(self, set_to_none: bool = True) -> None:
        inspect.unwrap(Optimizer.zero_grad)(self, set_to_none)  # as above

    def restore(self, moments: Iterable[SecondMoments], step: int) -> None:
        """Continue from the state after `step` steps of T5X's Adafactor.

        Args:
            moments: those of each parameter, in order.
        """
        rules = [(p, group["min_dim_to_factor"]) for group in self.param_groups for p in group["params"]]
        for (p, min_dim_to_factor), found in zip(rules, moments, strict=True):
            dims = factored_dims(tuple(p.shape), min_dim_to_factor)
            if dims is not None and found.whole is None:
                means = {"row": found.by_axis[dims[0]], "column": found.by_axis[dims[1]]}
            elif dims is None and found.whole is not None:
                means = {"mean_square": found.whole}
            else:
                raise ValueError(f"the moments of a parameter of shape {list(p.shape)} are factored by another rule")
            self.state[p] = {"step": torch.tensor(step), **{key: mean.to(p.device) for key, mean in means.items()}}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["segments"] is not None:
                for bank_RD in params:
                    self._step_bank(group, bank_RD)
                continue
            for alike in self._alike(params):
                for some in buckets(alike, UPDATED_ELEMENTS):
                    self._step_stack(group, some)
        return loss

    def _alike(self, params: Iterable[Tensor]) -> Iterable[list[Tensor]]:
        """Parameters that a stack may contain: of one shape, dtype and device, and after the same number of steps."""
        found: dict[Any, list[Tensor]] = {}
        for p in params:
            steps = self.state[p]["step"].item() if self.state[p] else 0
            found.setdefault((p.shape, p.dtype, p.device, steps), []).append(p)
        return found.values()

    def _step_bank(self, group: dict[str, Any], bank_RD: Tensor) -> None:
        if group["factored"] is None:
            assert bank_RD.grad is not None
            update_RD = self._directions(group, [bank_RD], bank_RD.grad.unsqueeze(0), None).squeeze(0)
        else:
            update_RD = self._bank_directions(group, bank_RD, group["factored"])
        scale_C = group["lr"] / (self._rms_per_prompt(group, update_RD) / group["clipping"]).clamp(min=1.0)
        if group["parameter_scaling"]:
            scale_C *= self._rms_per_prompt(group, bank_RD).clamp(min=_EPSILON2)
        update_RD *= scale_C[group["segments"]].unsqueeze(1)
        bank_RD.mul_(1.0 - group["weight_decay"]).sub_(update_RD)

    def _bank_directions(self, group: dict[str, Any], bank_RD: Tensor, factored: _Factored) -> Tensor:
        """g / √v of a bank with factored prompts, [R, D]."""
        gradient_RD = bank_RD.grad
        assert gradient_RD is not None
        square_RD = gradient_RD * gradient_RD + _EPSILON1
        rows_F, others_W, segments_F, _ = factored
        square_FD, square_WD = square_RD[rows_F], square_RD[others_W]
        news = {"mean_square": square_WD, "row": square_FD.mean(dim=1), "column": factored.means(square_FD)}
        stacks = {key: new.unsqueeze(0) for key, new in news.items()}
        mean_WD, row_F, column_KD = (mean.squeeze(0) for mean in self._average_in(group, [bank_RD], stacks))
        row_factors_F1 = (row_F / factored.means(row_F)[segments_F]).rsqrt_().unsqueeze(1)
        update_RD = torch.empty_like(bank_RD)
        update_RD[others_W] = gradient_RD[others_W] / mean_WD.sqrt()
        update_RD[rows_F] = gradient_RD[rows_F] * row_factors_F1 * column_KD.rsqrt()[segments_F]
        return update_RD

    @staticmethod
    def _rms_per_prompt(group: dict[str, Any], x_RD: Tensor) -> Tensor:
        sums_C = segment_sums(x_RD.square().sum(dim=1), group["segments"], len(group["numbers"]))
        return (sums_C / group["numbers"].clamp(min=1)).sqrt()

    def _step_stack(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Step parameters of one shape as a stack [N, …], for which the host of a GPU starts few kernels."""
        dims = factored_dims(tuple(params[0].shape), group["min_dim_to_factor"])
        gradients = [p.grad for p in params if p.grad is not None]
        stack = gradients[0].unsqueeze(0) if len(gradients) == 1 else torch.stack(gradients)
        updates = self._directions(group, params, stack, dims)
        root = params[0].numel() ** 0.5
        scales_N = torch.stack(torch._foreach_norm(list(updates.unbind()))).div_(group["clipping"] * root)
        scales_N.clamp_min_(1.0).reciprocal_()
        if group["parameter_scaling"]:
            sizes_N = torch.stack(torch._foreach_norm(params)).div_(root)
            scales_N.mul_(sizes_N.clamp_min_(_EPSILON2))
        updates.mul_(scales_N.mul_(group["lr"]).view(-1, *[1] * params[0].ndim))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - group["weight_decay"])
        torch._foreach_sub_(params, list(updates.unbind()))

    def _directions(
        self, group: dict[str, Any], params: list[Tensor], gradients: Tensor, dims: tuple[int, int] | None
    ) -> Tensor:
        """g / √v of a stack.

        Args:
            gradients: [N, …] of N parameters.
            dims: (second largest, largest) dimension of a factored parameter.
        """
        squares = (gradients * gradients).add_(_EPSILON1)
        if dims is None:
            [mean] = self._average_in(group, params, {"mean_square": squares})
            return gradients / mean.sqrt_()
        second, largest = (dim + 1 for dim in dims)
        news = {"row": squares.mean(dim=largest), "column": squares.mean(dim=second)}
        del squares
        row, column = self._average_in(group, params, news)
        kept_second = second - 1 if second > largest else second
        updates = gradients * (row / row.mean(dim=kept_second, keepdim=True)).rsqrt_().unsqueeze(largest)
        return updates.mul_(column.rsqrt_().unsqueeze(second))

    def _average_in(self, group: dict[str, Any], params: list[Tensor], news: dict[str, Tensor]) -> list[Tensor]:
        """mean ← β₂·mean + (1 − β₂)·new for the means of a stack, by name; overwrites `news`. Returns copies [N, …]."""
        for number, p in enumerate(params):
            if not self.state[p]:
                zeros = {key: torch.zeros_like(new[number]) for key, new in news.items()}
                self.state[p] = {"step": torch.tensor(0), **zeros}
        beta2, found = self._next_beta2(group, params), []
        for key, new in news.items():
            means = [self.state[p][key] for p in params]
            found.append(torch.stack(means).mul_(beta2).add_(new.mul_(1.0 - beta2)))
            torch._foreach_copy_(means, list(found[-1].unbind()))
        return found

    def _next_beta2(self, group: dict[str, Any], params: list[Tensor]) -> float:
        """Count the step and return its β₂. `step` is on the CPU, so reading it does not synchronize with the GPU."""
        steps = [self.state[p]["step"] for p in params]
        torch._foreach_add_(steps, 1)
        return float(1.0 - (steps[0].item() + group["step_offset"]) ** -_BETA2_EXPONENT)


def factored_dims(shape: tuple[int, ...], min_dim_to_factor: int | None) -> tuple[int, int] | None:
    """The (second largest, largest) dimension over which T5X factors a parameter; None if it does not.

    >>> factored_dims((512, 1024), 128), factored_dims((1024, 12, 512), 128), factored_dims((32, 1024), 128)
    ((0, 1), (2, 0), None)
    """
    if min_dim_to_factor is None or len(shape) < 2:
        return None
    second, largest = sorted(range(len(shape)), key=lambda dim: shape[dim])[-2:]
    return (second, largest) if shape[second] >= min_dim_to_factor else None
