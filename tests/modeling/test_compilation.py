"""Compiled blocks, traced by torch.compile but run eagerly, so that tests need no compiler.

Compiled for real, and bit-identical between processes: tests/system/test_compile.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import SkipFrame

from t5_pipeline.modeling import compilation
from t5_pipeline.modeling.compilation import CompiledForward, use_compiler
from t5_pipeline.modeling.layers import gelu_new
from t5_pipeline.modeling.t5 import T5
from tests.modeling.conftest import SHAPES as MODELS
from tests.modeling.conftest import token_loss, token_rows


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "backend", "aot_eager")
    torch._dynamo.reset()
    compilation._problem.cache_clear()
    assert use_compiler("true", "cpu")


def losses(model: T5, shapes: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    found = []
    for inputs, targets in shapes:
        ids = token_rows(targets, seed=3)
        loss = token_loss(model(token_rows(inputs, seed=2), ids), ids)
        found += [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    return found


# With and without padding, with many and few targets: each has a graph of its own, which serves the later ones.
SHAPES = [
    ([9, 5, 14, 2], [4, 7, 3, 11]),
    ([30, 22], [3, 40]),
    ([6, 6, 6], [5, 5, 5]),
    ([12, 12], [20, 9]),
    ([8, 3], [5, 4]),
]
LATER = [([7, 3, 17], [8, 30, 5]), ([40, 40], [21, 9]), ([11, 12], [6, 6])]


@pytest.mark.parametrize("shape", [MODELS["gated_untied"]], ids=["gated_untied"])
def test_batches_of_all_sizes_share_a_graph(model: T5, caplog: pytest.LogCaptureFixture) -> None:
    """`fullgraph=True` would raise at a graph break."""
    model.set_dropout(0.1)
    batches = [token_rows(inputs, seed=2) for inputs, _ in [SHAPES[0], SHAPES[1], LATER[0]]]
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="t5-pipeline"):
        for ids in batches:
            model.set_execution()
            exact = model.encode(model.embed(ids), ids != 0)
            model.set_execution(compiled=True)
            torch.testing.assert_close(model.encode(model.embed(ids), ids != 0), exact, atol=1e-5, rtol=1e-5)
    assert caplog.text.count("compile: encoder_layers, graph") == 1


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compilation, "backend", "absent")
    compilation._problem.cache_clear()
    torch._dynamo.reset()
    assert not use_compiler("true", "cpu")
    (line,) = [record.message for record in caplog.records if record.name == "t5-pipeline"]
    assert line.startswith("compile: torch.compile does not work here (")
    assert line.endswith("); running without it")
    compilation._problem.cache_clear()
    assert not use_compiler("auto", "cpu")
    assert not use_compiler("false", "cuda")


def test_a_graph_that_the_compiler_skips_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As inductor skips bf16 on a T4 or V100."""

    def skips(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise SkipFrame("BF16 is not supported")

    def doubled(x: Tensor) -> Tensor:
        return x * 2

    monkeypatch.setattr(compilation, "backend", skips)
    forward = CompiledForward(doubled)
    for _ in range(2):
        assert torch.equal(forward(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    (line,) = [record.message for record in caplog.records if record.name == "t5-pipeline"]
    assert line == "compile: doubled: BF16 is not supported; running without torch.compile"


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_block_whose_backward_pass_cannot_be_compiled_runs_eagerly(
    dynamic: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forward_only(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    def fails(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise ValueError("out of resource: shared memory")

    def squared(x: Tensor) -> Tensor:
        return x * x * x.size(0)

    backend = aot_autograd(fw_compiler=forward_only, bw_compiler=fails)
    monkeypatch.setattr(compilation, "backend", backend)
    x = torch.ones(2, 3, requires_grad=True)
    CompiledForward(squared, dynamic=dynamic)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((2, 3), 4.0))
    (line,) = [record.message for record in caplog.records if record.name == "t5-pipeline"]
    assert line == "compile: squared: out of resource: shared memory; running without torch.compile"


@pytest.mark.parametrize(
    ("cache", "kept"), [("/home/ada/cache", "/home/ada/cache/compiled"), ("/home/a da/cache", None)]
)
def test_kernels_are_kept_where_the_compiler_finds_them(
    monkeypatch: pytest.MonkeyPatch, cache: str, kept: str | None
) -> None:
    monkeypatch.setenv("T5_PIPELINE_CACHE", cache)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compilation._keep_kernels()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == kept


@pytest.mark.engines
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_have_the_same_gradients(model: T5, recompute: bool, caplog: pytest.LogCaptureFixture) -> None:
    eager = losses(model, SHAPES)
    model.set_execution(recompute=recompute, compiled=True)
    with caplog.at_level(logging.INFO, logger="t5-pipeline"):
        compiled = losses(model, SHAPES)
        graphs = caplog.text.count("compile:")
        losses(model, LATER)
    for theirs, ours in zip(eager, compiled, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # With and without padding; few target tokens skip the keys of cross-attention.
    assert 2 <= graphs <= 6
    assert caplog.text.count("compile:") == graphs


@pytest.mark.parametrize("shape", [MODELS["gated_untied"]], ids=["gated_untied"])
@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_products_in_bf16_are_as_exact_as_eager_ones(model: T5, frozen: bool) -> None:
    """Their gradients are written by hand, unless the weights are frozen."""
    model.encoder.requires_grad_(not frozen)
    ids, targets = token_rows([9, 5, 14, 2], seed=2), token_rows([4, 7, 3, 11], seed=3)
    embedded = model.embed(ids).detach().requires_grad_()
    learned = [embedded, *(p for p in model.parameters() if p.requires_grad and p is not model.shared.weight)]

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            encoded = model.encode(embedded, ids != 0)
            hidden = model.decode(model.embed(targets), encoded, ids != 0)
        loss = token_loss(model.logits(hidden), targets)
        return [loss.detach(), *torch.autograd.grad(loss, learned)]

    exact, eager = gradients(torch.float32), gradients(torch.bfloat16)
    model.set_execution(compiled=True)
    for right, theirs, ours in zip(exact, eager, gradients(torch.bfloat16), strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - right).norm() <= 2.5 * (theirs - right).norm() + 0.001 * right.norm()


def test_the_compiled_activation_is_as_exact_as_the_eager_one() -> None:
    x = torch.linspace(-12, 12, 2001, requires_grad=True)
    compiled = torch.compile(gelu_new, backend="aot_eager", fullgraph=True)
    exact, eager, fast = _with_slope(gelu_new, x.double()), _with_slope(gelu_new, x), _with_slope(compiled, x)
    for right, theirs, ours in zip(exact, eager, fast, strict=True):
        assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max() < 1e-5


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    y = function(x)
    return y, torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.engines
@pytest.mark.parametrize("shape", [MODELS["gated_untied"]], ids=["gated_untied"])
def test_kernels_are_never_chosen_by_measuring_them(model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward and the backward pass of every kind of block: torch itself resets the option after each graph."""
    from torch._inductor import compile_fx, config

    found = []

    def inner(graph: torch.fx.GraphModule, *_: object, **__: object) -> Callable[..., Any]:
        found.append(config.deterministic)
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(compile_fx, "compile_fx", partial(compile_fx.compile_fx, inner_compile=inner))
    monkeypatch.setattr(compilation, "backend", "inductor")
    model.set_execution(compiled=True)
    losses(model, SHAPES[:1])
    assert len(found) >= 4
    assert all(found)


@pytest.mark.parametrize("shape", [MODELS["gated_untied"]], ids=["gated_untied"])
def test_every_thread_compiles_alike(model: T5, caplog: pytest.LogCaptureFixture) -> None:
    """A server compiles in a thread of its own."""
    model.set_execution(compiled=True)

    def encode() -> None:
        with torch.no_grad():
            for lengths in ([6, 5, 4, 3, 2, 6], [9, 5, 14, 2], [12, 3, 7]):  # the first as many rows as positions
                ids = token_rows(lengths, seed=2)
                model.encode(model.embed(ids), ids != 0)

    with caplog.at_level(logging.INFO, logger="t5-pipeline"), ThreadPoolExecutor(1) as thread:
        thread.submit(encode).result()
    assert caplog.text.count("compile: encoder_layers, graph") == 1
