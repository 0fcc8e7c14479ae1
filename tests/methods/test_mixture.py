"""Loss of a mixture of prompts against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.mixture import MixtureModel, check_starts, mixture_loss, mixture_optimizer
from t5_pipeline.training.loss import token_loss
from t5_pipeline.training.optimizers import set_learning_rate

V, D = 11, 6


class Reader(nn.Module):
    """A model whose logits depend only on the prompt and the inputs."""

    def __init__(self, prompts: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rows_RD = nn.Parameter(torch.randn(prompts, D, generator=generator))
        self.table = torch.randn(V, D, generator=generator)
        self.out = torch.randn(4, D, V, generator=generator)

    def forward(self, prompt_B: Tensor, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_BD = self.rows_RD[prompt_B] * self.table[inputs_BS].mean(dim=1)
        return torch.einsum("bd,tdv->btv", hidden_BD, self.out[: targets_BT.size(1)])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(1, V, (5, 3), generator=generator)
    targets = torch.randint(1, V, (5, 4), generator=generator)
    targets[1, 2:] = targets[3, 1:] = 0
    return inputs, targets, torch.rand(5, generator=generator)


def test_loss_and_gradients_match_formula() -> None:
    model = MixtureModel(Reader(3), 3)
    with torch.no_grad():
        model.logits_K.copy_(torch.tensor([0.3, -1.0, 0.5]))
    inputs, targets, weights = batch()
    loss = model(inputs, targets, weights, 0.0)
    loss.sum().backward()
    fast = [model.logits_K.grad.clone(), model.model.rows_RD.grad.clone()]  # type: ignore[union-attr]
    model.zero_grad()

    slow = torch.zeros(())
    w = torch.softmax(model.logits_K, 0)
    for b in range(5):
        p = torch.zeros(())
        for k in range(3):
            logits = model.model(torch.tensor([k]), inputs[b : b + 1], targets[b : b + 1])[0]
            tokens = [torch.softmax(logits[t], 0)[targets[b, t]] for t in range(4) if targets[b, t] != 0]
            p = p + w[k] * torch.stack(tokens).prod()
        slow = slow - weights[b] * torch.log(p)
    slow.backward()
    torch.testing.assert_close(loss[0], slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast[0], model.logits_K.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fast[1], model.model.rows_RD.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_single_prompt_has_prompt_tuning_loss() -> None:
    inputs, targets, weights = batch()
    reader = Reader(1)
    tokens = token_loss(reader(torch.zeros(5, dtype=torch.long), inputs, targets), targets, 1e-2)
    torch.testing.assert_close(
        MixtureModel(reader, 1)(inputs, targets, weights, 1e-2)[0], (tokens.sum(1) * weights).sum()
    )
    torch.testing.assert_close(mixture_loss(tokens[None], torch.zeros(1), weights)[0], (tokens.sum(1) * weights).sum())


def test_weights_have_own_learning_rate() -> None:
    model = MixtureModel(Reader(2), 2)
    rows = model.model.rows_RD
    optimizer = mixture_optimizer("adafactor", rows, torch.arange(2), model.logits_K, 1e-5, 0.1)
    set_learning_rate(optimizer, 0.3)
    assert [round(group["lr"], 6) for group in optimizer.param_groups] == [0.3, 0.03]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-5, 0.0]
    before = model.logits_K.detach().clone(), rows.detach().clone()
    inputs, targets, weights = batch()
    model(inputs, targets, weights, 0.0).sum().backward()
    optimizer.step()
    # Adafactor's first update has a root mean square of 1.
    assert float((model.logits_K.detach() - before[0]).square().mean().sqrt()) <= 0.03 * 1.001
    assert 0.29 < float((rows.detach() - before[1]).square().mean().sqrt()) < 0.31


def test_weights_count_their_steps_from_the_offset() -> None:
    """So their moments hardly average, and updates that shrink still have the size of the rate, like those of prompts."""
    model = MixtureModel(Reader(2), 2)
    optimizer = mixture_optimizer(
        "adafactor", model.model.rows_RD, torch.arange(2), model.logits_K, 0.0, 1.0, 1_100_000
    )
    set_learning_rate(optimizer, 0.3)
    for shrunk in (1.0, 0.1):
        before = [p.detach().clone() for p in (model.logits_K, model.model.rows_RD)]
        model.logits_K.grad = shrunk * torch.tensor([1.0, -1.0])
        model.model.rows_RD.grad = shrunk * torch.ones(2, D)
        optimizer.step()
        for p, was in zip((model.logits_K, model.model.rows_RD), before, strict=True):
            assert (p.detach() - was).square().mean().sqrt().item() == pytest.approx(0.3, rel=1e-5)


def test_components_that_start_equal_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    equal = [torch.ones(2, 3), torch.ones(2, 3)]
    with pytest.raises(InputError, match="gives all 2 components the same rows, so they would stay equal"):
        check_starts(equal, dropout=0.0)
    assert check_starts(equal, dropout=0.1) is equal
    assert "only dropout tells them apart" in caplog.text
    check_starts([torch.ones(2, 3), torch.zeros(2, 3)], dropout=0.0)
