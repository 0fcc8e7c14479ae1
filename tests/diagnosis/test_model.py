"""Diagnosis of T5s: an intact one, and copies that were broken on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.diagnose import diagnose
from t5_pipeline.diagnosis.findings import Check
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.model_metadata import ModelMetadata
from tests.diagnosis.conftest import SIZES, World
from tests.modeling.family import KINDS, Kind


def edit_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def edit_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def without_vocabulary(model: Path, world: World) -> None:
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()


def damaged_tokenizer(model: Path, world: World) -> None:
    (model / "tokenizer_config.json").write_text("{")


def wrong_pad(model: Path, world: World) -> None:
    edit_json(model / "config.json", pad_token_id=7)
    (model / "generation_config.json").unlink()


def too_few_rows(model: Path, world: World) -> None:
    edit_json(model / "config.json", vocab_size=128)

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("shared.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:128].clone()

    edit_weights(model, cut)


def nan_weights(model: Path, world: World) -> None:
    edit_weights(model, lambda tensors: tensors["shared.weight"][3].fill_(torch.nan))


def truncated(model: Path, world: World) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def says_tied(model: Path, world: World) -> None:
    edit_json(model / "config.json", tie_word_embeddings=True, scale_decoder_outputs=True)


def says_untied(model: Path, world: World) -> None:
    edit_weights(model, lambda tensors: tensors.pop("lm_head.weight"))


def other_vocabulary(model: Path, world: World) -> None:
    for file in world.other.iterdir():
        shutil.copy(file, model / file.name)


def larger_sizes(model: Path, world: World) -> None:
    edit_json(model / "config.json", d_ff=65)


def overflowing(model: Path, world: World) -> None:
    edit_weights(model, lambda tensors: tensors["decoder.final_layer_norm.weight"].fill_(3e38))


def another_kind(model: Path, world: World) -> None:
    edit_json(model / "config.json", model_type="bart")


def pickled(model: Path, world: World) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


# Change to a copy → name of the check that must be wrong, a part of its finding, a part of its fix.
BROKEN = {
    without_vocabulary: ("vocabulary", "contains no spiece.model", "copy the spiece.model"),
    damaged_tokenizer: ("vocabulary", "is not valid JSON", "fix it or give the spiece.model"),
    wrong_pad: ("special ids", "pad_token_id is 7", "trained with"),
    too_few_rows: ("embedding rows", "200 ids, but the embedding has 128 rows", "vocabulary that the model"),
    nan_weights: ("weights", "32 numbers of shared.weight are NaN or infinite", "fetch the model again"),
    truncated: ("weights", "is damaged", "fetch or publish it again"),
    says_tied: ("weights", "says they are tied", "tie_word_embeddings: false"),
    says_untied: ("weights", "no output matrix", "tie_word_embeddings: true"),
    other_vocabulary: ("text", "the vocabulary is another model's", "the vocabulary that it was trained with"),
    larger_sizes: ("weights", "of another shape", "fetch the model again"),
    overflowing: ("forward pass", "not finite in fp32", "its weights overflow"),
    another_kind: ("config", "'bart' is not supported", "use a"),
    pickled: ("weights", "only pickled weights", "convert them once"),
}


def found(checks: list[Check], name: str, state: str) -> Check:
    (check,) = [check for check in checks if (check.name, check.state) == (name, state)]
    return check


def test_an_intact_model(world: World) -> None:
    d = diagnose(str(world.model))
    assert d.ok
    assert {check.name: check.state for check in d.checks} == dict.fromkeys(
        ("embedding rows", "round trip", "weights", "first output", "text", "forward pass"), "ok"
    )
    facts = d.as_json()["facts"]
    assert facts["parameters"] == sum(p.numel() for p in load_t5(world.model).parameters())
    assert facts["output"] == {"tied": False, "scaled": False}
    assert facts["special ids"] == {"pad": 0, "eos": 1, "decoder start": 0}
    assert facts["sentinels"]["ids"][:2] == [199, 198]
    assert facts["sentinels"]["found"].endswith("tokenizer_config.json, above the pieces")
    assert facts["embedding rows"] == 256
    assert facts["normalizer"] == "nmt_nfkc"
    assert facts["digest"] == artifact_digest("model", world.model)
    assert facts["safe precisions"] == ["fp32", "bf16", "fp16"]
    assert facts["first output"]["kind"] == "adapted"
    assert set(d.uses) == {"lm_adapt", "sentinel", "prompt_tune"}


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_copy(change: Callable[[Path, World], None], world: World, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(world.model, copy)
    change(copy, world)
    d = diagnose(str(copy))
    name, finding, fix = BROKEN[change]
    assert not d.ok
    check = found(d.checks, name, "wrong")
    assert finding in check.found
    assert fix in check.fix
    assert [one.name for one in d.checks if one.state == "wrong"] == [name]


def test_span_corruption_and_untrained_weights(world: World, tmp_path: Path) -> None:
    """A T5 that answers with a sentinel is recognized as one of span corruption, and without training as untrained."""
    copy = tmp_path / "model"
    LoadedT5.init(SIZES, Vocabulary.load(world.model), seed=0).save(copy, ModelMetadata())
    d = diagnose(str(copy))
    assert d.ok
    assert "untrained" in found(d.checks, "text", "note").found
    assert "first output" not in [check.name for check in d.checks]

    def answer_with_a_sentinel(tensors: dict[str, torch.Tensor]) -> None:
        """The first output follows the embedding of the decoder's first input alone."""
        tensors["lm_head.weight"][199] = 100 * tensors["decoder.final_layer_norm.weight"]
        tensors["shared.weight"][0] = 1e4

    edit_weights(copy, answer_with_a_sentinel)
    d = diagnose(str(copy))
    assert d.facts["first output"][0]["kind"] == "span corruption"
    assert "run lm_adapt" in found(d.checks, "first output", "note").fix
    edit_json(copy / "t5_pipeline.json", sentinel="targets")
    found(diagnose(str(copy)).checks, "first output", "ok")
    task = {"name": "subj", "data": "rows", "inputs": "{a}", "targets": "{b}", "metrics": ["accuracy"]}
    tuned = {"max_input_length": 8, "max_target_length": 4, "trained": 1, "task": task, "seed": 0, "base_model": "m"}
    edit_json(copy / "t5_pipeline.json", tasks=[tuned])
    assert found(diagnose(str(copy)).checks, "first output", "ok").found == "fine-tuned on subj"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_each_kind(kind: Kind, tmp_path: Path) -> None:
    """With its own tokenizer, and weights that are sure of nothing."""
    model = kind.write_with_tokenizer(tmp_path / "model")
    edit_weights(model, lambda tensors: tensors["decoder.final_layer_norm.weight"].mul_(0.01))
    d = diagnose(str(model))
    assert d.ok, d.checks
    facts = d.as_json()["facts"]
    assert facts["architecture"]["model_type"] == kind.config.get("model_type", "t5")
    assert facts["output"]["tied"] is not kind.untied
    pad, eos = kind.special
    assert facts["special ids"] == {"pad": pad, "eos": eos, "decoder start": 0}
    vocabulary = Vocabulary.load(model)
    assert facts["sentinels"]["ids"] == list(vocabulary.sentinel_ids)
    assert vocabulary.sentinels == kind.sentinels
    assert facts["embedding rows"] >= facts["vocabulary"]["ids"] == vocabulary.size
    found(d.checks, "weights", "ok")
    english = kind is not KINDS["ProtT5"]
    assert ("forward pass" in [check.name for check in d.checks if check.state == "ok"]) is english
    assert d.uses.keys() == {"lm_adapt", "sentinel", "prompt_tune"}


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"model_type": "bart", "is_encoder_decoder": True}, "this pipeline has no layers of bart"),
        ({"model_type": "llama"}, "it is not an encoder-decoder"),
        ({"model_type": "longt5"}, "this pipeline has no local and transient-global attention"),
        ({"model_type": "switch_transformers"}, "this pipeline has no mixtures of experts"),
    ],
)
def test_an_unsupported_architecture_is_one_finding(config: dict[str, Any], missing: str, tmp_path: Path) -> None:
    """Its name, what is missing, and what would load."""
    KINDS["T5 1.1"].files(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    d = diagnose(str(tmp_path))
    (wrong,) = [check for check in d.checks if check.state == "wrong"]
    assert wrong.name == "config"
    assert wrong.found == f"{tmp_path}/config.json: model_type '{config['model_type']}' is not supported; {missing}"
    assert wrong.fix == ("use an encoder-decoder of the T5 family: model_type t5, mt5, umt5 (docs/models.md)")
