"""Implementations of attention compared with the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from t5_pipeline.modeling.attention import (
    MASKED,
    attend,
    attend_by_products,
    attend_flex,
    attend_fused,
    attend_to_states,
    attention_reference,
    block_mask,
    mask_bias,
)


def _inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, length, 16, generator=generator).to(dtype).requires_grad_() for length in (7, 9, 9)]


def _bias(kind: str) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(1)
    position = torch.randn(1, 4, 7, 9, generator=generator)
    mask = mask_bias(torch.arange(9) < torch.tensor([[9], [4], [1]]))
    assert mask is not None
    return {"none": None, "position": position, "mask": mask, "both": position + mask}[kind]


@pytest.mark.parametrize("kind", ["none", "position", "mask", "both"])
def test_fused_equals_reference_with_gradients(kind: str) -> None:
    q, k, v = _inputs()
    weight = torch.randn(3, 4, 7, 16, generator=torch.Generator().manual_seed(2))
    results = []
    for attention in (attention_reference, attend_fused):
        out = attention(q, k, v, _bias(kind))
        results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["padded", "packed", "causal"])
def test_flex_equals_reference(kind: str) -> None:
    """Distances beyond 4 share an entry. On CPUs it has no gradient; tests/system/test_gpu.py compares those."""
    q, k, v = (x[:, :, :7].detach() for x in _inputs())
    table = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    position = torch.arange(7)
    segment = (position >= torch.tensor([[2], [5], [0]])).long()
    visible = {
        "padded": position < torch.tensor([[7], [4], [1]]),
        "packed": segment[:, :, None] == segment[:, None, :],
        "causal": (position[:, None] >= position)[None],
    }[kind]
    by_definition = table[:, (position - position[:, None]).clamp(-4, 4) + 4][None]
    plain = attention_reference(q, k, v, by_definition, mask_bias(visible))
    torch.testing.assert_close(attend_flex(q, k, v, table, 4, block_mask(visible)), plain, atol=1e-5, rtol=1e-5)


def test_gradient_of_the_bias() -> None:
    q, k, v = _inputs()
    weight = torch.randn(3, 4, 7, 16, generator=torch.Generator().manual_seed(2))
    gradients = []
    for attention in (attention_reference, attend_fused, attend):
        bias = _bias("position").requires_grad_()
        gradients.append(torch.autograd.grad((attention(q, k, v, bias) * weight).sum(), bias)[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(gradients[2], gradients[0])


@pytest.mark.parametrize("attention", [attention_reference, attend_fused])
def test_bf16_is_within_rounding(attention) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (x.detach() for x in _inputs())
    out = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), _bias("both"))
    assert out.dtype == torch.bfloat16
    exact = attention_reference(q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float(), _bias("both"))
    torch.testing.assert_close(out.float(), exact, atol=0.01, rtol=0.01)


def test_masked_keys_have_no_effect() -> None:
    q, k, v = (x.detach() for x in _inputs())
    bias = _bias("mask")
    far = v.clone()
    far[1, :, 4:] = 1e6
    for attention in (attention_reference, attend_fused):
        assert torch.equal(attention(q, k, far, bias)[1], attention(q, k, v, bias)[1])


def test_fully_masked_rows_are_finite() -> None:
    q, k, v = (x.detach() for x in _inputs())
    for attention in (attention_reference, attend_fused):
        assert attention(q, k, v, torch.full((1, 1, 1, 9), MASKED)).isfinite().all()


@pytest.mark.parametrize("products", [attend_by_products, partial(attention_reference, compute=torch.bfloat16)])
@pytest.mark.parametrize("kind", ["none", "position", "mask", "both", "apart"])
def test_products_in_bf16_equal_the_definition_within_rounding(
    kind: str, products: Callable[..., torch.Tensor]
) -> None:
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in _inputs())
    weight = torch.randn(3, 4, 7, 16, generator=torch.Generator().manual_seed(2))
    results = []
    for attention in (attention_reference, products):
        bias = _bias("position" if kind == "apart" else kind)
        leaves = [q, k, v, bias.requires_grad_()] if kind in ("position", "apart") else [q, k, v]
        if kind != "apart":
            out = attention(q, k, v, bias)
        elif attention is attention_reference:
            out = attention(q, k, v, bias + _bias("mask"))
        else:
            out = attention(q, k, v, bias, _bias("mask"))
        results.append((out, *torch.autograd.grad((out.float() * weight).sum(), leaves)))
    for plain, narrow in zip(*results, strict=True):
        assert narrow.dtype == plain.dtype
        assert (narrow.float() - plain.float()).norm() < 0.02 * plain.float().norm()


def test_implementation_by_precision_on_a_cpu() -> None:
    q, k, v = (x.detach() for x in _inputs())
    narrow = [x.bfloat16() for x in (q, k, v)]
    bias, mask = _bias("position"), _bias("mask")
    assert torch.equal(attend(*narrow, bias, mask), attend_by_products(*narrow, bias, mask))
    assert torch.equal(attend(q, k, v, bias, mask), attend_fused(q, k, v, bias + mask))
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*narrow, bias, mask), attention_reference(*narrow, bias, mask, torch.bfloat16))
    assert torch.equal(compiled(q, k, v, bias, mask), attend_fused(q, k, v, bias + mask))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_skipping_keys_and_values_gives_the_same_result(dtype: torch.dtype, dropped: bool, masked: bool) -> None:
    """Outputs, and gradients of the query, both projections and the states."""
    generator = torch.Generator().manual_seed(0)
    B, H, Q, S, K, D = 3, 4, 2, 9, 16, 24
    shapes = (B, H, Q, K), (H * K, D), (H * K, D), (B, S, D)
    q, key, value, states = (torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes)
    kept = torch.randint(0, 2, (B, H, S, 1), generator=generator).to(dtype) / 0.5 if dropped else None
    mask = _bias("mask") if masked else None
    weight = torch.randn(B, H, Q, K, generator=generator)

    def by_keys_and_values(q, key, value, states):  # type: ignore[no-untyped-def]
        k, v = ((states @ matrix.T).unflatten(-1, (H, K)).transpose(1, 2) for matrix in (key, value))
        return attention_reference(q, k, v if kept is None else v * kept, mask)

    results = []
    for way, of in (
        (by_keys_and_values, torch.float32),
        (lambda q, key, value, states: attend_to_states(q, key, value, states, mask, kept), dtype),
    ):
        given = [x.to(dtype).to(of).requires_grad_() for x in (q, key, value, states)]
        out = way(*given)
        assert out.dtype == of
        results.append((out, *torch.autograd.grad((out * weight).sum(), given)))
    near = 1e-5 if dtype == torch.float32 else 0.02
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast.float(), plain, atol=near * float(plain.detach().abs().max()), rtol=near)
