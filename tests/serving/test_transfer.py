"""Push and pull through directories, URLs and a hub on localhost."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.serving.package import FILES, check_package
from t5_pipeline.serving.transfer import pull, push
from tests.local_hub import Files, local_hub
from tests.serving.prompt_files import write_model_and_prompt
from tests.tiny_run import t5_pipeline


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_prompt(tmp_path_factory.mktemp("transfer")) / "prompt"


@pytest.mark.parametrize("place", ["DIR/pushed/tone", "memory://bucket/tone", "file://DIR/tone"])
def test_what_is_pulled_is_what_was_pushed(prompt: Path, tmp_path: Path, place: str) -> None:
    place, digest = place.replace("DIR", str(tmp_path)), artifact_digest("prompt", prompt)
    pushed = t5_pipeline("prompts", "push", prompt, place)
    assert (pushed.code, pushed.out) == (0, f"{place}: digest {digest[:12]}\n"), pushed.err
    pulled = t5_pipeline("prompts", "pull", place, tmp_path / "in" / "tone")
    assert (pulled.code, pulled.out) == (0, f"{tmp_path / 'in' / 'tone'}: digest {digest[:12]}\n"), pulled.err
    assert sorted(path.name for path in (tmp_path / "in" / "tone").iterdir()) == sorted(FILES)
    assert artifact_digest("prompt", tmp_path / "in" / "tone") == digest
    check_package(tmp_path / "in" / "tone")

    again = t5_pipeline("prompts", "push", prompt, place)
    assert (again.code, again.err) == (
        2, f"error: TO: {place} already exists; choose another {'URL' if '://' in place else 'path'}, or remove it\n"
    )  # fmt: skip
    assert t5_pipeline("prompts", "pull", place, tmp_path / "in" / "tone").err.startswith("error: DIR: ")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["tone"]
    fsspec.filesystem("memory").store.clear()


def test_the_hub(prompt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repositories: dict[str, dict[str, Files]] = {"lab/code": {"main": {"train.py": b""}}}
    digest = artifact_digest("prompt", prompt)
    with local_hub(repositories, monkeypatch) as endpoint:
        assert push(prompt, "lab/tone", endpoint) == digest
        files = repositories["lab/tone"]["main"]
        assert sorted(files) == sorted(FILES)
        files |= {"adapter_model.bin": pickle.dumps(prompt), "README.md": b"mine"}
        assert push(prompt, "lab/tone", endpoint) == digest
        assert files["README.md"] == b"mine", "the owner's card stays"
        assert pull("lab/tone", tmp_path / "tone", endpoint) == digest
        assert sorted(path.name for path in (tmp_path / "tone").iterdir()) == sorted(FILES), "no pickle"
        assert (tmp_path / "tone" / "README.md").read_text() == "mine"
        with pytest.raises(InputError, match="lab/code contains other files than a prompt"):
            push(prompt, "lab/code", endpoint)
        with pytest.raises(InputError, match=r"^FROM: cannot read lab/none on the hub") as raised:
            pull("lab/none", tmp_path / "none", endpoint)
        assert "\n" not in str(raised.value)
    (tmp_path / "lab").mkdir()
    push(prompt, "lab/tone", "http://127.0.0.1:9")
    assert (tmp_path / "lab" / "tone" / "prompt.json").is_file(), "`lab` is a directory"


def test_nothing_appears_if_a_package_is_damaged_or_missing(prompt: Path, tmp_path: Path) -> None:
    push(prompt, str(tmp_path / "there"))
    (tmp_path / "there" / "adapter_config.json").write_text("{}")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(pickle.dumps(prompt))
    for source, message in (
        ("there", rf"^FROM: {tmp_path}/there/adapter_config.json: is damaged"),
        ("pickled", r"^FROM: no prompt in .*pickled \(prompt.json is missing\)"),
        ("nowhere", "^FROM: no prompt in"),
    ):
        with pytest.raises(InputError, match=message):
            pull(str(tmp_path / source), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^FROM: cannot read nosuch://x"):
        pull("nosuch://x", tmp_path / "out")
    shutil.copytree(prompt, tmp_path / "cut")
    (tmp_path / "cut" / "prompt.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        push(tmp_path / "cut", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
