"""Loading, initializing and saving a T5; errors name every tensor that does not fit."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import check_untied, grow_vocabulary, init_t5, load_t5, save_t5
from t5_pipeline.modeling.safetensors_dir import read_shape
from t5_pipeline.modeling.t5 import T5
from tests.modeling.conftest import SHAPES, model_digest, tensors_digest, token_rows


def test_round_trip_is_bit_identical(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path)
    loaded = load_t5(tmp_path)
    assert loaded.shape == model.shape
    assert (
        model_digest(tmp_path)
        == tensors_digest(model.state_dict().items())
        == tensors_digest(loaded.state_dict().items())
    )
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())


@pytest.mark.parametrize("special", [SpecialTokens(), SpecialTokens(pad=0, eos=7, start=5)], ids=["T5", "other ids"])
def test_transformers_loads_published_models(shape: T5Config, special: SpecialTokens, tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    model = init_t5(dataclasses.replace(shape, special=special), seed=1).eval()
    save_t5(model, tmp_path)
    assert load_t5(tmp_path).shape == model.shape
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert (theirs.lm_head.weight is theirs.shared.weight) is model.shape.tied
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6], seed=5)
    logits = theirs(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=targets).logits
    torch.testing.assert_close(model(inputs, targets), logits, atol=1e-5, rtol=1e-5)
    for config in (theirs.config, theirs.generation_config):
        assert SpecialTokens(config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == special
    generated = theirs.generate(inputs, max_new_tokens=3, do_sample=False)
    assert generated[:, 0].tolist() == [special.start] * 2


def test_new_t5_1_1_of_transformers_5(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is tied and not scaled, although its config.json is that of every T5 1.1."""
    from transformers import T5Config as TheirConfig
    from transformers import T5ForConditionalGeneration

    theirs = T5ForConditionalGeneration(
        TheirConfig(
            vocab_size=96, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours = load_t5(tmp_path / "theirs").eval()
    assert (ours.shape.tied, ours.shape.scales_outputs) == (True, False)
    assert caplog.text.count("tied to the embedding") == 1
    assert read_shape(tmp_path / "theirs") == ours.shape
    assert caplog.text.count("tied to the embedding") == 1  # only those who load the weights are warned
    check_same_t5(ours, theirs, tmp_path / "ours")


@pytest.mark.parametrize(
    ("start", "change", "means"),
    [
        ("gated-gelu", {"feed_forward_proj": "gated-silu"}, (True, "gelu_new")),
        ("gated-gelu", {"feed_forward_proj": "relu"}, (True, "gelu_new")),
        ("gated-gelu", {"dense_act_fn": "gelu"}, (True, "gelu")),
        ("relu", {"dense_act_fn": "silu"}, (False, "silu")),
    ],
)
def test_an_activation_that_was_changed_in_one_place(
    start: str, change: dict[str, str], means: tuple[bool, str], tmp_path: Path
) -> None:
    """transformers writes the activation twice, and `from_pretrained(…, feed_forward_proj=…)` changes only one."""
    from transformers import T5Config as TheirConfig
    from transformers import T5ForConditionalGeneration

    sizes = {"vocab_size": 96, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    first = TheirConfig(**sizes, feed_forward_proj=start, decoder_start_token_id=0)
    T5ForConditionalGeneration(first).save_pretrained(tmp_path / "first")
    T5ForConditionalGeneration.from_pretrained(tmp_path / "first", **change).save_pretrained(tmp_path / "theirs")
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    ours = load_t5(tmp_path / "theirs").eval()
    assert (ours.shape.gated, ours.shape.activation) == means
    check_same_t5(ours, theirs, tmp_path / "ours")


def check_same_t5(ours: T5, theirs: Any, saved: Path) -> None:
    """Ours computes what transformers' T5 does, and does so when it is saved and read again by either."""
    inputs, targets = token_rows([5, 9], seed=4), token_rows([4, 6], seed=5)
    logits = theirs(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=targets).logits
    torch.testing.assert_close(ours(inputs, targets), logits, atol=1e-5, rtol=1e-5)
    save_t5(ours, saved)
    assert load_t5(saved).shape == ours.shape
    again = type(theirs).from_pretrained(saved).eval()
    torch.testing.assert_close(
        again(input_ids=inputs, labels=targets).logits, theirs(input_ids=inputs, labels=targets).logits
    )


def test_loads_models_of_transformers(model: T5, tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    save_t5(model, tmp_path / "ours")
    T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded = load_t5(tmp_path / "theirs")
    assert loaded.shape == model.shape
    assert model_digest(tmp_path / "theirs") == model_digest(tmp_path / "ours")


def test_sharded_files_give_the_same_model(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path / "one")
    save_t5(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    assert model_digest(tmp_path / "many") == model_digest(tmp_path / "one")
    assert tensors_digest(load_t5(tmp_path / "many").state_dict().items()) == model_digest(tmp_path / "one")


def test_saves_gathered_tensors_instead_of_the_models(model: T5, tmp_path: Path) -> None:
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        empty = T5(model.shape)
    save_t5(empty, tmp_path, tensors=gathered)
    assert model_digest(tmp_path) == tensors_digest(gathered.items())


def test_loading_does_not_change_the_files(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path)
    before = model_digest(tmp_path)
    with torch.no_grad():
        for parameter in load_t5(tmp_path).parameters():
            parameter.zero_()
    assert model_digest(tmp_path) == before


def test_load_in_another_dtype(model: T5, tmp_path: Path) -> None:
    save_t5(model.bfloat16(), tmp_path)
    assert {p.dtype for p in load_t5(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_t5(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_copies_of_the_embedding_and_the_unused_table_are_dropped(model: T5, tmp_path: Path) -> None:
    save_t5(model, tmp_path)
    before = model_digest(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in (
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        *(["lm_head.weight"] * model.shape.tied),
    ):
        tensors[name] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert model_digest(tmp_path) == before
    load_t5(tmp_path)


Damage = Callable[[Path], None]


def _edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def _only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _missing_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit_tensors(lambda t: t.pop("shared.weight")), "missing: shared.weight"),
        (_edit_tensors(lambda t: t.update(more=torch.ones(1))), "unexpected: more"),
        (
            _edit_tensors(lambda t: t.update({"lm_head.weight": torch.ones(5, 32)})),
            "of another shape: lm_head.weight [5, 32] instead of [96, 32]",
        ),
        (
            _edit_tensors(lambda t: t.update({"shared.weight": t["shared.weight"].to(torch.int8)})),
            "shared.weight is torch.int8; quantized weights are not supported",
        ),
        (_only_pickle, "pickled weights (pytorch_model.bin)"),
        (_missing_shard, "model-00001-of-00001.safetensors does not exist"),
        (lambda d: (d / "model.safetensors").unlink(), "contains a config.json but no weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b"not safetensors"), "is damaged"),
        (lambda d: (d / "config.json").unlink(), "contains neither config.json nor a T5X checkpoint"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: is not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json: contains a list"),
    ],
)
def test_load_errors_are_one_line(damage: Damage, message: str, tmp_path: Path) -> None:
    save_t5(init_t5(SHAPES["gated_untied"], seed=0), tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load_t5(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_untied_checkpoint_labeled_tied_is_rejected(tmp_path: Path) -> None:
    shape = SHAPES["gated_untied"]
    save_t5(init_t5(shape, seed=0), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.replace(shape, tied=True).to_config()))
    with pytest.raises(InputError, match=r"shared.weight differs from lm_head.weight.*tie_word_embeddings: false"):
        load_t5(tmp_path)


def test_long_lists_of_tensors_are_abbreviated(tmp_path: Path) -> None:
    shape = SHAPES["gated_untied"]
    save_t5(init_t5(shape, seed=0), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.replace(shape, num_layers=4).to_config()))
    with pytest.raises(InputError, match=r"missing: encoder\.block\.3\..* and 5 more"):
        load_t5(tmp_path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_t5(tmp_path / "nothing here")


def test_retied_heads_are_rejected(tmp_path: Path) -> None:
    model = init_t5(SHAPES["gated_untied"], seed=0)
    names = [name for name, _ in model.named_parameters()]
    check_untied(names, model)
    model.lm_head.weight = model.shared.weight
    with pytest.raises(RuntimeError, match=r"lm_head\.weight has been tied"):
        check_untied(names, model)
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach())  # another Parameter, the same memory
    with pytest.raises(RuntimeError, match=r"lm_head\.weight has been tied"):
        check_untied(names, model)


@pytest.mark.parametrize("rows", [90, 256])
def test_new_rows_begin_at_the_mean_and_the_rest_stays(model: T5, rows: int) -> None:
    """80 of 96 rows have been trained; the others are new, in the table and beyond it."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grown = grow_vocabulary(model, rows, first_new=80, start="mean", seed=0).eval()
    assert grown.shape == dataclasses.replace(model.shape, vocab_size=max(rows, 96))
    for name, tensor in grown.state_dict().items():
        if name in ("shared.weight", "lm_head.weight"):
            assert torch.equal(tensor[:80], before[name][:80])
            torch.testing.assert_close(tensor[80:], before[name][:80].mean(0).expand(max(rows, 96) - 80, -1))
        else:
            assert torch.equal(tensor, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    inputs, targets = token_rows([5, 9], seed=4, vocabulary=80), token_rows([4, 6], seed=5, vocabulary=80)
    torch.testing.assert_close(grown(inputs, targets)[..., :80], model(inputs, targets)[..., :80])
    check_untied(grown.state_dict(), grown)


def test_new_rows_as_normal_noise_have_the_spread_of_the_others() -> None:
    model = init_t5(dataclasses.replace(SHAPES["gated_untied"], vocab_size=400), seed=2)
    made = [grow_vocabulary(model, 2400, first_new=400, start="normal", seed=seed) for seed in (1, 1, 2)]
    for name in ("shared.weight", "lm_head.weight"):
        old, new = model.state_dict()[name], made[0].state_dict()[name][400:]
        torch.testing.assert_close(new.std(0), old.std(0), rtol=0.1, atol=0)
        assert ((new.mean(0) - old.mean(0)).abs() < 0.1 * old.std()).all()
        assert torch.equal(new, made[1].state_dict()[name][400:])
        assert not torch.equal(new, made[2].state_dict()[name][400:])


def test_initialization_scales_and_seeds() -> None:
    shape = T5Config(vocab_size=2000, d_model=128, d_kv=32, d_ff=512, num_layers=1, num_decoder_layers=1, num_heads=8)
    model = init_t5(shape, seed=3)
    state = model.state_dict()
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.2.DenseReluDense"
    expected = {
        "shared.weight": 1,
        "lm_head.weight": 128**-0.5,
        f"{attention}.q.weight": (128 * 32) ** -0.5,
        f"{attention}.k.weight": 128**-0.5,
        f"{attention}.o.weight": (8 * 32) ** -0.5,
        f"{feed_forward}.wi_1.weight": 128**-0.5,
        f"{feed_forward}.wo.weight": 512**-0.5,
    }
    for name, deviation in expected.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.02), name
    assert bool((state["encoder.final_layer_norm.weight"] == 1).all())
    assert tensors_digest(init_t5(shape, seed=3).state_dict().items()) == tensors_digest(state.items())
    assert tensors_digest(init_t5(shape, seed=4).state_dict().items()) != tensors_digest(state.items())
    model.eval()
    assert model(token_rows([4], 0), token_rows([5], 0)).std().item() == pytest.approx(1, abs=0.1)
