"""Reparametrized prompts against their formulas in float64 NumPy, with gradients, alone and in a bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from t5_pipeline.config.reparametrization import ReparametrizationConfig
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5, SharedBank
from t5_pipeline.modeling.reparametrization import LowRank, RankOne, Reparametrization, Residual, SuperPos
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.optimizers import PromptRule, bank_optimizer, set_learning_rate
from tests.modeling.conftest import token_loss, token_rows

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
P, D = 5, 12


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def residual(p: Arrays, g: Any) -> tuple[Any, Arrays]:
    """P₀ + LN(relu(P₀·Dᵀ + d)·Uᵀ + u), and the gradients for an output gradient g, derived by hand."""
    inner = p["start_PD"] @ p["down_HD"].T + p["down_H"]
    hidden = np.maximum(inner, 0)
    change = hidden @ p["up_DH"].T + p["up_D"]
    deviation = np.sqrt(change.var(axis=1, keepdims=True) + 1e-5)
    unit = (change - change.mean(axis=1, keepdims=True)) / deviation
    g_unit = g * p["gain_D"]
    means = g_unit.mean(axis=1, keepdims=True) + unit * (g_unit * unit).mean(axis=1, keepdims=True)
    g_change = (g_unit - means) / deviation
    g_inner = (g_change @ p["up_DH"]) * (inner > 0)
    return p["start_PD"] + unit * p["gain_D"] + p["bias_D"], {
        "start_PD": g + g_inner @ p["down_HD"],
        "down_HD": g_inner.T @ p["start_PD"],
        "down_H": g_inner.sum(axis=0),
        "up_DH": g_change.T @ hidden,
        "up_D": g_change.sum(axis=0),
        "gain_D": (g * unit).sum(axis=0),
        "bias_D": g.sum(axis=0),
    }


def low_rank(p: Arrays, g: Any) -> tuple[Any, Arrays]:
    return p["a_PK"] @ p["b_KD"], {"a_PK": g @ p["b_KD"].T, "b_KD": p["a_PK"].T @ g}


def superpos(p: Arrays, g: Any) -> tuple[Any, Arrays]:
    sampled = draw(9, D, seed=2).double().numpy()
    return p["weights_PM"] @ sampled, {"weights_PM": g @ sampled.T}


def rank_one(p: Arrays, g: Any) -> tuple[Any, Arrays]:
    shared, u, v = p["shared_PD"], p["u_P"], p["v_D"]
    return np.diag(u) @ shared @ np.diag(v), {
        "shared_PD": g * np.outer(u, v), "u_P": (g * shared) @ v, "v_D": (g * shared).T @ u,
    }  # fmt: skip


CASES = {
    "residual": (Residual(draw(P, D), hidden=7, seed=1), residual),
    "low_rank": (LowRank.nearest(draw(P, D), rank=3), low_rank),
    "superpos": (SuperPos(draw(P, D), draw(9, D, seed=2)), superpos),
    "rank_one": (RankOne(draw(P, D)), rank_one),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_and_gradients_are_those_of_the_formula(name: str) -> None:
    prompt, formula = CASES[name]
    with torch.no_grad():  # away from the gains of 1 and biases of 0 at the start
        for seed, p in enumerate(prompt.parameters()):
            p += 0.3 * draw(*p.shape, seed=seed)
    g = draw(P, D, seed=3)
    rows = prompt()
    gradients = torch.autograd.grad(rows, list(prompt.parameters()), g)
    expected, expected_gradients = formula(
        {key: p.detach().double().numpy() for key, p in prompt.named_parameters()}, g.double().numpy()
    )
    np.testing.assert_allclose(rows.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    for (key, _), found in zip(prompt.named_parameters(), gradients, strict=True):
        np.testing.assert_allclose(found.numpy(), expected_gradients[key], rtol=2e-5, atol=2e-5, err_msg=key)
    sizes = ReparametrizationConfig(reparametrization=name, residual_width=7, rank=3, superpos_tokens=9)
    assert sum(p.numel() for p in prompt.parameters()) == sizes.trained_numbers(P, D)


def test_they_start_from_the_given_rows() -> None:
    start = draw(P, D)
    full = LowRank.nearest(start, rank=P + 2)
    torch.testing.assert_close(full(), start, atol=1e-5, rtol=1e-5)
    full().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in full.parameters())
    assert full.a_PK.grad is not None
    assert bool(full.a_PK.grad.any(dim=0).all())  # the directions beyond those of the rows learn, too
    nearest, (u, s, vt) = LowRank.nearest(start, rank=2), np.linalg.svd(start.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(nearest().detach().numpy(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
    sampled = torch.cat([start, draw(3, D, seed=5)])
    torch.testing.assert_close(SuperPos(start, sampled)(), start, atol=1e-5, rtol=1e-5)
    few = SuperPos(start, sampled[2:])().detach()
    fit, *_ = np.linalg.lstsq(sampled[2:].double().numpy().T, start.double().numpy().T, rcond=None)
    np.testing.assert_allclose(few.numpy(), fit.T @ sampled[2:].double().numpy(), atol=1e-5)
    a, b = (p.detach() for p in LowRank.uniform(50, 40, rank=10, seed=1).parameters())
    assert all(0.45 < float(factor.abs().max()) <= 0.5 for factor in (a, b))
    mlp = dict(Residual(torch.zeros(1, 64), hidden=400, seed=0).named_parameters())
    for name, fan_in in (("down_HD", 64), ("down_H", 64), ("up_DH", 400), ("up_D", 400)):
        assert 0.9 < float(mlp[name].detach().abs().max()) * fan_in**0.5 <= 1, name


def test_a_shared_bank_is_the_formula_of_each_task_with_the_gradients_of_all() -> None:
    K = 3
    bank = SharedBank(draw(P, D), K)
    assert all(prompt.equal(draw(P, D)) for prompt in bank.split(bank.rows()))
    with torch.no_grad():
        for seed, p in enumerate(bank.parameters()):
            p += 0.3 * draw(*p.shape, seed=seed)
    g_KPD = draw(K, P, D, seed=3)
    gradients = torch.autograd.grad(bank.rows(), list(bank.parameters()), g_KPD.flatten(0, 1))
    trained = {name: p.detach().double().numpy() for name, p in bank.named_parameters()}
    each = [
        rank_one({"shared_PD": trained["shared_PD"], "u_P": u, "v_D": v}, g)
        for u, v, g in zip(trained["u_KP"], trained["v_KD"], g_KPD.double().numpy(), strict=True)
    ]
    saved = {name: p.detach().clone() for name, p in bank.named_parameters()}
    for index, (rows, _) in enumerate(each):
        np.testing.assert_allclose(bank.prompt(index), rows, rtol=1e-5, atol=1e-5)
        assert bank.prompts_of(saved)[index].equal(bank.prompt(index))
    expected = {
        "shared_PD": sum(found["shared_PD"] for _, found in each),
        "u_KP": np.stack([found["u_P"] for _, found in each]),
        "v_KD": np.stack([found["v_D"] for _, found in each]),
    }
    for (name, _), found in zip(bank.named_parameters(), gradients, strict=True):
        np.testing.assert_allclose(found.numpy(), expected[name], rtol=2e-5, atol=2e-5, err_msg=name)
    optimizer = bank_optimizer("adafactor", bank.parameters(), bank.parts, [PromptRule(factor_rate=2.0)] * K)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.2]


def prompts() -> list[torch.Tensor | Reparametrization]:
    width = 32
    return [
        draw(4, width), Residual(draw(2, width), 6, seed=1), LowRank.nearest(draw(3, width), 2), draw(1, width, seed=7),
        SuperPos(draw(2, width), draw(5, width, seed=2)),
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [(), (0, 1, 1, 1, 1)])
def test_a_mixed_bank_equals_a_bank_of_the_same_rows(model: T5, groups: tuple[int, ...]) -> None:
    """The same logits, also under bf16 autocast, and through the formulas the same gradients."""
    mixed = PromptedT5(model, PromptBank(prompts(), groups)).eval()
    rows = [mixed.bank.prompt(index) for index in range(5)]
    plain = PromptedT5(model, PromptBank(rows)).eval()
    prompt_B = torch.tensor([1, 0, 2, 4, 3, 1])
    inputs, targets = token_rows([5, 9, 4, 12, 3, 8], seed=3), token_rows([4, 2, 6, 3, 5, 3], seed=4)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = [prompted(prompt_B, inputs, targets) for prompted in (mixed, plain)]
        assert torch.equal(*logits)
    for found in logits:
        token_loss(found, targets).backward()
    expected = torch.autograd.grad(
        mixed.bank.rows(), list(mixed.bank.parameters()), plain.bank.rows_RD.grad, allow_unused=True
    )
    for (name, p), gradient in zip(mixed.bank.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, msg=name)
    saved = {name: p.detach().clone() for name, p in mixed.bank.named_parameters()}
    for found_rows, expected_rows in zip(mixed.bank.prompts_of(saved), rows, strict=True):
        assert torch.equal(found_rows, expected_rows)
    assert [part.prompts for part in mixed.bank.parts] == (
        [[0], [3]] if groups else [[0, 3]]
    ) + [[1]] * 7 + [[2]] * 2 + [[4]]  # fmt: skip
