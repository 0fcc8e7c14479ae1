"""Files of a soft prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.config.references import InputRef
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo, vote_group


@pytest.fixture
def prompt() -> Prompt:
    task = TaskConfig(
        name="mood", data="mood.jsonl", inputs="sentence: {text}", targets="{label}", labels=["bad", "good"]
    )
    info = PromptInfo(
        base_model="lm_adapt", base_model_digest="ab" * 32, tokenizer_digest="cd" * 32, task=task, sentinel="targets",
        prompt_length=5, width=8, max_input_length=512, max_target_length=16, prompt_init="class_labels", seed=3,
        step=30_000, scores={"accuracy": 0.875},
    )  # fmt: skip
    return Prompt(torch.randn(5, 8) * 1000, info)


def test_round_trip(prompt: Prompt, tmp_path: Path) -> None:
    prompt.save(tmp_path / "prompt")
    loaded = Prompt.load(tmp_path / "prompt")
    assert torch.equal(loaded.rows_PD, prompt.rows_PD)
    assert loaded.info == prompt.info
    assert sorted(path.name for path in (tmp_path / "prompt").iterdir()) == ["prompt.json", "prompt.safetensors"]


def test_a_loaded_prompt_stays_while_its_file_is_overwritten(prompt: Prompt, tmp_path: Path) -> None:
    """As by `cp`, which keeps the file and replaces its content."""
    prompt.save(tmp_path)
    loaded, file = Prompt.load(tmp_path), tmp_path / "prompt.safetensors"
    other = Prompt(prompt.rows_PD + 1, prompt.info)
    other.save(tmp_path / "other")
    with file.open("r+b") as opened:
        opened.write((tmp_path / "other" / "prompt.safetensors").read_bytes())
    assert torch.equal(loaded.rows_PD, prompt.rows_PD)
    assert torch.equal(Prompt.load(tmp_path).rows_PD, other.rows_PD)


def test_prompt_file_is_small(prompt: Prompt, tmp_path: Path) -> None:
    prompt.save(tmp_path)
    assert (tmp_path / "prompt.safetensors").stat().st_size < 5 * 8 * 4 + 200


def _edit(**changes: object) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "prompt.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "prompt.json").unlink(), r"prompt\.json: does not exist"),
        (lambda d: (d / "prompt.safetensors").unlink(), r"prompt\.safetensors: does not exist"),
        (lambda d: (d / "prompt.json").write_text("{,"), r"prompt\.json: is not valid JSON"),
        (lambda d: (d / "prompt.json").write_text("[]"), r"prompt\.json: the file: "),
        (_edit(format=7), "format: must be 1, not 7"),
        (_edit(color="red"), r"prompt\.json: color: unknown key"),
        (_edit(seed=-1), r"prompt\.json: seed: "),
        (_edit(task={"name": "x"}), r"prompt\.json: task\.data: is missing"),
        (_edit(prompt_length=6), r"says 6 rows of width 8.*use the file that belongs to it"),
        (lambda d: (d / "prompt.safetensors").write_bytes(b"x"), "not a complete safetensors file"),
        (lambda d: save_file({"rows": torch.ones(5, 8)}, d / "prompt.safetensors"), r"contains \['rows'\]"),
        (lambda d: save_file({"prompt": torch.ones(5, 8).half()}, d / "prompt.safetensors"), "float16"),
        (lambda d: save_file({"prompt": torch.full((5, 8), torch.nan)}, d / "prompt.safetensors"), "not finite"),
        (lambda d: save_file({"prompt": torch.full((5, 8), 3.4e38)}, d / "prompt.safetensors"), "not finite"),
    ],
)
def test_damage_is_reported_on_one_line(
    prompt: Prompt, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    prompt.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as raised:
        Prompt.load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rows_must_match_info(prompt: Prompt) -> None:
    with pytest.raises(ValueError, match="do not fit 5 × 8"):
        Prompt(torch.ones(4, 8), prompt.info)


def test_prompts_vote_with_those_of_the_same_method_only(prompt: Prompt, tmp_path: Path) -> None:
    artifact = Artifact(InputRef("prompt_tune", "seed=3"), tmp_path, "0" * 64)
    other = prompt.info.model_copy(update={"seed": 4, "step": 20_000, "scores": {}})
    alike = vote_group("prompt tuning", replace(artifact, origin=InputRef("prompt_tune", "seed=4")), other)
    assert vote_group("prompt tuning", artifact, prompt.info) == alike
    assert vote_group("multitask prompt tuning on 2 tasks", artifact, prompt.info) != alike
    faster = replace(artifact, origin=InputRef("prompt_tune", "learning_rate=0.1,seed=3"))
    assert vote_group("prompt tuning", faster, prompt.info) != alike
    again = other.model_copy(update={"base_model": "runs/demo/lm_adapt"})
    assert vote_group("prompt tuning", artifact, again) == alike, "the same T5 under another name"


def test_prompts_with_other_settings_of_training_do_not_vote(prompt: Prompt, tmp_path: Path) -> None:
    """prompt.json does not name the learning rate or the number of steps; the manifest beside it does."""

    def group(seed: int, rate: float, steps: int = 100) -> str:
        settings = {"seed": seed, "learning_rate": rate}
        made = Manifest(
            stage="prompt_tune", kind="prompt_tune", fingerprint="", parts={"settings": settings},
            settings=settings | {"steps": steps, "threads": seed}, started="", finished="", outputs={}, files={}, seconds=1.0,
        )  # fmt: skip
        artifact = Artifact(InputRef(path=f"prompts/{seed}"), tmp_path, "0" * 64, manifest=made)
        return vote_group("prompt tuning", artifact, prompt.info.model_copy(update={"seed": seed}))

    assert group(0, 0.3) == group(1, 0.3)
    assert len({group(0, 0.3), group(0, 0.03), group(0, 0.3, steps=200)}) == 3


def test_results_of_earlier_steps_have_other_settings(tmp_path: Path) -> None:
    """`model_tune` and `model_tune@50` have one manifest; at its last step they are the same."""
    made = Manifest(
        stage="model_tune", kind="model_tune", fingerprint="", parts={"settings": {"seed": 0}}, settings={"steps": 100},
        started="", finished="", outputs={}, files={}, seconds=1.0,
    )  # fmt: skip
    final = Artifact(InputRef("model_tune"), tmp_path, "0" * 64, manifest=made)
    at_50, at_100 = (replace(final, origin=InputRef("model_tune", step=step)) for step in (50, 100))
    assert at_50.settings_digest != final.settings_digest == at_100.settings_digest
