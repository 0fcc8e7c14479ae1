"""T5X's Adafactor, for models and for banks of prompts.

Neither torch's nor transformers' Adafactor will do: torch's caps the rate at 1/√t (a prompt's 0.3 never happens) and
always scales by the parameter; transformers' factors every matrix, prompts too. In both, decay is multiplied by the
rate. Here, as in the code of Lester et al. 2021 (T5X), a step subtracts `weight_decay` of a weight at any rate.

R rows of a prompt bank, D d_model, C prompts in the bank; F, K those of factored prompts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from t5_pipeline.modeling.limits import FACTORED_FROM, UPDATED_ELEMENTS
from t5_pipeline.modeling.t5x import SecondMoments
from t5_pipeline.training.buckets import buckets


class Adafactor(torch.optim.Optimizer):
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
        clipping: float = 1.0,
        beta2_exponent: float = 0.8,
        step_offset: int = 0,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "parameter_scaling": parameter_scaling,
            "min_dim_to_factor": min_dim_to_factor,
            "clipping": clipping,
            "beta2_exponent": beta2_exponent,
            "step_offset": step_offset,
            "epsilon1": epsilon1,
            "epsilon2": epsilon2,
            "segments": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
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
            factored_F, whole_W = factored_R.nonzero().squeeze(1), (~factored_R).nonzero().squeeze(1)
            segments_F = (factored_C.cumsum(0) - 1)[segments_R[factored_F]]
            group["factored"] = (factored_F, whole_W, segments_F, lengths_C[factored_C].to(bank_RD.dtype))

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
            dims = {p: factored_dims(tuple(p.shape), group["min_dim_to_factor"]) for p in params}
            for some in buckets([p for p in params if dims[p] is None], UPDATED_ELEMENTS):
                self._apply(group, some, self._whole_directions(group, some))
            for some in buckets([p for p in params if dims[p] is not None], UPDATED_ELEMENTS):
                self._apply(group, some, self._factored_directions(group, some, [dims[p] or (0, 0) for p in some]))
        return loss

    def _step_bank(self, group: dict[str, Any], bank_RD: Tensor) -> None:
        if group["factored"] is None:
            [update_RD] = self._whole_directions(group, [bank_RD])
        else:
            update_RD = self._bank_directions(group, bank_RD, *group["factored"])
        scale_C = group["lr"] / (self._rms_per_prompt(group, update_RD) / group["clipping"]).clamp(min=1.0)
        if group["parameter_scaling"]:
            scale_C *= self._rms_per_prompt(group, bank_RD).clamp(min=group["epsilon2"])
        update_RD *= scale_C[group["segments"]].unsqueeze(1)
        bank_RD.mul_(1.0 - group["weight_decay"]).sub_(update_RD)

    def _bank_directions(
        self,
        group: dict[str, Any],
        bank_RD: Tensor,
        factored_F: Tensor,
        whole_W: Tensor,
        segments_F: Tensor,
        lengths_K: Tensor,
    ) -> Tensor:
        """g / √v of a bank with factored prompts.

        Args:
            factored_F: rows of factored prompts.
            whole_W: the other rows.
            segments_F: index among the factored prompts of each row of `factored_F`.
            lengths_K: lengths of the factored prompts.
        """
        [gradient_RD], [square_RD] = _gradients_and_squares(group, [bank_RD])
        square_FD, square_WD = square_RD[factored_F], square_RD[whole_W]

        def of_prompts(x_F: Tensor) -> Tensor:
            """The mean over the rows of each factored prompt."""
            sums_K = x_F.new_zeros(len(lengths_K), *x_F.shape[1:]).index_add_(0, segments_F, x_F)
            return sums_K / lengths_K.view(-1, *[1] * (x_F.ndim - 1))

        keys, news = ("mean_square", "row", "column"), [square_WD, square_FD.mean(dim=1), of_prompts(square_FD)]
        if not self.state[bank_RD]:
            zeros = {key: torch.zeros_like(new) for key, new in zip(keys, news, strict=True)}
            self.state[bank_RD] = {"step": torch.tensor(0), **zeros}
        means = [self.state[bank_RD][key] for key in keys]
        _average_in(means, news, self._next_beta2s(group, [bank_RD]) * 3)
        mean_WD, row_F, column_KD = means
        row_factors_F1 = (row_F / of_prompts(row_F)[segments_F]).rsqrt_().unsqueeze(1)
        update_RD = torch.empty_like(bank_RD)
        update_RD[whole_W] = gradient_RD[whole_W] / mean_WD.sqrt()
        update_RD[factored_F] = gradient_RD[factored_F] * row_factors_F1 * column_KD.rsqrt()[segments_F]
        return update_RD

    @staticmethod
    def _rms_per_prompt(group: dict[str, Any], x_RD: Tensor) -> Tensor:
        sums_C = torch.zeros_like(group["numbers"]).index_add_(0, group["segments"], x_RD.square().sum(dim=1))
        return (sums_C / group["numbers"].clamp(min=1)).sqrt()

    def _whole_directions(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """g / √v, not factored."""
        gradients, squares = _gradients_and_squares(group, params)
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": torch.tensor(0), "mean_square": torch.zeros_like(p)}
        beta2s = self._next_beta2s(group, params)
        means = [self.state[p]["mean_square"] for p in params]
        _average_in(means, squares, beta2s)
        return list(torch._foreach_div(gradients, torch._foreach_sqrt(means)))

    def _factored_directions(
        self, group: dict[str, Any], params: list[Tensor], dims: list[tuple[int, int]]
    ) -> list[Tensor]:
        """g / √v with v the product of row and column means; `dims` are (second largest, largest) dimension."""
        gradients, squares = _gradients_and_squares(group, params)
        row_squares = [square.mean(dim=largest) for square, (_, largest) in zip(squares, dims, strict=True)]
        column_squares = [square.mean(dim=second) for square, (second, _) in zip(squares, dims, strict=True)]
        for p, row, column in zip(params, row_squares, column_squares, strict=True):
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.tensor(0),
                    "row": torch.zeros_like(row),
                    "column": torch.zeros_like(column),
                }
        beta2s = self._next_beta2s(group, params)
        rows, columns = ([self.state[p][key] for p in params] for key in ("row", "column"))
        _average_in(rows, row_squares, beta2s)
        _average_in(columns, column_squares, beta2s)
        row_factors, column_factors = [], []
        for row, column, (second, largest) in zip(rows, columns, dims, strict=True):
            kept_second = second - 1 if second > largest else second
            row_factors.append((row / row.mean(dim=kept_second, keepdim=True)).rsqrt_().unsqueeze(largest))
            column_factors.append(column.rsqrt().unsqueeze(second))
        updates = list(torch._foreach_mul(gradients, row_factors))
        torch._foreach_mul_(updates, column_factors)
        return updates

    def _next_beta2s(self, group: dict[str, Any], params: list[Tensor]) -> list[float]:
        """Count the step and return its β₂. `step` is on the CPU, so reading it does not synchronize with the GPU."""
        steps = [self.state[p]["step"] for p in params]
        torch._foreach_add_(steps, 1)
        return [1.0 - (step.item() + group["step_offset"]) ** -group["beta2_exponent"] for step in steps]

    @staticmethod
    def _apply(group: dict[str, Any], params: list[Tensor], updates: list[Tensor]) -> None:
        """Clip, scale and subtract, without a device synchronization."""
        roots = [p.numel() ** 0.5 for p in params]
        scales = list(torch._foreach_norm(updates))
        torch._foreach_div_(scales, [group["clipping"] * root for root in roots])
        torch._foreach_clamp_min_(scales, 1.0)
        torch._foreach_reciprocal_(scales)
        if group["parameter_scaling"]:
            sizes = list(torch._foreach_norm(params))
            torch._foreach_div_(sizes, roots)
            torch._foreach_clamp_min_(sizes, group["epsilon2"])
            torch._foreach_mul_(scales, sizes)
        torch._foreach_mul_(scales, group["lr"])
        torch._foreach_mul_(updates, scales)
        torch._foreach_mul_(params, 1.0 - group["weight_decay"])
        torch._foreach_sub_(params, updates)


def factored_dims(shape: tuple[int, ...], min_dim_to_factor: int | None) -> tuple[int, int] | None:
    """The (second largest, largest) dimension over which T5X factors a parameter; None if it does not.

    >>> factored_dims((512, 1024), 128), factored_dims((1024, 12, 512), 128), factored_dims((32, 1024), 128)
    ((0, 1), (2, 0), None)
    """
    if min_dim_to_factor is None or len(shape) < 2:
        return None
    second, largest = sorted(range(len(shape)), key=lambda dim: shape[dim])[-2:]
    return (second, largest) if shape[second] >= min_dim_to_factor else None


def _gradients_and_squares(group: dict[str, Any], params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    gradients = [p.grad for p in params if p.grad is not None]
    squares = list(torch._foreach_mul(gradients, gradients))
    torch._foreach_add_(squares, group["epsilon1"])
    return gradients, squares


def _average_in(means: list[Tensor], news: list[Tensor], beta2s: list[float]) -> None:
    """mean ← β₂·mean + (1 − β₂)·new; overwrites `news`."""
    torch._foreach_mul_(means, beta2s)
    torch._foreach_mul_(news, [1.0 - beta2 for beta2 in beta2s])
    torch._foreach_add_(means, news)
