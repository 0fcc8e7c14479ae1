"""Our T5 compared with transformers', and its code paths with one another."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from t5_pipeline.modeling import blocks
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.decoder_cache import DecoderCache
from t5_pipeline.modeling.layers import Attention, SharedDropout, _RMSNorm, rms_norm_reference
from t5_pipeline.modeling.load import save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.t5 import T5, shift_right, token_mask
from tests.modeling.conftest import SHAPES, token_loss, token_rows


def reference(model: T5, directory: Path) -> nn.Module:
    """transformers' T5 with the same weights, from a saved directory."""
    from transformers import T5ForConditionalGeneration

    save_t5(model, directory)
    return T5ForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()


@pytest.mark.parametrize("lengths", [[9, 5, 14, 2], [6, 6, 6, 6]], ids=["padded", "unpadded"])
def test_logits_and_gradients_equal_transformers(model: T5, tmp_path: Path, lengths: list[int]) -> None:
    theirs = reference(model, tmp_path)
    inputs, targets = token_rows(lengths, seed=2), token_rows([4, 7, 3, 11], seed=3)

    logits = model(inputs, targets)
    their_logits = theirs(
        input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=shift_right(targets)
    ).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)

    token_loss(logits, targets).backward()
    token_loss(their_logits, targets).backward()
    ours = dict(model.named_parameters())
    named = dict(theirs.named_parameters())
    assert ours.keys() == named.keys()
    for name, parameter in ours.items():
        difference = (parameter.grad - named[name].grad).norm() / named[name].grad.norm()
        assert difference < 1e-5, (name, difference)


def test_state_has_the_names_of_transformers(model: T5, tmp_path: Path) -> None:
    theirs = reference(model, tmp_path).state_dict()
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} | (
        {"lm_head.weight"} if model.shape.tied else set()
    )
    assert model.state_dict().keys() == theirs.keys() - aliases


@pytest.mark.parametrize("size", SIZES)
def test_a_model_on_the_meta_device_has_the_papers_parameter_count(size: str) -> None:
    with torch.device("meta"):
        model = T5(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == SIZES[size].parameters


def test_parameter_counts_equal_the_formula(shape: T5Config) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in T5(shape).parameters()) == shape.parameters


def test_padding_changes_nothing(model: T5) -> None:
    inputs, targets = token_rows([5], seed=4), token_rows([6], seed=5)
    padded = torch.nn.functional.pad(inputs, (0, 7)), torch.nn.functional.pad(targets, (0, 3))
    torch.testing.assert_close(model(*padded)[:, :6], model(inputs, targets), atol=1e-5, rtol=1e-5)
    assert token_mask(inputs) is None
    assert token_mask(padded[0]) is not None


def test_decoder_is_causal(model: T5) -> None:
    inputs, targets = token_rows([5], seed=4), token_rows([6], seed=5)
    changed = targets.clone()
    changed[0, 3] = 50
    torch.testing.assert_close(model(inputs, changed)[:, :4], model(inputs, targets)[:, :4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", [1, 3])
def test_decoder_cache_gives_the_same_result(model: T5, step: int) -> None:
    inputs, targets = token_rows([5, 9], seed=4), token_rows([12, 12], seed=5)
    mask = token_mask(inputs)
    encoded = model.encode(model.embed(inputs), mask)
    decoder_ids = shift_right(targets)
    whole = model.decode(model.embed(decoder_ids), encoded, mask)
    cache = DecoderCache()
    steps = [model.decode(model.embed(ids), encoded, mask, cache) for ids in decoder_ids.split(step, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_several_decoder_rows_share_one_encoded_input(model: T5) -> None:
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6, 3, 6, 5, 2], seed=5)
    mask = token_mask(inputs)
    encoded = model.encode(model.embed(inputs), mask)
    shared = model.decode(model.embed(shift_right(targets)), encoded, mask)
    repeated = model.decode(
        model.embed(shift_right(targets)), encoded.repeat_interleave(3, 0), mask.repeat_interleave(3, 0)
    )
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)


def test_packed_rows_equal_separate_ones_with_gradients(model: T5) -> None:
    input_lengths, target_lengths = [5, 3, 6], [4, 7, 2]
    inputs, targets = token_rows(input_lengths, seed=6), token_rows(target_lengths, seed=7)
    alone = model(inputs, targets)
    token_loss(alone, targets).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    def pack(rows: torch.Tensor, lengths: list[int], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
        segments = torch.arange(1, 4).repeat_interleave(torch.tensor(lengths))
        return tuple(nn.functional.pad(x, (0, padding))[None] for x in (ids, segments))  # type: ignore[return-value]

    packed_inputs, in_segments = pack(inputs, input_lengths, 2)
    packed_targets, out_segments = pack(targets, target_lengths, 3)
    packed = model(packed_inputs, packed_targets, (in_segments, out_segments))
    start = 0
    for row, length in enumerate(target_lengths):
        torch.testing.assert_close(packed[0, start : start + length], alone[row, :length], atol=1e-5, rtol=1e-5)
        start += length
    token_loss(packed, packed_targets).backward()
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() / expected[name].norm() < 1e-5, name


def test_dropout_is_shared_along_the_sequence() -> None:
    dropout = SharedDropout(0.5)
    torch.manual_seed(0)
    out = dropout(torch.ones(3, 8, 64))
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(out[0], out[1])
    assert torch.equal(dropout.eval()(out), out)


def test_attention_drops_a_key_for_all_queries_as_t5x_does() -> None:
    shape = T5Config(d_model=16, d_kv=8, num_heads=2, dropout_rate=0.5)
    attention = Attention(shape)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    out = attention(x, attention.keys_values(x), None)
    # T5X: the mask [B, H, 1, S] multiplies the attention weights.
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones(2, 2, 1, 5), 0.5)
    k, v = attention.keys_values(x)
    weights = (attention._split(attention.q(x)) @ k.transpose(-1, -2)).softmax(-1) * mask
    torch.testing.assert_close(out, attention.o((weights @ v).transpose(1, 2).flatten(2)), atol=1e-6, rtol=1e-5)


def test_dropout_only_in_training_and_repeatable(model: T5) -> None:
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6], seed=5)
    calm = model(inputs, targets)
    model.train()
    model.set_dropout(0.0)
    assert torch.equal(model(inputs, targets), calm)
    model.set_dropout(0.3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model(inputs, targets))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert model.shape.dropout_rate == 0.1


def test_bf16_by_autocast_and_by_weights(model: T5) -> None:
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6], seed=5)
    exact = model(inputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_autocast = model(inputs, targets)
    token_loss(by_autocast, targets).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    by_weights = copy.deepcopy(model).bfloat16()(inputs, targets)
    for logits in (by_autocast, by_weights):
        assert logits.dtype == torch.float32
        assert (logits - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 9)])
def test_keys_are_innermost_in_the_position_bias(model: T5, queries: int, keys: int) -> None:
    """The fused kernels of a GPU accept no other layout; torch would silently compute in fp32."""
    for stack in (model.encoder, model.decoder):
        bias = stack.block[0].layer[0].SelfAttention.position_bias(queries, keys)
        assert bias.shape == (1, model.shape.num_heads, queries, keys)
        assert bias.stride(-1) == 1


def loss_and_gradients(model: T5, bf16: bool) -> list[torch.Tensor]:
    """Losses and gradients of a batch with short targets and one with long targets, with the same dropout seed."""
    torch.manual_seed(0)
    found = []
    for targets in (token_rows([3, 4, 2, 4], seed=3), token_rows([14, 20, 17, 3], seed=3)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = token_loss(model(token_rows([9, 5, 14, 2], seed=2), targets), targets)
        found += [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    return found


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_activation_checkpointing_is_bit_identical(model: T5, bf16: bool) -> None:
    model.set_dropout(0.2)
    model.train()
    kept = loss_and_gradients(model, bf16)
    model.set_execution(recompute=True)
    for theirs, ours in zip(kept, loss_and_gradients(model, bf16), strict=True):
        assert torch.equal(theirs, ours)


def test_fast_implementations_equal_references(model: T5) -> None:
    model.set_dropout(0.2)
    model.train()
    fast = loss_and_gradients(model, bf16=False)
    model.set_execution(reference_ops=["attention", "norm"])
    for theirs, ours in zip(loss_and_gradients(model, bf16=False), fast, strict=True):
        assert (theirs - ours).norm() <= 1e-5 * theirs.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", [SHAPES["gated_untied"]], ids=["gated_untied"])
def test_flex_attention_in_a_frozen_t5(model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded and packed rows. On a CPU it has no gradient; cached decoding does not use it."""
    model.requires_grad_(False)
    inputs, targets = token_rows([9, 5, 14, 2], seed=2), token_rows([4, 7, 3, 11], seed=3)
    segments = tuple((torch.arange(ids.size(1)) >= 3).long().add(1).expand_as(ids) for ids in (inputs, targets))
    results = []
    for flex in (False, True):
        model.set_execution(flex=flex)
        embedded = model.embed(inputs)
        hidden = model.decode(model.embed(targets), model.encode(embedded, inputs != 0), inputs != 0)
        packed, encoded, cache = model(inputs, targets, segments), model.encode(embedded, None), DecoderCache()
        with monkeypatch.context() as patch:
            patch.delattr(blocks, "block_mask")
            steps = [model.decode(model.embed(targets[:, i : i + 1]), encoded, None, cache) for i in range(3)]
        results.append((hidden, packed, *steps))
    for plain, with_flex in zip(*results, strict=True):
        torch.testing.assert_close(with_flex, plain, atol=1e-4, rtol=1e-4)


def test_fast_implementations_in_bf16_are_within_rounding(model: T5) -> None:
    """Scores are rounded too, so the error is about twice that of the reference, which keeps them in fp32."""
    exact, fast = (loss_and_gradients(model, bf16) for bf16 in (False, True))
    model.set_execution(reference_ops=["attention", "norm"])
    plain = loss_and_gradients(model, bf16=True)
    assert not all(map(torch.equal, fast, plain))
    for right, theirs, ours in zip(exact, plain, fast, strict=True):
        assert (ours - right).norm() <= 2.5 * (theirs - right).norm() + 0.001 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [True, False])
def test_handwritten_norm_equals_reference_with_gradients(dtype: torch.dtype, learns: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 5, 64, generator=generator) * 30).to(dtype).requires_grad_()
    weight = torch.rand(64, generator=generator).requires_grad_(learns)
    upstream = torch.randn(3, 5, 64, generator=generator).bfloat16()
    results = []
    for norm in (rms_norm_reference, _RMSNorm.apply):
        out = norm(x, weight, 1e-6, torch.bfloat16)
        leaves = (x, weight) if learns else (x,)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for plain, written_out in zip(*results, strict=True):
        assert written_out.dtype == plain.dtype
        assert (written_out.float() - plain.float()).norm() < 0.005 * plain.float().norm()
