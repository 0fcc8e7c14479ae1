"""Reparametrizations of soft prompts: the rows P are computed from other trained numbers, and published as plain rows.

    residual    P = P₀ + LN(relu(P₀·Dᵀ + d)·Uᵀ + u)    Residual Prompt Tuning (Razdaibiedina et al. 2023, §3.1)
    low_rank    P = A·B                               Decomposed Prompt Tuning (Xiao et al. 2023, §3)
    superpos    P = W·E                               SuperPos-Prompt (Sadraei Javaheri et al. 2024, §3), E frozen
    rank_one    P = P* ∘ (u·vᵀ)                       Multitask Prompt Tuning (Wang et al. 2023, §3.1)

All numbers are fp32. Initial values are functions of the start rows and the seed.

P rows of the prompt, D d_model, H hidden width, K rank, M sampled rows of the vocabulary
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reparametrization(nn.Module, ABC):
    """A prompt whose rows are a function of its trained parameters.

    Attributes:
        length, width: of the prompt, P and D.
        factors: the parameters that are trained at the rate of factors (`factor_learning_rate`).
    """

    factors: ClassVar[frozenset[str]] = frozenset()
    length: int
    width: int

    @abstractmethod
    def rows(self, trained: Mapping[str, Tensor]) -> Tensor:
        """The prompt's rows [P, D] from its trained parameters by name, as in a checkpoint."""

    def forward(self) -> Tensor:
        return self.rows(dict(self.named_parameters()))


class Residual(Reparametrization):
    """P = P₀ + LN(relu(P₀·Dᵀ + d)·Uᵀ + u)·gain + bias: one MLP for all rows of a prompt, with a skip connection.

    Trained: P₀ [P, D], the MLP and the gain and bias of the layer norm. The MLP starts as torch's linear layers do,
    U[−1/√fan-in, 1/√fan-in], the layer norm at gain 1 and bias 0.

    >>> Residual(torch.ones(3, 8), hidden=4, seed=0)().shape
    torch.Size([3, 8])
    """

    def __init__(self, start_PD: Tensor, hidden: int, seed: int) -> None:
        """
        Args:
            start_PD: P₀ at the start.
            hidden: H, the bottleneck of the MLP.
        """
        super().__init__()
        self.length, self.width = start_PD.shape
        D, generator = self.width, _generator(seed)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / sqrt(fan_in))

        self.start_PD = nn.Parameter(start_PD.detach().float().clone())
        self.down_HD, self.down_H = uniform(hidden, D, fan_in=D), uniform(hidden, fan_in=D)
        self.up_DH, self.up_D = uniform(D, hidden, fan_in=hidden), uniform(D, fan_in=hidden)
        self.gain_D, self.bias_D = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def rows(self, trained: Mapping[str, Tensor]) -> Tensor:
        start_PD = trained["start_PD"]
        hidden_PH = F.linear(start_PD, trained["down_HD"], trained["down_H"]).relu()
        change_PD = F.linear(hidden_PH, trained["up_DH"], trained["up_D"])
        return start_PD + F.layer_norm(change_PD, (self.width,), trained["gain_D"], trained["bias_D"])


class LowRank(Reparametrization):
    """P = A·B with A [P, K] and B [K, D] trained.

    Starts from the best approximation of the start rows of rank K, U√S·√SVᵀ of their K largest singular values; or, if
    there are none, from factors in U[−0.5, 0.5], as in the code of the paper.

    >>> torch.allclose(LowRank.nearest(torch.ones(3, 8), rank=1)(), torch.ones(3, 8))
    True
    """

    def __init__(self, a_PK: Tensor, b_KD: Tensor) -> None:
        super().__init__()
        self.length, self.width = len(a_PK), b_KD.size(1)
        self.a_PK, self.b_KD = nn.Parameter(a_PK.contiguous()), nn.Parameter(b_KD.contiguous())

    @classmethod
    def nearest(cls, start_PD: Tensor, rank: int) -> LowRank:
        u_PS, s_S, v_SD = torch.linalg.svd(start_PD.detach().float(), full_matrices=False)
        root_K, missing = s_S[:rank].sqrt(), max(0, rank - len(s_S))
        # A rank above min(P, D) has zero directions; those of A are zero, so that P is exact and B can still learn.
        a_PK = F.pad(u_PS[:, :rank] * root_K, (0, missing))
        b_KD = F.pad(root_K[:, None] * v_SD[:rank], (0, 0, 0, missing), value=1.0)
        return cls(a_PK, b_KD)

    @classmethod
    def uniform(cls, length: int, width: int, rank: int, seed: int) -> LowRank:
        generator = _generator(seed)
        a_PK, b_KD = (torch.rand(*shape, generator=generator) - 0.5 for shape in ((length, rank), (rank, width)))
        return cls(a_PK, b_KD)

    def rows(self, trained: Mapping[str, Tensor]) -> Tensor:
        return trained["a_PK"] @ trained["b_KD"]


class SuperPos(Reparametrization):
    """P = W·E: each row is a weighted sum of M frozen rows E of the vocabulary, with W [P, M] trained.

    Starts from the weighted sums nearest to the start rows (least squares, of the solutions the smallest).

    >>> sampled_MD = torch.eye(3)[:2]
    >>> SuperPos(torch.tensor([[2.0, 5.0, 1.0]]), sampled_MD)().tolist()
    [[2.0, 5.0, 0.0]]
    """

    sampled_MD: Tensor

    def __init__(self, start_PD: Tensor, sampled_MD: Tensor) -> None:
        super().__init__()
        self.length, self.width = start_PD.shape
        # The same rows are sampled again when training resumes, so checkpoints do not contain them.
        self.register_buffer("sampled_MD", sampled_MD.detach().float().clone(), persistent=False)
        start_PD = start_PD.detach().double()
        weights_MP = torch.linalg.lstsq(sampled_MD.double().T, start_PD.T, driver="gelsd").solution
        self.weights_PM = nn.Parameter(weights_MP.T.float().contiguous())

    def rows(self, trained: Mapping[str, Tensor]) -> Tensor:
        weights_PM = trained["weights_PM"]
        return weights_PM @ self.sampled_MD.to(weights_PM.device)


class RankOne(Reparametrization):
    """P = P* ∘ (u·vᵀ): the number in row i and column j of P* [P, D] is scaled by u_i and v_j, all of them trained.

    In the adaptation to a task, P*, u and v start from those of other tasks; otherwise u and v start at 1.

    >>> RankOne(torch.ones(2, 3), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))().tolist()
    [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    """

    factors: ClassVar[frozenset[str]] = frozenset(("u_P", "v_D"))

    def __init__(self, shared_PD: Tensor, u_P: Tensor | None = None, v_D: Tensor | None = None) -> None:
        super().__init__()
        self.length, self.width = shared_PD.shape
        self.shared_PD = nn.Parameter(shared_PD.detach().float().clone())
        self.u_P = nn.Parameter(torch.ones(self.length) if u_P is None else u_P.detach().float().clone())
        self.v_D = nn.Parameter(torch.ones(self.width) if v_D is None else v_D.detach().float().clone())

    def rows(self, trained: Mapping[str, Tensor]) -> Tensor:
        return scaled_rows(trained["shared_PD"], trained["u_P"], trained["v_D"])


def scaled_rows(shared_PD: Tensor, u_P: Tensor, v_D: Tensor) -> Tensor:
    """P* ∘ (u·vᵀ), [P, D]; or [K, P, D] for K tasks with u [K, P] and v [K, D]."""
    return shared_PD * u_P.unsqueeze(-1) * v_D.unsqueeze(-2)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
