"""Every kind of T5 compared with transformers: logits, gradients, cached decoding, published models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t5_pipeline.modeling.decoder_cache import DecoderCache
from t5_pipeline.modeling.in_transformers import load_in_transformers
from t5_pipeline.modeling.load import load_t5, save_t5
from t5_pipeline.modeling.safetensors_dir import read_shape
from t5_pipeline.modeling.t5 import shift_right, token_mask
from tests.modeling.conftest import token_rows
from tests.modeling.family import KINDS, PAGE, Kind, page_with_table


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_equal_to_transformers(kind: Kind, tmp_path: Path) -> None:
    """A padded batch with rows longer than the farthest bucket of positions."""
    ours = load_t5(kind.write(tmp_path / "theirs")).eval()
    theirs = load_in_transformers(tmp_path / "theirs", attn_implementation="eager").eval()
    pad, eos = kind.special
    assert (ours.special.pad, ours.special.eos, ours.special.start) == (pad, eos, 0)
    inputs, targets = (token_rows(lengths, 2, eos=eos, pad=pad) for lengths in ([30, 5, 17], [19, 3, 8]))
    their_inputs = {"input_ids": inputs, "attention_mask": (inputs != pad).long()}

    logits = ours(inputs, targets)
    their_logits = theirs(**their_inputs, decoder_input_ids=shift_right(targets)).logits
    torch.testing.assert_close(logits, their_logits, atol=5e-5, rtol=1e-5)

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits * weights).sum().backward()
    (their_logits * weights).sum().backward()
    named = dict(theirs.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == named.keys()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - named[name].grad).norm() <= 1e-5 * named[name].grad.norm(), name

    with torch.no_grad():
        mask, cache = token_mask(inputs, pad), DecoderCache()
        encoded = ours.encode(ours.embed(inputs), mask)
        steps = [ours.decode(ours.embed(ids), encoded, mask, cache) for ids in shift_right(targets).split(1, dim=1)]
        torch.testing.assert_close(ours.logits(torch.cat(steps, 1)), their_logits.detach(), atol=5e-5, rtol=1e-5)

        save_t5(ours, tmp_path / "published")
        assert read_shape(tmp_path / "published") == ours.shape
        again = load_in_transformers(tmp_path / "published", attn_implementation="eager").eval()
        assert type(again) is type(theirs)
        published = again(**their_inputs, decoder_input_ids=shift_right(targets)).logits
        torch.testing.assert_close(published, their_logits.detach(), atol=5e-5, rtol=1e-5)


def test_transformers_alone_scales_every_umt5(tmp_path: Path) -> None:
    """Why `load_in_transformers` sets a flag, and what docs/models.md says about it."""
    from transformers import AutoModelForSeq2SeqLM

    ours = load_t5(KINDS["umT5"].write(tmp_path)).eval()
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6], seed=5)
    scaled = theirs(input_ids=inputs, attention_mask=inputs != 0, decoder_input_ids=shift_right(targets)).logits
    torch.testing.assert_close(ours(inputs, targets), scaled * 16**0.5, atol=5e-5, rtol=1e-5)


def test_the_page_has_the_current_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page), "run python -m tests.modeling.family"
    assert all(name in page for name in KINDS)
