"""The loss against torch's cross entropy in float64, and the sum of microbatch losses against the batch loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from t5_pipeline.training import loss as loss_module
from t5_pipeline.training.loss import (
    _TokenLoss,
    batch_losses,
    output_loss,
    target_loss,
    token_loss,
    token_loss_reference,
)


def logits_and_targets(batch: int = 3, length: int = 5, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(batch, length, vocabulary, generator=generator) * 5
    targets_BT = torch.randint(1, vocabulary, (batch, length), generator=generator)
    targets_BT[0, 3:] = 0
    targets_BT[2, 1:] = 0
    return logits_BTV, targets_BT


def test_token_loss_is_cross_entropy_with_z_loss() -> None:
    logits_BTV, targets_BT = logits_and_targets()
    exact = logits_BTV.double()
    cross_entropy = F.cross_entropy(exact.transpose(1, 2), targets_BT, reduction="none")
    expected = cross_entropy + 1e-4 * torch.log(torch.exp(exact).sum(-1)) ** 2
    found = token_loss(logits_BTV, targets_BT, z_loss=1e-4)
    real = targets_BT != 0
    assert torch.allclose(found[real].double(), expected[real], rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float32
    assert (found[~real] == 0).all()


def test_explicit_gradient_equals_the_reference() -> None:
    logits_BTV, targets_BT = logits_and_targets()
    weights_BT = torch.rand(targets_BT.shape, generator=torch.Generator().manual_seed(1))
    for z_loss in (0.0, 1e-4, 0.3):
        ours, plain = (logits_BTV.clone().requires_grad_() for _ in range(2))
        loss_BT, expected_BT = token_loss(ours, targets_BT, z_loss), token_loss_reference(plain, targets_BT, z_loss)
        assert torch.equal(loss_BT, expected_BT)
        (loss_BT * weights_BT).sum().backward()
        (expected_BT * weights_BT).sum().backward()
        assert ours.grad is not None
        assert plain.grad is not None
        assert torch.allclose(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)
    exact = logits_BTV.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: _TokenLoss.apply(logits, targets_BT, 0.3, 0), exact)


def test_padding_has_no_gradient() -> None:
    logits_BTV, targets_BT = logits_and_targets()
    logits_BTV.requires_grad_()
    token_loss(logits_BTV, targets_BT, z_loss=1e-4).sum().backward()
    assert logits_BTV.grad is not None
    assert (logits_BTV.grad[targets_BT == 0] == 0).all()
    assert (logits_BTV.grad[targets_BT != 0] != 0).any(dim=-1).all()


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits_BTV, targets_BT = logits_and_targets()
    narrow = logits_BTV.bfloat16()
    assert torch.equal(token_loss(narrow, targets_BT, 1e-4), token_loss(narrow.float(), targets_BT, 1e-4))


def test_microbatch_losses_add_up_to_the_mean_over_the_batch() -> None:
    logits_BTV, targets_BT = logits_and_targets()
    loss_BT = token_loss(logits_BTV, targets_BT)
    weights_B = torch.full((3,), 1 / int((targets_BT != 0).sum()))
    prompt_B = torch.zeros(3, dtype=torch.long)
    whole = batch_losses(loss_BT, weights_B, prompt_B)
    parts = sum(batch_losses(loss_BT[i : i + 1], weights_B[i : i + 1], prompt_B[i : i + 1]) for i in range(3))
    assert torch.allclose(whole, loss_BT[targets_BT != 0].mean())
    assert torch.allclose(whole, torch.as_tensor(parts))


def test_the_loss_of_a_prompt_counts_only_its_own_rows() -> None:
    loss_BT = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], requires_grad=True)
    losses_C = batch_losses(loss_BT, torch.tensor([1.0, 0.5, 1.0, 1.0]), torch.tensor([2, 0, 2, 1]), prompts=4)
    assert losses_C.tolist() == [5.0, 1000.0, 101.0, 0.0]
    losses_C[2].backward()
    assert loss_BT.grad is not None
    assert loss_BT.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def hidden_weight_and_targets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    _, targets_BT = logits_and_targets(vocabulary=96)
    hidden_BTD = torch.randn(*targets_BT.shape, 32, generator=generator)
    return hidden_BTD.requires_grad_(), torch.randn(96, 32, generator=generator).requires_grad_(), targets_BT


@pytest.fixture(params=[False, True], ids=["", "recomputed"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of CPUs, and that of GPUs."""
    if request.param:
        monkeypatch.setattr(loss_module, "_OutputLoss", loss_module._RecomputedLoss)


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("at_once", [512, 3])
def test_output_loss_and_its_gradients_equal_the_reference(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.LOSS_ROWS, "cpu", at_once)
    hidden, weight, targets_BT = hidden_weight_and_targets()
    weights_BT = torch.rand(targets_BT.shape, generator=torch.Generator().manual_seed(1))
    for z_loss in (0.0, 0.3):
        found = output_loss(hidden, weight, targets_BT, z_loss)
        plain = token_loss_reference(hidden @ weight.T, targets_BT, z_loss)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        ours = torch.autograd.grad((found * weights_BT).sum(), (hidden, weight))
        theirs = torch.autograd.grad((plain * weights_BT).sum(), (hidden, weight))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_ways")
def test_output_loss_in_bf16_is_within_rounding() -> None:
    hidden, weight, targets_BT = hidden_weight_and_targets()
    exact = output_loss(hidden, weight, targets_BT, 1e-4)
    expected = torch.autograd.grad(exact.sum(), (hidden, weight))
    narrow = hidden.detach().bfloat16().requires_grad_()
    for precision, tolerance in (("bf16", 1 / 128), ("fp32", 1 / 256)):
        found = output_loss(narrow, weight, targets_BT, 1e-4, precision)
        assert found.dtype == torch.float32
        assert (found - exact).norm() < tolerance * exact.norm()
        gradients = torch.autograd.grad(found.sum(), (narrow, weight))
        for ours, theirs in zip(gradients, expected, strict=True):
            assert (ours.float() - theirs).norm() < 0.03 * theirs.norm()
        assert gradients[1].dtype == torch.float32


@pytest.mark.parametrize("reference_ops", [[], ["loss"]])
def test_the_settings_of_a_stage_decide_its_loss(reference_ops: list[str]) -> None:
    """fp32 logits of bf16 states are exact: only the inputs are rounded."""
    hidden, weight, targets_BT = hidden_weight_and_targets()
    narrow = hidden.detach().bfloat16()
    model: Any = SimpleNamespace(
        special=SimpleNamespace(pad=0),
        before_logits=lambda hidden_BTD: (hidden_BTD, weight),
        logits=lambda hidden_BTD: hidden_BTD.float() @ weight.T,
    )
    settings: Any = SimpleNamespace(z_loss=0.3, logits_precision="fp32", reference_ops=reference_ops)
    expected = token_loss_reference(narrow.float() @ weight.T, targets_BT, 0.3)
    torch.testing.assert_close(target_loss(model, narrow, targets_BT, settings), expected, rtol=1e-5, atol=1e-5)


def test_an_impossible_target_has_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[[200.0]]]), torch.tensor([[1.0], [-1.0]])
    assert output_loss(hidden, weight, torch.tensor([[1]])).item() == 400.0


def test_a_batch_of_padding_has_no_loss() -> None:
    hidden, weight, targets_BT = hidden_weight_and_targets()
    loss_BT = output_loss(hidden, weight, torch.zeros_like(targets_BT), 1e-4)
    loss_BT.sum().backward()
    assert not loss_BT.any()
    assert not weight.grad.any()
