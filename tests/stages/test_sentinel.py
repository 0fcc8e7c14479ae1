"""The sentinel path: tuning, scoring and decoding follow the artifact; vocabularies without sentinels gain them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.encode import encode_task
from t5_pipeline.data_prep.tokenizer.layout import Layout
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.model_metadata import read_metadata
from tests.tiny_run import Tiny, scores, stage


def published(tiny: Tiny, output: Path, variant: str, model: Path | None = None, **more: object) -> Path:
    flags = [word for key, value in more.items() for word in (f"--{key.replace('_', '-')}", value)]
    source = model or tiny.run / "pretrain"
    ended = stage("sentinel", "--model", source, "--variant", variant, "--threads", 1, "--output-dir", output, *flags)
    assert ended.code == 0, ended.err
    return output / "model"


def manifest(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return found


@pytest.mark.parametrize("variant", ["targets", "both"])
def test_tuning_and_scoring_follow_the_artifact(
    finished: Tiny, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the model names the variant. Checks the inputs of the encoder and the scorer."""
    from t5_pipeline.evaluation import held_out as scoring
    from t5_pipeline.training import task_rows

    model = published(finished, tmp_path / "sentinel", variant)
    assert read_metadata(model).sentinel == variant
    before = load_t5(finished.run / "pretrain" / "model").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_t5(model).state_dict().items())
    task = Prompt.load(next((finished.run / "prompt_tune").glob("*/prompt"))).info.task
    (tmp_path / "task.yaml").write_text(task.model_dump_json())

    seen: list[Any] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(encode_task(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(task_rows, "encode_task", watched)
    monkeypatch.setattr(scoring, "encode_task", watched)
    ended = stage(
        "prompt_tune", "--model", model, "--task", tmp_path / "task.yaml", "--prompt-length", 3, "--steps", 2,
        "--batch-size", 4, "--max-input-length", 32, "--precision", "fp32", "--threads", 1,
        "--output-dir", tmp_path / "prompt",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    prompt = Prompt.load(tmp_path / "prompt" / "prompt")
    assert prompt.info.sentinel == variant
    ended = stage(
        "evaluate", "--prompts", tmp_path / "prompt", "--limit", 6, "--precision", "fp32", "--threads", 1,
        "--scoring", "likelihood", "--output-dir", tmp_path / "scores",
    )  # fmt: skip
    assert ended.code == 0, ended.err

    vocabulary = Vocabulary.load(model)
    first = vocabulary.sentinel(0)
    assert len(seen) == 3  # training, validation and test rows
    for encoded in seen:
        assert {int(ids[0]) for ids in encoded.targets} == {first}
        assert {int(ids[-1]) for ids in encoded.inputs} == {1}
        assert {ids[-2] == first for ids in encoded.inputs if len(ids) > 1} == {variant == "both"}
        assert max(map(len, encoded.inputs)) <= 32
    for row in scores(tmp_path / "scores"):
        assert {sample["output"] for sample in row["samples"]} <= set(task.labels or ())


def test_a_sentinel_is_removed_only_if_the_model_expects_one(finished: Tiny) -> None:
    """A span-corruption T5 that begins its answer with <extra_id_0> is wrong, except on the sentinel path."""
    vocabulary = Vocabulary.load(finished.run / "pretrain" / "model")
    ids = [vocabulary.sentinel(0), *vocabulary.encode("the"), 1]
    assert vocabulary.decode(vocabulary.strip_sentinel(ids, "none")) == "<extra_id_0> the"
    for variant in ("targets", "both"):
        assert vocabulary.decode(vocabulary.strip_sentinel(ids, variant)) == "the"


@pytest.mark.parametrize("new_rows", ["mean", "normal"])
def test_a_vocabulary_without_sentinels_gains_100(finished: Tiny, tmp_path: Path, new_rows: str) -> None:
    """With spare embedding rows or without: new ids start from `new_rows`."""
    bare = tmp_path / "bare"
    shutil.copytree(finished.run / "pretrain" / "model", bare)
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink(missing_ok=True)
    vocabulary = Vocabulary.load(finished.run / "pretrain" / "model")
    vocabulary.with_sentinels(0).save(bare)
    pieces = vocabulary.size - vocabulary.sentinels

    model = published(finished, tmp_path / "made", "targets", bare, new_rows=new_rows)
    grown, own = load_t5(model), load_t5(bare)
    gained = Vocabulary.load(model)
    assert (gained.sentinels, gained.size) == (100, pieces + 100)
    assert grown.shape.vocab_size >= gained.rows
    assert manifest(tmp_path / "made")["facts"]["sentinels_gained"] == 100
    assert read_metadata(model).lineage[-1].gained == 100
    for name in ("shared.weight", "lm_head.weight"):
        old_VD, new_VD = own.state_dict()[name], grown.state_dict()[name]
        assert torch.equal(new_VD[:pieces], old_VD[:pieces])
        mean_D = old_VD[:pieces].mean(0)
        if new_rows == "mean":
            torch.testing.assert_close(new_VD[pieces:], mean_D.expand_as(new_VD[pieces:]))
        else:
            rows = new_VD[pieces : pieces + 100]
            assert len(rows.unique(dim=0)) == 100
            np.testing.assert_allclose(rows.std(0), old_VD[:pieces].std(0), rtol=0.5)
    # A model that has them gains none.
    published(finished, tmp_path / "again", "both", model)
    assert manifest(tmp_path / "again")["facts"]["sentinels_gained"] == 0


def test_added_tokens_keep_their_ids_and_rows(finished: Tiny, tmp_path: Path) -> None:
    """The sentinels go above them, and the T5 keeps this vocabulary whatever that of the text has."""
    bare, text = tmp_path / "bare", Vocabulary.load(finished.run / "pretrain" / "model")
    shutil.copytree(finished.run / "pretrain" / "model", bare)
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink(missing_ok=True)
    before = Vocabulary(text.model, Layout(("<ent>", "<b>"), text.special))
    before.save(bare)
    model = published(finished, tmp_path / "made", "targets", bare)
    after = Vocabulary.load(model)
    assert (after.added, after.sentinels) == (before.added, 100)
    assert after.encode("an <ent> here") == before.encode("an <ent> here")
    ids = list(after.added.values())
    assert torch.equal(load_t5(model).shared.weight[ids], load_t5(bare).shared.weight[ids])
    with pytest.raises(
        InputError, match="the added token <ent> does not have the same id in the vocabulary of the text"
    ):
        LoadedT5.load(model, "model", "", text)
    same = LoadedT5.load(model, "model", "", before)  # a text that was prepared before there were sentinels
    assert (same.vocabulary.sentinels, same.vocabulary.digest) == (100, after.digest)


def test_noise_of_new_rows_depends_on_the_seed(finished: Tiny, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(finished.run / "pretrain" / "model", bare)
    Vocabulary.load(bare).with_sentinels(0).save(bare)
    made = [
        load_t5(published(finished, tmp_path / f"made-{i}", "targets", bare, new_rows="normal", seed=seed))
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(made[0].shared.weight, made[1].shared.weight)
    assert not torch.equal(made[0].shared.weight, made[2].shared.weight)
