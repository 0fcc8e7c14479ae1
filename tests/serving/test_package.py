"""Prompt packages: complete, checked, and loaded by PEFT as they are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from t5_pipeline.artifacts.kinds import artifact_digest, named_prompts
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.package import FILES, check_package, write_package
from tests.serving.prompt_files import write_model_and_prompt

INPUTS_BS, TARGETS_BT = torch.tensor([[40, 9, 33, 1], [7, 1, 0, 0]]), torch.tensor([[11, 12, 1], [20, 1, 0]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, prompt/ and its package/."""
    directory = write_model_and_prompt(tmp_path_factory.mktemp("package"))
    (directory / "package").mkdir()
    write_package(directory / "prompt", directory / "package", tested="accuracy 86.5 %")
    return directory


def test_a_package_is_the_same_prompt(world: Path) -> None:
    assert sorted(path.name for path in (world / "package").iterdir()) == sorted(FILES)
    assert artifact_digest("prompt", world / "package") == artifact_digest("prompt", world / "prompt")
    assert (world / "package" / "prompt.json").read_bytes() == (world / "prompt" / "prompt.json").read_bytes()
    assert list(named_prompts(str(world / "package"), "DIR")) == ["package"]
    check_package(world / "package")


@torch.no_grad()
def test_peft_loads_it_as_it_is(world: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import T5ForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t5 = T5ForConditionalGeneration.from_pretrained(world / "model")
        loaded = peft.PeftModel.from_pretrained(t5, world / "package").eval()
    theirs = loaded(
        input_ids=INPUTS_BS, attention_mask=(INPUTS_BS != 0).long(), labels=TARGETS_BT
    ).logits  # the decoder's input is the shifted targets in both
    bank = PromptBank([Prompt.load(world / "package").rows_PD])
    ours = PromptedT5(load_t5(world / "model"), bank).eval()(torch.zeros(2, dtype=torch.long), INPUTS_BS, TARGETS_BT)
    real_BT = TARGETS_BT != 0
    assert torch.allclose(theirs[real_BT], ours[real_BT], atol=1e-4, rtol=1e-5)


def test_the_card(world: Path, tmp_path: Path) -> None:
    card = (world / "package" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"library_name": "peft", "tags": ["prompt-tuning", "t5"]}, "the base is a path, not a hub model"
    for fact in (
        "| inputs | say: {text} |",
        "| labels | a, b\\|c |",
        "accuracy 75.0",
        "accuracy 86.5 %",
        "5 rows × 32",
    ):
        assert fact in card
    (tmp_path / "edited").mkdir()
    write_package(world / "package", tmp_path / "edited")
    (tmp_path / "edited" / "README.md").write_text("mine")
    check_package(tmp_path / "edited")
    (tmp_path / "again").mkdir()
    write_package(tmp_path / "edited", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(("name", "change", "message"), [
    ("prompt.json", b"{}", "base_model"),
    ("prompt.safetensors", b"", "not a complete safetensors file"),
    ("adapter_config.json", b"{}", "adapter_config.json: is damaged"),
    ("adapter_model.safetensors", None, "adapter_model.safetensors: is damaged"),
    ("checksums.json", b'{"digest": "0", "files": {"../x": "0"}}', "files"),
    ("checksums.json", b'{"digest": "0", "files": {}}', "is another prompt"),
])  # fmt: skip
def test_damage_is_found(world: Path, tmp_path: Path, name: str, change: bytes | None, message: str) -> None:
    write_package(world / "package", tmp_path)
    if change is None:
        save_file({"prompt_embeddings": torch.zeros(5, 32)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(change)
    with pytest.raises(InputError, match=message):
        check_package(tmp_path)


def test_scores_do_not_change_the_digest(world: Path, tmp_path: Path) -> None:
    write_package(world / "package", tmp_path)
    record = json.loads((tmp_path / "prompt.json").read_text())
    (tmp_path / "prompt.json").write_text(json.dumps({**record, "scores": {}}))
    assert artifact_digest("prompt", tmp_path) == artifact_digest("prompt", world / "prompt")
