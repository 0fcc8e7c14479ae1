"""Saved activations by the formulas of pipeline/cost/activations.py, compared with what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t5_pipeline.cost.activations import Microbatch, saved_activations
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.loss import output_loss, token_loss

GATED = T5Config(vocab_size=500, d_model=48, d_kv=8, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=5)
ORIGINAL = T5Config(
    vocab_size=500, d_model=48, d_kv=8, d_ff=80, num_layers=2, num_decoder_layers=3, num_heads=5,
    gated=False, activation="relu", tied=True,
)  # fmt: skip
UMT5 = T5Config(
    vocab_size=500, d_model=48, d_kv=8, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=5, model_type="umt5"
)


def saved(shape: T5Config, m: Microbatch) -> int:
    """Bytes of all storages that the forward pass saves, without those of parameters."""
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
        t5.to(torch.bfloat16 if m.bf16 and not m.fp32_weights else torch.float32)
    model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

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
def test_equal_to_autograd(shape: T5Config, how: dict[str, Any], dropout: bool, bf16: bool, recompute: bool) -> None:
    m = Microbatch(rows=3, inputs=26, targets=19, bf16=bf16, dropout=dropout, recompute=recompute, cpu=True, **how)
    assert saved_activations(shape, m).total == saved(shape, m)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("how", [{"prompt": 0}, {"prompt": 0, "packed": True}, {"prompt": 6}], ids=str)
def test_biases_in_every_layer(how: dict[str, Any], bf16: bool, recompute: bool) -> None:
    m = Microbatch(rows=3, inputs=26, targets=19, bf16=bf16, recompute=recompute, cpu=True, **how)
    assert saved_activations(UMT5, m).total == saved(UMT5, m)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL], ids=["gated", "original"])
@pytest.mark.parametrize("how", [{"prompt": 0}, {"prompt": 6}, {"prompt": 6, "padded": False}], ids=str)
def test_short_targets_without_keys_and_values(shape: T5Config, how: dict[str, Any], dropout: bool, bf16: bool) -> None:
    m = Microbatch(rows=3, inputs=26, targets=shape.d_kv // 2, bf16=bf16, dropout=dropout, cpu=True, **how)
    assert saved_activations(shape, m).total == saved(shape, m)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("targets", [19, 4])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL, UMT5], ids=["gated", "original", "umt5"])
def test_prompts_before_a_t5_in_fp32(shape: T5Config, targets: int, recompute: bool) -> None:
    """Probes: bf16 products copy the weights."""
    m = Microbatch(
        rows=3, inputs=26, targets=targets, prompt=6, bf16=True, recompute=recompute, fp32_weights=True, cpu=True
    )
    assert saved_activations(shape, m).total == saved(shape, m)


@pytest.mark.parametrize("how", [{"logits": "fp32"}, {"logits": "fp32", "prompt": 6}, {"logits": "whole", "prompt": 6}])
@pytest.mark.parametrize("shape", [GATED, ORIGINAL], ids=["gated", "original"])
def test_fp32_and_whole_logits(shape: T5Config, how: dict[str, Any]) -> None:
    m = Microbatch(rows=3, inputs=26, targets=19, cpu=True, **how)
    assert saved_activations(shape, m).total == saved(shape, m)


def test_copies_of_weights_do_not_grow_with_the_batch() -> None:
    one, two = (saved_activations(GATED, Microbatch(rows=rows, inputs=64, targets=16, cpu=True)) for rows in (8, 16))
    assert two.logits - one.logits == 8 * 16 * 2 * GATED.vocab_size
    assert one.encoder < two.encoder < 2 * one.encoder


def test_fused_kernels_save_less() -> None:
    """GPUs were not measured; they must not exceed the reference implementations."""
    for prompt in (0, 6):
        on_gpu, on_cpu = (
            saved_activations(GATED, Microbatch(8, 64, 16, prompt=prompt, cpu=cpu)) for cpu in (False, True)
        )
        assert on_gpu.total < on_cpu.total
