"""Bytes that autograd keeps, by the formulas of pipeline/cost/activations.py and as autograd itself counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t5_pipeline.cost.activations import Microbatch, kept
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.loss import output_loss, token_loss

GATED = T5Config(vocab_size=500, d_model=48, d_kv=8, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=5)
ORIGINAL = T5Config(
    vocab_size=500, d_model=48, d_kv=8, d_ff=80, num_layers=2, num_decoder_layers=3, num_heads=5,
    gated=False, activation="relu", tied=True,
)  # fmt: skip


def saved(shape: T5Config, m: Microbatch) -> int:
    """Bytes of all storages that the forward pass saves, those of parameters apart."""
    t5 = init_t5(shape, seed=0)
    t5.set_dropout(0.1 if m.dropout else 0.0)
    t5.set_execution(recompute=m.recompute)
    inputs_BS = torch.full((m.rows, m.inputs - m.prompt), 7)
    targets_BT = torch.full((m.rows, m.targets), 7)
    segments = None
    if m.packed:
        segments = torch.ones_like(inputs_BS), torch.ones_like(targets_BT)
    elif m.padded:
        inputs_BS[0, -3:] = 0
    model: Any = t5
    if m.frozen:
        model = PromptedT5(t5, PromptBank([torch.zeros(m.prompt, shape.d_model)]))
        t5.to(torch.bfloat16 if m.bf16 else torch.float32)
    model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Tensor] = {}  # holding the tensors: a freed address would be given out again

    def pack(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=m.bf16),
    ):
        if m.frozen:
            hidden_BTD = model.predict(torch.zeros(m.rows, dtype=torch.long), inputs_BS, targets_BT)
        else:
            hidden_BTD = model.predict(inputs_BS, targets_BT, segments)
        if m.logits == "whole":
            token_loss(model.logits(hidden_BTD), targets_BT, 1e-4)
        else:
            hidden_BTD, weight_VD = model.before_logits(hidden_BTD)
            output_loss(hidden_BTD, weight_VD, targets_BT, 1e-4, m.logits)
    return sum(t.untyped_storage().nbytes() for address, t in storages.items() if address not in parameters)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL], ids=["gated", "original"])
@pytest.mark.parametrize(
    "how",
    [{"prompt": 0}, {"prompt": 0, "padded": False}, {"prompt": 0, "packed": True}, {"prompt": 6}, {"prompt": 6, "padded": False}],
    ids=str,
)  # fmt: skip
def test_to_the_byte(shape: T5Config, how: dict[str, Any], dropout: bool, bf16: bool, recompute: bool) -> None:
    """Where blocks are recomputed, what they are given."""
    m = Microbatch(rows=3, inputs=26, targets=19, bf16=bf16, dropout=dropout, recompute=recompute, cpu=True, **how)
    assert kept(shape, m).total == saved(shape, m)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL], ids=["gated", "original"])
@pytest.mark.parametrize("how", [{"prompt": 0}, {"prompt": 6}, {"prompt": 6, "padded": False}], ids=str)
def test_targets_so_short_that_cross_attention_makes_no_keys(
    shape: T5Config, how: dict[str, Any], dropout: bool, bf16: bool
) -> None:
    m = Microbatch(rows=3, inputs=26, targets=shape.d_kv // 2, bf16=bf16, dropout=dropout, cpu=True, **how)
    assert kept(shape, m).total == saved(shape, m)


@pytest.mark.parametrize("how", [{"logits": "fp32"}, {"logits": "fp32", "prompt": 6}, {"logits": "whole", "prompt": 6}])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL], ids=["gated", "original"])
def test_logits_in_fp32_and_whole(shape: T5Config, how: dict[str, Any]) -> None:
    m = Microbatch(rows=3, inputs=26, targets=19, cpu=True, **how)
    assert kept(shape, m).total == saved(shape, m)


def test_what_grows_with_the_batch_and_what_does_not() -> None:
    """Copies of the weights in bf16 do not: twice the rows are less than twice the bytes."""
    one, two = (kept(GATED, Microbatch(rows=rows, inputs=64, targets=16, cpu=True)) for rows in (8, 16))
    assert two.logits == 2 * one.logits
    assert one.encoder < two.encoder < 2 * one.encoder


def test_fused_kernels_keep_less() -> None:
    """Of a GPU nothing was measured; it must at least never exceed what the plain definitions keep."""
    for prompt in (0, 6):
        on_gpu, on_cpu = (kept(GATED, Microbatch(8, 64, 16, prompt=prompt, cpu=cpu)) for cpu in (False, True))
        assert on_gpu.total < on_cpu.total
