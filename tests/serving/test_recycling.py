"""Prompts mapped from one T5 to another: a rotated T5, another width, another vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.serving.recycling import linear_map, mlp_map
from tests.serving.test_exchange import D, P, own_logits, write_t5
from tests.tiny_run import Outcome, refused, t5_pipeline


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3)))[0]


def write_rotated(source: Path, directory: Path) -> None:
    """The same function on rotated hidden states: RMSNorm with scales of 1 commutes with a rotation."""
    t5, turn = load_t5(source), rotation(D)
    with torch.no_grad():
        for name, weight in t5.named_parameters():
            if name.endswith((".o.weight", ".wo.weight")):
                weight.copy_(turn.T @ weight)
            elif weight.dim() == 2 and weight.size(1) == D:
                weight.copy_(weight @ turn)
    directory.mkdir()
    write_model(directory, t5, Vocabulary.load(source), ModelMetadata())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/ and its prompt/; rotated/; wide/ with other weights and 48 dimensions; task.yaml with rows."""
    directory = tmp_path_factory.mktemp("recycling")
    vocabulary = write_t5(directory / "a", D, ModelMetadata())
    write_rotated(directory / "a", directory / "rotated")
    (directory / "wide").mkdir()
    wide = init_t5(replace(load_t5(directory / "a").shape, d_model=48), seed=6)
    write_model(directory / "wide", wide, vocabulary, ModelMetadata())
    rows = [{"text": f"file {i}", "label": "ab"[i % 2]} for i in range(12)]
    (directory / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "t", "data": str(directory), "inputs": "{text}", "targets": "{label}", "labels": ["a", "b"]}
    (directory / "task.yaml").write_text(json.dumps(task))
    info = PromptInfo(
        base_model="a", base_model_digest=artifact_digest("model", directory / "a"),
        tokenizer_digest=vocabulary.digest, sentinel="none", prompt_length=P, width=D, max_input_length=24,
        max_target_length=6, prompt_init="uniform", seed=0, step=10, scores={"accuracy": 0.75},
        task=TaskConfig.model_validate(task),
    )  # fmt: skip
    Prompt(torch.randn(P, D, generator=torch.Generator().manual_seed(0)) * 20, info).save(directory / "prompt")
    return directory


def recycled(world: Path, to: str, output: Path, *more: object) -> Outcome:
    models = ("--from-model", world / "a", "--to-model", world / to)
    return t5_pipeline("prompts", "recycle", world / "prompt", *models, "--output", output, *more)


def test_a_rotated_t5_answers_as_before(world: Path, tmp_path: Path) -> None:
    said = recycled(world, "rotated", tmp_path / "new", "--task", world / "task.yaml")
    assert said.code == 0, said.err
    old, new = Prompt.load(world / "prompt"), Prompt.load(tmp_path / "new")
    torch.testing.assert_close(new.rows_PD, old.rows_PD @ rotation(D), atol=1e-3, rtol=1e-4)
    mine = own_logits(world / "rotated", new.rows_PD)
    torch.testing.assert_close(mine, own_logits(world / "a", old.rows_PD), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(mine, own_logits(world / "rotated", old.rows_PD), atol=1e-2)
    assert new.info.base_model_digest == artifact_digest("model", world / "rotated")
    assert t5_pipeline("prompts", "verify", tmp_path / "new", "--model", world / "rotated").code == 0

    head, columns, *rows = [line.split() for line in said.out.splitlines()]
    pieces = len(Vocabulary.load(world / "a").names()) - 103  # without sentinels, padding, EOS and the unknown piece
    assert " ".join(head).endswith(f"new: linear map, fitted on {pieces} shared vocabulary pieces")
    assert columns == ["prompt", "accuracy"]
    scores = dict(rows)
    assert list(scores) == ["before", "linear", "mlp", "none", "random"]
    assert scores["linear"] == scores["before"]
    assert new.info.scores == {"accuracy": pytest.approx(float(scores["linear"]) / 100, abs=5e-4)}


def test_other_widths_are_mapped_and_padded(world: Path, tmp_path: Path) -> None:
    for mapping in ("linear", "mlp"):
        said = recycled(world, "wide", tmp_path / mapping, "--map", mapping)
        assert said.code == 0, said.err
        prompt = Prompt.load(tmp_path / mapping)
        assert tuple(prompt.rows_PD.shape) == (P, 48)
        assert prompt.info.prompt_init == f"recycled by the {mapping} map from a"


def test_maps_against_functions_that_they_can_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear map finds the held-out rows of a linear function; a network is better at a function that bends."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(400, 6, generator=random), torch.randn(6, 9, generator=random)
    torch.testing.assert_close(linear_map(x[:300], x[:300] @ weight, x[300:]), x[300:] @ weight, atol=1e-5, rtol=1e-5)
    bent = (x @ weight).abs()
    errors = [(fit(x[:300], bent[:300], x[300:]) - bent[300:]).square().mean() for fit in (linear_map, mlp_map)]
    assert errors[1] < errors[0] / 2
    monkeypatch.setattr("t5_pipeline.serving.recycling._STEPS", 2)
    assert torch.equal(mlp_map(x, bent, x[:2]), mlp_map(x, bent, x[:2])), "the same seed, the same rows"


def test_what_cannot_be_recycled_is_refused(world: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(world / "a")
    (tmp_path / "wide").mkdir()
    t5 = init_t5(replace(load_t5(world / "a").shape, d_model=160), seed=1)
    write_model(tmp_path / "wide", t5, vocabulary, ModelMetadata())
    info = Prompt.load(world / "prompt").info
    info = info.model_copy(update={"base_model_digest": artifact_digest("model", tmp_path / "wide"), "width": 160})
    Prompt(torch.ones(P, 160), info).save(tmp_path / "prompt")
    said = t5_pipeline("prompts", "recycle", tmp_path / "prompt", "--from-model", tmp_path / "wide", "--to-model",
                       world / "a", "--output", tmp_path / "x")  # fmt: skip
    refused(
        said, r".*shares only 297 pieces with that of --from-model, and a map needs 320; train a prompt on it instead"
    )
    said = t5_pipeline("prompts", "recycle", world / "prompt", "--from-model", world / "wide", "--to-model", world / "a",
                       "--output", tmp_path / "x")  # fmt: skip
    refused(
        said,
        r".*prompt: was trained on another T5 \(a, digest \w+\) than .*wide \(digest \w+\); use the T5 that it was .*",
    )
    assert not (tmp_path / "x").exists()
