"""Diagnosis of prompts and adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from t5_pipeline.diagnosis.diagnose import diagnose
from t5_pipeline.diagnosis.findings import Diagnosis
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.serving.exchange import write_npy, write_peft
from tests.diagnosis.conftest import World
from tests.diagnosis.test_model import edit_json, edit_weights


def wrong(d: Diagnosis) -> str:
    (check,) = [check for check in d.checks if check.state == "wrong"]
    return f"{check.name}: {check.found}"


def test_an_intact_prompt(world: World) -> None:
    d = diagnose(str(world.prompt))
    assert d.ok, d.checks
    assert {check.name: check.state for check in d.checks}.items() >= {
        "files": "ok", "rows": "ok", "T5": "ok", "forward pass": "ok"
    }.items()  # fmt: skip
    assert d.facts["task"][0] == "kind"


@pytest.fixture
def prompt(world: World, tmp_path: Path) -> Path:
    shutil.copytree(world.prompt, tmp_path / "prompt")
    return tmp_path / "prompt"


def test_a_prompt_of_another_base(prompt: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(world.model, tmp_path / "other")
    edit_weights(tmp_path / "other", lambda tensors: tensors["shared.weight"][5].add_(1))
    d = diagnose(str(prompt), model=str(tmp_path / "other"))
    assert wrong(d).startswith("T5: it was trained on another T5")


def test_broken_prompts(prompt: Path) -> None:
    save_file({"prompt": torch.full((3, 32), torch.inf)}, prompt / "prompt.safetensors")
    assert "not finite" in wrong(diagnose(str(prompt)))
    save_file({"prompt": torch.zeros(4, 32)}, prompt / "prompt.safetensors")
    assert "prompt.json says 3 rows" in wrong(diagnose(str(prompt)))
    save_file({"prompt": torch.zeros(3, 32)}, prompt / "prompt.safetensors")
    d = diagnose(str(prompt))
    assert any("3 rows are zero" in check.found for check in d.checks if check.state == "note")
    (prompt / "prompt.safetensors").write_bytes(b"torn")
    assert wrong(diagnose(str(prompt))).startswith("files:")


@pytest.mark.parametrize("base", ["/nowhere/t5", "my-t5"])
def test_a_prompt_without_its_base(prompt: Path, base: str) -> None:
    edit_json(prompt / "prompt.json", base_model=base)
    d = diagnose(str(prompt))
    assert d.ok, d.checks
    assert any(check.state == "note" and "--model" in check.fix for check in d.checks)


def test_a_prompt_with_another_vocabulary(prompt: Path) -> None:
    edit_json(prompt / "prompt.json", tokenizer_digest="0" * 64)
    assert wrong(diagnose(str(prompt))).startswith("vocabulary:")


def test_adapters(world: World, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_peft(Prompt.load(world.prompt), adapter)
    d = diagnose(str(adapter), model=str(world.model))
    assert d.ok, d.checks
    assert d.what == "PEFT adapter"
    assert [check.state for check in diagnose(str(adapter)).checks] == ["ok", "note"]
    shutil.copytree(world.model, tmp_path / "other")
    edit_weights(tmp_path / "other", lambda tensors: tensors["shared.weight"][5].add_(1))
    assert "another T5" in wrong(diagnose(str(adapter), model=str(tmp_path / "other")))
    edit_json(adapter / "adapter_config.json", peft_type="LORA")
    assert "'LORA' is not a prompt" in wrong(diagnose(str(adapter)))


def test_an_adapter_by_one_of_its_files(world: World, tmp_path: Path) -> None:
    """As `prompts import` accepts it."""
    write_peft(Prompt.load(world.prompt), tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert diagnose(str(tmp_path / "adapter" / name)).what == "PEFT adapter"


def test_rows_of_numpy(world: World, tmp_path: Path) -> None:
    rows = tmp_path / "rows.npy"
    write_npy(Prompt.load(world.prompt), rows)
    d = diagnose(str(rows), model=str(world.model))
    assert d.ok, d.checks
    assert (d.what, {check.name: check.state for check in d.checks}) == (
        "rows of a prompt",
        {"files": "ok", "T5": "ok"},
    )
    assert [check.state for check in diagnose(str(rows)).checks] == ["ok", "note"]
    rows.rename(tmp_path / "checkpoint_30000")
    assert diagnose(str(tmp_path / "checkpoint_30000")).what == "rows of a prompt"
    np.save(rows, np.ones((3, 33), np.float32))
    assert "has rows of width 33" in wrong(diagnose(str(rows), model=str(world.model)))
    for broken in (np.ones(3, np.float32), np.full((3, 32), np.nan, np.float32)):
        np.save(rows, broken)
        assert wrong(diagnose(str(rows))).startswith("files: ")
    rows.write_bytes(b"torn")
    assert "is not a plain .npy array" in wrong(diagnose(str(rows)))


@pytest.mark.parametrize("form", ["npy", "peft"])
def test_rows_that_import_rejects_are_wrong(world: World, tmp_path: Path, form: str) -> None:
    """The largest numbers of fp32 are infinite in bf16."""
    prompt = Prompt.load(world.prompt)
    prompt.rows_PD[0, 0] = torch.finfo(torch.float32).max
    if form == "npy":
        write_npy(prompt, tmp_path / "rows.npy")
    else:
        write_peft(prompt, tmp_path / "rows")
    assert "contains non-finite numbers" in wrong(diagnose(str(tmp_path / ("rows.npy" if form == "npy" else "rows"))))
