"""Inspection of prompts: list, show, verify and neighbors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.serving.package import write_package
from tests.serving.five_prompts import Place
from tests.serving.test_exchange import D, P, write_two_prompts
from tests.tiny_run import Tiny, t5_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_prompts(tmp_path_factory.mktemp("inspection"))


def test_list_and_show(world: Path) -> None:
    said = t5_pipeline("prompts", "list", world / "prompts")
    assert [line.split()[0] for line in said.out.splitlines()] == ["name", "one", "two"]
    assert said.out.count("accuracy 75.0") == 2
    rows = json.loads(t5_pipeline("prompts", "list", world / "prompts", "--json").out)
    assert [(row["name"], row["rows"], row["width"], row["sentinel"]) for row in rows] == [
        ("one", P, D, "targets"), ("two", P, D, "targets"),
    ]  # fmt: skip
    shown = t5_pipeline("prompts", "show", world / "prompts" / "one").out
    assert "5 rows × 32 = 160 numbers" in shown
    assert "two" not in shown


def test_verify(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "prompts", tmp_path / "prompts")
    verify = ["prompts", "verify", tmp_path / "prompts", "--model", world / "model"]
    said = t5_pipeline(*verify)
    assert (said.code, said.out) == (0, "one: ok\ntwo: ok\n")
    info = Prompt.load(tmp_path / "prompts" / "two").info.model_copy(update={"base_model_digest": "00" * 32})
    Prompt(torch.ones(P, D), info).save(tmp_path / "prompts" / "two")
    said = t5_pipeline(*verify)
    assert said.code == 2
    assert "one: ok\ntwo: " in said.out
    assert "was trained on another T5" in said.out


def test_verify_finds_a_changed_byte(tiny: Tiny) -> None:
    prompts = tiny.run / "prompt_tune"
    assert t5_pipeline("prompts", "verify", prompts).code == 0
    path = next(iter(sorted(prompts.glob("*/prompt/prompt.safetensors"))))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    said = t5_pipeline("prompts", "verify", prompts)
    assert said.code == 2
    assert said.out.count("is damaged (block ") == 1
    assert "1 of 6 prompts" in said.err


def test_verify_finds_a_changed_byte_of_a_package(world: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_package(world / "prompts" / "one", tmp_path / "one")
    path = tmp_path / "one" / "prompt.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    said = t5_pipeline("prompts", "verify", tmp_path)
    assert (said.code, said.out) == (
        2, f"one: {path}: is damaged (its checksum differs); push or pull the prompt again\n",
    )  # fmt: skip


def test_neighbors_of_a_prompt_made_of_vocabulary_rows(place: Place, tmp_path: Path) -> None:
    """A row that is a piece's own embedding, larger, is nearest to that piece."""
    table = load_t5(place.model).shared.weight.detach()
    info = place.loaded["tone"].info.model_copy(update={"prompt_length": 2})
    Prompt(3 * table[[40, 77]], info).save(tmp_path / "mine")
    said = t5_pipeline("prompts", "neighbors", tmp_path / "mine", "--model", place.model, "--top", 2, "--json")
    (rows,) = json.loads(said.out).values()
    names = place.vocabulary.names()
    assert [row[0] for row in rows] == [[names[40], 1.0], [names[77], 1.0]]
    plain = t5_pipeline("prompts", "neighbors", tmp_path / "mine", "--model", place.model)
    assert plain.out.splitlines()[1].split()[:3] == ["1", names[40], "1.000"]


def test_a_damaged_prompt_does_not_hide_the_others(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "prompts", tmp_path / "prompts")
    for name in ("broken", "lost"):
        shutil.copytree(world / "prompts" / "one", tmp_path / "prompts" / name)
    (tmp_path / "prompts/broken/prompt.json").write_text("{")
    (tmp_path / "prompts/lost/prompt.safetensors").unlink()
    said = t5_pipeline("prompts", "list", tmp_path / "prompts")
    assert said.code == 1
    assert [line.split()[:2] for line in said.out.splitlines()][1:] == [
        ["broken", "(damaged)"], ["lost", "(damaged)"], ["one", "one"], ["two", "two"],
    ]  # fmt: skip
    damaged = said.err.splitlines()
    assert damaged[0].startswith(f"damaged: broken: {tmp_path}/prompts/broken/prompt.json: ")
    assert damaged[1].startswith(f"damaged: lost: {tmp_path}/prompts/lost/prompt.safetensors: does not exist; ")
    said = t5_pipeline("prompts", "list", tmp_path / "prompts", "--json")
    assert (said.code, ["error" in row for row in json.loads(said.out)]) == (1, [True, True, False, False])
    shown = t5_pipeline("prompts", "show", tmp_path / "prompts")
    assert (shown.code, shown.out.count("5 rows × 32"), shown.err) == (1, 2, said.err)
    for command in ("list", "show"):
        alone = t5_pipeline("prompts", command, tmp_path / "prompts" / "broken")
        assert (alone.code, alone.out, alone.err.count("\n")) == (2, "", 1)

    export = ["--to", "npy", "--output", tmp_path / "out"]
    near = ["--model", world / "model"]
    for command in (["export", tmp_path / "prompts", *export], ["neighbors", tmp_path / "prompts", *near]):
        refused = t5_pipeline("prompts", *command)
        assert refused.code == 2
        assert re.search(r"2 of 4 prompts cannot be used: `broken` \(.+\), `lost` \(.+\); repair or move", refused.err)
    assert not (tmp_path / "out").exists()
    assert t5_pipeline("prompts", "export", tmp_path / "prompts/one", *export[:-1], tmp_path / "one.npy").code == 0


def test_a_name_that_a_prompt_cannot_have_is_reported(world: Path, tmp_path: Path) -> None:
    for name in ("one", "b\nc", "with blanks"):
        shutil.copytree(world / "prompts" / "one", tmp_path / "prompts" / name)
    said = t5_pipeline("prompts", "list", tmp_path / "prompts")
    assert (said.code, len(said.out.splitlines())) == (1, 4)
    assert "with blanks  one" in said.out
    assert re.search(r"^damaged: b\S+c: \S+: prompt 'b\S+c': must not contain control characters, .*name$", said.err)
