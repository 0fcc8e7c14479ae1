"""Prefix tuning and P-tuning by PEFT on T5s of different proportions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.decoding import Continuations, Decoding
from t5_pipeline.methods.peft import AdapterInfo, PeftMethod, PeftT5
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, save_t5

# Heads that do not add up to the width, as in T5 1.1 Small (6 × 64 and 512), and a decoder deeper than the encoder.
SHAPES = {
    "even": T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4),
    "odd": T5Config(vocab_size=64, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_decoder_layers=3, num_heads=3),
}
INPUTS = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
TARGETS = torch.tensor([[9, 10, 1], [11, 1, 0]])


def info(method: PeftMethod) -> AdapterInfo:
    task = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}")
    return AdapterInfo(
        method=method, base_model="m", base_model_digest="d", tokenizer_digest="t", task=task, sentinel="none",
        virtual_tokens=3, trained=1, max_input_length=8, max_target_length=8, seed=0, step=1,
    )  # fmt: skip


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_t5(init_t5(SHAPES[request.param], 0), tmp_path / "t5")
    return tmp_path / "t5"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("method", "hidden"), [("prefix_tuning", 0), ("prefix_tuning", 8), ("p_tuning", 0)])
def test_trains_and_saved_adapter_gives_same_logits_in_peft(
    model: Path, tmp_path: Path, method: PeftMethod, hidden: int
) -> None:
    adapted = PeftT5.start(model, method, 3, hidden, 0.0, seed=1)
    before = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    plain = T5ForConditionalGeneration.from_pretrained(model)(
        input_ids=INPUTS, attention_mask=INPUTS != 0, labels=TARGETS
    ).logits
    first = adapted(INPUTS, TARGETS)
    assert (first - plain).abs().max() > 1e-3
    optimizer = torch.optim.SGD(adapted.trained.values(), lr=0.1)
    first.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.trained.values())
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters() if name in before)

    adapted.eval()
    with torch.no_grad():
        logits = adapted(INPUTS, TARGETS)
        adapted.save(tmp_path / "adapter", info(method))
        again = PeftT5.load(tmp_path / "adapter", model).eval()(INPUTS, TARGETS)
        peft = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(model), str(tmp_path / "adapter"))
        shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), TARGETS[:, :-1]], dim=1)
        theirs = peft.eval()(input_ids=INPUTS, attention_mask=(INPUTS != 0).long(), decoder_input_ids=shifted).logits
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(theirs, logits)

    # Only the prefix or prompt is saved, not the network that produced it.
    (tensor,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    shape = next(s for s in SHAPES.values() if s.num_heads == again_heads(model))
    layers = 2 * shape.num_decoder_layers * shape.num_heads * shape.d_kv
    assert list(tensor.shape) == [3, layers if method == "prefix_tuning" else shape.d_model]


def again_heads(model: Path) -> int:
    heads: int = T5ForConditionalGeneration.from_pretrained(model).config.num_heads
    return heads


@pytest.mark.parametrize("method", ["prefix_tuning", "p_tuning"])
def test_incremental_decoding_matches_full_pass(model: Path, method: PeftMethod) -> None:
    adapted = PeftT5.start(model, method, 3, 0, 0.0, seed=1).eval()
    adapted.adapted.get_base_model().config.eos_token_id = 63
    with torch.no_grad():
        encoded, mask = adapted.encode(None, INPUTS)
        found = Decoding().decode(Continuations(adapted, encoded, mask), 5, range(2))
        ids = torch.zeros(2, 1, dtype=torch.long)
        for _ in range(found.size(1)):
            step = adapted.decode(ids, encoded, mask)[:, -1].argmax(-1)
            ids = torch.cat([ids, step[:, None]], dim=1)
    assert ids[:, 1:].tolist() == found.tolist()


def test_pickle_is_not_read(model: Path, tmp_path: Path) -> None:
    PeftT5.start(model, "p_tuning", 3, 0, 0.0, seed=1).save(tmp_path / "adapter", info("p_tuning"))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: does not exist"):
        PeftT5.load(tmp_path / "adapter", model)
