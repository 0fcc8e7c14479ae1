"""Watched folders of prompts that change while they are read, or cannot be read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from t5_pipeline.artifacts import kinds
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.serving.prompt_store import PromptStore, ReservedName
from tests.serving.served_world import write_prompt, write_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path)


@pytest.fixture
def store(world: Path) -> PromptStore:
    made = PromptStore.of(str(world / "model"), torch.zeros(1))
    made.load(str(world / "prompts"))
    return made


def digest(world: Path, name: str) -> str:
    return artifact_digest("prompt", world / "prompts" / name)


def test_a_prompt_that_is_replaced_while_the_server_starts_is_read_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    read = store.read

    def replaced(name: str, path: Path) -> object:
        found = read(name, path)
        if name == "labels":
            write_prompt(world, "labels", 77)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(store, "read", replaced)
        store.load(str(world / "prompts"))
    assert store.all()["labels"].digest != digest(world, "labels")
    assert len(store.look(str(world / "prompts")) + store.look(str(world / "prompts"))) == 1
    assert store.all()["labels"].digest == digest(world, "labels")


def test_the_rows_of_a_prompt_stay_while_its_file_is_overwritten(world: Path, store: PromptStore) -> None:
    new, served = write_prompt(world, "../new", 77), store.all()["labels"]
    before = served.rows_PD.clone()
    with (world / "prompts" / "labels" / "prompt.safetensors").open("r+b") as opened:
        opened.write((new / "prompt.safetensors").read_bytes())
    assert torch.equal(served.rows_PD, before)


def test_a_prompt_that_is_replaced_file_by_file_is_never_a_mixture(world: Path, store: PromptStore) -> None:
    folder, before = str(world / "prompts"), store.all()["labels"]
    task = before.info.task.model_copy(update={"inputs": "another template: {text}"})
    new = write_prompt(world, "../new", 77, task=task)
    for name in ("prompt.safetensors", "prompt.json"):
        assert store.all()["labels"] is before
        shutil.copy(new / name, world / "prompts" / "labels" / name)
        assert store.look(folder) == []
    assert store.look(folder) == [f"replaced prompt `labels` (digest {artifact_digest('prompt', new)[:12]})"]


def test_a_server_starts_without_the_prompts_that_cannot_be_read(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one bad prompt, which a running server only reports, would stop all others after a restart."""
    for name, change in (("foreign", {"base_model_digest": "f" * 64}), ("half", {}), ("cut", {})):
        write_prompt(world, name, 5, **change)
    (world / "prompts/half/prompt.safetensors").write_bytes(b"half")
    (world / "prompts/cut/prompt.json").write_text('{"format":')
    store, folder = PromptStore.of(str(world / "model"), torch.zeros(1)), str(world / "prompts")
    store.load(folder)
    assert list(store.all()) == ["free", "labels", "labels-2", "long"]
    assert store.unserved == ["cut", "foreign", "half"]
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") and line.endswith("; this prompt is not served") for line in lines)
    assert [name for line in lines for name in store.unserved if name in line] == store.unserved
    assert store.look(folder) == []
    assert capsys.readouterr().err == ""
    write_prompt(world, "half", 5)
    assert store.look(folder) == [f"added prompt `half` (digest {digest(world, 'half')[:12]})"]
    assert store.unserved == ["cut", "foreign"]


def test_a_server_does_not_start_without_any_prompt_or_with_one_named_like_its_t5(world: Path) -> None:
    with pytest.raises(ReservedName, match="`free` is the name of the T5"):
        PromptStore.of(str(world / "model"), torch.zeros(1), reserved="free").load(str(world / "prompts"))
    for path in (world / "prompts").glob("*/prompt.safetensors"):
        path.write_bytes(b"half")
    with pytest.raises(InputError, match=r"4 of 4 .*`free` \(\S+free/prompt\.safetensors: .*, `long` "):
        PromptStore.of(str(world / "model"), torch.zeros(1)).load(str(world / "prompts"))


@pytest.mark.parametrize(("forbidden", "warnings"), [("", 4), ("labels", 1)])
def test_prompts_that_may_not_be_read_for_a_while_are_still_served(
    world: Path, store: PromptStore, forbidden: str, warnings: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The folder may not be listed, or a prompt not be entered; the tests may run as root, who may do both."""
    stat, scandir, folder = os.stat, os.scandir, str(world / "prompts")

    def no_stat(path: object, **more: object) -> os.stat_result:
        if forbidden and str(path).startswith(f"{folder}/{forbidden}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)  # type: ignore[arg-type]

    def no_scandir(path: object = ".") -> object:
        if str(path) == f"{folder}/{forbidden}".rstrip("/"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", no_stat)
        patched.setattr(os, "scandir", no_scandir)
        assert store.look(folder) == store.look(folder) == []
    assert list(store.all()) == ["free", "labels", "labels-2", "long"]
    warned = capsys.readouterr().err
    assert warned.count("warning: prompt `labels`: ") == 1
    assert warned.count("\n") == warnings
    assert store.look(folder) == []


def test_a_prompt_whose_folder_is_removed_goes_also_if_a_request_replaced_it(world: Path, store: PromptStore) -> None:
    store.add(store.read("long", world / "prompts" / "free"))
    shutil.rmtree(world / "prompts" / "long")
    assert store.look(str(world / "prompts")) == ["removed prompt `long`"]


def test_a_prompt_is_read_again_when_its_permissions_change(
    world: Path, store: PromptStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`chmod` does not change the time of a file's content."""
    path = write_prompt(world, "new", 9)
    with monkeypatch.context() as patched:
        refused = InputError(f"{path}/prompt.json: cannot be read (Permission denied); check the path")
        patched.setattr(Prompt, "load", lambda path: (_ for _ in ()).throw(refused))
        assert store.look(str(world / "prompts")) == store.look(str(world / "prompts")) == []
    assert capsys.readouterr().err.count("Permission denied") == 1
    assert store.look(str(world / "prompts")) == [], "nothing has changed"
    (path / "prompt.json").chmod(0o640)
    assert store.look(str(world / "prompts")) == [f"added prompt `new` (digest {digest(world, 'new')[:12]})"]


def test_an_unexpected_error_of_one_prompt_does_not_keep_the_others_from_changing(
    world: Path, store: PromptStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a-new", "b-new"), 20):
        write_prompt(world, name, seed)
    read = kinds.artifact_digest

    def fails(kind: str, path: Path) -> str:
        if path.name == "a-new":
            raise RuntimeError("out of memory")
        return read(kind, path)

    with monkeypatch.context() as patched:
        patched.setattr("t5_pipeline.serving.prompt_store.artifact_digest", fails)
        assert [line[:20] for line in store.look(str(world / "prompts"))] == ["added prompt `b-new`"]
        assert store.look(str(world / "prompts")) == []
    assert capsys.readouterr().err == (
        "warning: prompt `a-new`: RuntimeError('out of memory'); this prompt is not served\n"
    )
    assert [line[:20] for line in store.look(str(world / "prompts"))] == ["added prompt `a-new`"]


def test_a_warning_about_a_damaged_prompt_says_what_is_served(
    world: Path, store: PromptStore, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompt(world, "new", 5)
    before = store.all()["labels"]
    for name in ("labels", "new"):
        (world / "prompts" / name / "prompt.safetensors").write_bytes(b"half")
    assert store.look(str(world / "prompts")) == store.look(str(world / "prompts")) == []
    new, replaced = capsys.readouterr().err.splitlines()
    assert replaced.endswith("run prompt_tune again to rebuild it; its previous version is still served")
    assert new.endswith("run prompt_tune again to rebuild it; this prompt is not served")
    assert store.all()["labels"] is before


def test_a_damaged_prompt_that_comes_back_is_reported_again(
    world: Path, store: PromptStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        path = write_prompt(world, "new", 5)
        (path / "prompt.safetensors").write_bytes(b"half")
        assert store.look(str(world / "prompts")) == store.look(str(world / "prompts")) == []
        assert capsys.readouterr().err.count("warning: ") == 1
        shutil.rmtree(path)
        assert store.look(str(world / "prompts")) == []


def test_a_damaged_version_that_is_moved_away_and_back_is_reported_again(
    world: Path, store: PromptStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Moving a directory does not change the times and inodes of its files."""
    folder, path = str(world / "prompts"), world / "prompts" / "labels"
    (path / "prompt.safetensors").write_bytes(b"half")
    assert store.look(folder) == store.look(folder) == []
    path.rename(world / "aside")
    assert store.look(folder) == ["removed prompt `labels`"]
    capsys.readouterr()
    (world / "aside").rename(path)
    assert store.look(folder) == []
    assert capsys.readouterr().err.endswith("; this prompt is not served\n")
    assert store.unserved == ["labels"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [f"label {i}" for i in range(8_000)]}, "the 8,000 labels in .*, of up to .* tokens to score"),
        ({"labels": ["a", "b " * 20_000]}, "the 2 labels in .*, of up to .* tokens to score"),
        ({"labels": ["a", "b " * 600_000]}, "prompt.json has .* bytes, and at most 1,048,576 are served"),
        ({"inputs": "{text}" * 101}, "`inputs` in .*prompt.json has 101 fields, and at most 100 are served"),
    ],
)
def test_a_prompt_that_makes_every_request_expensive_is_refused(
    world: Path, store: PromptStore, change: dict[str, object], words: str
) -> None:
    task = store.all()["labels"].info.task.model_copy(update=change)
    path = write_prompt(world, "labels", 0, task=task)
    with pytest.raises(InputError, match=f"^prompt `labels`: .*{words}"):
        store.read("labels", path)


def test_a_prompt_with_very_many_rows_is_refused(world: Path, store: PromptStore) -> None:
    """The encoder's attention takes memory in proportion to the square of rows and input."""
    with pytest.raises(InputError, match=r"^prompt `a`: has 1,025 rows, and at most 1,024 are served; train it with"):
        store.read("a", write_prompt(world, "a", 0, length=1025))
    assert len(store.read("a", write_prompt(world, "a", 0, length=1024)).rows_PD) == 1024
