"""LoRA, (IA)³, prefix tuning and P-tuning by PEFT on T5s of different proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from t5_pipeline.config.tuning import PeftTuneConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.evaluation.decoding import Continuations, Decoding
from t5_pipeline.methods.peft import AdapterInfo, PeftT5, adapter_size
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, save_t5

# Heads that do not add up to the width, as in T5 1.1 Small (6 × 64 and 512), and a decoder deeper than the encoder.
SHAPES = {
    "even": T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4),
    "odd": T5Config(vocab_size=64, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_decoder_layers=3, num_heads=3),
}
INPUTS = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
TARGETS = torch.tensor([[9, 10, 1], [11, 1, 0]])


TASK = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}")
METHODS = {
    "prefix": {"method": "prefix_tuning"},
    "prefix network": {"method": "prefix_tuning", "hidden_size": 8},
    "p": {"method": "p_tuning"},
    "lora": {"method": "lora", "rank": 2, "alpha": 6},
    "lora on all": {"method": "lora", "rank": 1, "target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]},
    "ia3": {"method": "ia3"},
}


def settings(name: str) -> PeftTuneConfig:
    return PeftTuneConfig(model="m", task=TASK, steps=1, dropout=0.0, seed=1, virtual_tokens=3, **METHODS[name])


def info(c: PeftTuneConfig) -> AdapterInfo:
    return AdapterInfo(
        method=c.method, base_model="m", base_model_digest="d", tokenizer_digest="t", task=TASK, sentinel="none",
        **adapter_size(c), trained=1, max_input_length=8, max_target_length=8, seed=0, step=1,
    )  # fmt: skip


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_t5(init_t5(SHAPES[request.param], 0), tmp_path / "t5")
    return tmp_path / "t5"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_saved_adapter_gives_same_logits_in_peft(model: Path, tmp_path: Path, name: str) -> None:
    c = settings(name)
    adapted = PeftT5.start(model, c)
    before = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    plain = T5ForConditionalGeneration.from_pretrained(model)
    first, bare = adapted(INPUTS, TARGETS), logits_of(plain)
    # A prompt changes the answers at once; an update of the weights is 0 before the first step.
    assert ((first - bare).abs().max() > 1e-3) == (not c.target_modules)
    optimizer = torch.optim.SGD(adapted.trained.values(), lr=0.1)
    for _ in range(2):
        adapted(INPUTS, TARGETS).logsumexp(-1).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.trained.values())
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters() if name in before)

    adapted.eval()
    with torch.no_grad():
        logits = adapted(INPUTS, TARGETS)
        adapted.save(tmp_path / "adapter", info(c))
        again = PeftT5.load(tmp_path / "adapter", model).eval()(INPUTS, TARGETS)
        peft = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(model), str(tmp_path / "adapter"))
        theirs = logits_of(peft.eval())
    assert (logits - bare).abs().max() > 1e-3
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(theirs, logits)

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    if c.target_modules:
        with torch.no_grad():
            torch.testing.assert_close(logits_of(folded(plain, saved, c)), logits)
    else:  # only the prefix or prompt is saved, not the network that produced it
        (tensor,) = saved.values()
        shape = next(s for s in SHAPES.values() if s.num_heads == plain.config.num_heads)
        layers = 2 * shape.num_decoder_layers * shape.num_heads * shape.d_kv
        assert list(tensor.shape) == [3, layers if c.method == "prefix_tuning" else shape.d_model]


def logits_of(t5: Any) -> Tensor:
    shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), TARGETS[:, :-1]], dim=1)
    found: Tensor = t5(input_ids=INPUTS, attention_mask=(INPUTS != 0).long(), decoder_input_ids=shifted).logits
    return found


def folded(t5: T5ForConditionalGeneration, saved: dict[str, Tensor], c: PeftTuneConfig) -> T5ForConditionalGeneration:
    """The plain T5 with the update in its weights: W + alpha/r · B A, or rows and columns times the vectors."""
    for name, tensor in saved.items():
        module, _, kind = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        weight = t5.get_submodule(module).weight
        if kind == "lora_A":
            weight += c.alpha / c.rank * saved[name.replace("lora_A", "lora_B")] @ tensor
        elif kind == "ia3_l":  # [rows, 1], or [1, columns] before wo
            weight *= tensor
    return t5


def test_missing_projections_are_refused(model: Path) -> None:
    c = PeftTuneConfig(model="m", task=TASK, steps=1, method="lora", target_modules=["q", "wi"])
    with pytest.raises(InputError, match=r"target_modules: .*t5 has no projection wi; choose others"):
        PeftT5.start(model, c)


@pytest.mark.parametrize("name", ["prefix", "p", "lora"])
def test_incremental_decoding_matches_full_pass(model: Path, name: str) -> None:
    adapted = PeftT5.start(model, settings(name)).eval()
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
    PeftT5.start(model, settings("p")).save(tmp_path / "adapter", info(settings("p")))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: does not exist"):
        PeftT5.load(tmp_path / "adapter", model)


@torch.no_grad()
@pytest.mark.parametrize("name", ["prefix", "p", "lora", "ia3"])
def test_an_adapter_replaces_another(model: Path, tmp_path: Path, name: str) -> None:
    """As often as wanted, with the answers of the last one."""
    c = settings(name)
    for number in (0, 1):
        adapted = PeftT5.start(model, c)
        for tensor in adapted.trained.values():
            tensor.add_(0.1 * (number + 1))
        adapted.save(tmp_path / str(number), info(c))
    first, second = (PeftT5.load(tmp_path / str(n), model).eval()(INPUTS, TARGETS) for n in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)
    adapted = PeftT5.load(tmp_path / "0", model).eval()
    for number, expected in ((1, second), (0, first), (1, second)):
        adapted.replace(tmp_path / str(number))
        torch.testing.assert_close(adapted.eval()(INPUTS, TARGETS), expected)
    assert len(adapted.adapted.peft_config) == 1
