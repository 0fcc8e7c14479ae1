"""Prompts at a URL: mirrored, added, replaced and removed; uploads in progress and outages of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.serving.prompt_mirror import Mirror
from t5_pipeline.serving.prompt_store import PromptStore
from tests.serving.served_world import write_prompt, write_world


class Shared(MemoryFileSystem):
    """A store that can be out of reach or gone, and whose files can be forbidden."""

    protocol = "shared"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in the base class)
    pseudo_dirs = [""]  # noqa: RUF012
    problem: Exception | None = None
    forbidden = ""

    def get_file(self, rpath: str, *arguments: Any, **more: Any) -> Any:
        if Shared.forbidden and Shared.forbidden in rpath:
            raise PermissionError(f"access to {rpath} is denied")
        return super().get_file(rpath, *arguments, **more)

    def find(self, *arguments: Any, **more: Any) -> Any:
        if Shared.problem is not None:
            raise Shared.problem
        return super().find(*arguments, **more)


fsspec.register_implementation("shared", Shared, clobber=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Path]:
    """A T5 and prompts, which are also at shared://bucket/prompts (one as a stage publishes it)."""
    world = write_world(tmp_path)
    for name in ("labels", "free"):
        upload(world, name)
    upload(world, "long", "long/prompt")
    yield world
    Shared.store.clear()
    Shared.problem, Shared.forbidden = None, ""


def upload(
    world: Path, name: str, to: str = "", files: tuple[str, ...] = ("prompt.safetensors", "prompt.json")
) -> None:
    for file in files:
        with fsspec.open(f"shared://bucket/prompts/{to or name}/{file}", "wb") as out:
            out.write((world / "prompts" / name / file).read_bytes())


def test_prompts_of_a_url_are_added_replaced_and_removed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "shared://bucket/prompts"
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    directory = str(store.load(url))
    assert list(store.all()) == ["free", "labels", "long"]
    assert store.all()["long"].digest == artifact_digest("prompt", world / "prompts/long")
    assert store.look(directory) == []

    write_prompt(world, "labels", 77)
    upload(world, "labels")
    assert store.look(directory) == []  # perhaps still being uploaded
    assert store.look(directory)[0].startswith("replaced prompt `labels` (digest ")
    assert store.all()["labels"].digest == artifact_digest("prompt", world / "prompts/labels")

    upload(world, "labels-2", files=("prompt.json",))
    store.look(directory)
    upload(world, "labels-2")
    assert store.look(directory) == []  # the files changed since the last look
    assert store.look(directory)[0].startswith("added prompt `labels-2`")

    for problem in (ConnectionError("no route to the store"), FileNotFoundError("the repository does not exist")):
        Shared.problem = problem
        assert store.look(directory) == store.look(directory) == []
        Shared.problem = None
        assert len(store) == 4
        assert capsys.readouterr().err.count(str(problem)) == 1  # one warning
        assert store.look(directory) == []
    fsspec.filesystem("shared").rm("shared://bucket/prompts/long", recursive=True)
    assert store.look(directory) == ["removed prompt `long`"]
    # Nothing remains of earlier versions.
    assert len([path for path in Path(directory).iterdir() if not path.is_symlink()]) == len(store) == 3


def test_a_copy_that_a_cleaner_of_temporary_files_removes_is_fetched_again(world: Path) -> None:
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    directory = store.load("shared://bucket/prompts")
    removed = [path for path in directory.rglob("*") if path.is_file()]
    for path in removed:
        path.unlink()
    (directory / "long").resolve().rmdir()
    (directory / "free").unlink()
    changes = store.look(str(directory))
    assert [line.split(" (")[0] for line in changes] == [f"replaced prompt `{name}`" for name in store.all()]
    assert list(store.all()) == ["free", "labels", "long"]
    assert store.look(str(directory)) == []


def test_a_url_of_one_prompt_and_wrong_urls(world: Path) -> None:
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    store.load(f"file://{world}/prompts/free")
    assert list(store.all()) == ["free"]
    with pytest.raises(
        InputError, match=r"^--prompts: shared://bucket/nothing contains no prompt.json; check the URL$"
    ):
        store.load("shared://bucket/nothing")
    with pytest.raises(InputError, match=r"^--prompts: .*nosuch://x.*"):
        store.load("nosuch://x")


def test_keys_of_a_store_are_not_followed_out_of_the_copy(world: Path) -> None:
    """A store's keys may contain anything; folders below the URL are copied under their own names, and no others."""
    top = next(key for key in Shared.store if key.endswith("/labels/prompt.json")).removesuffix("/labels/prompt.json")
    for name in ("..", "../escape", "labels/../../escape", "a/../..", "../escape/prompt", ".hidden"):
        for file in ("prompt.json", "prompt.safetensors"):
            Shared.store[f"{top}/{name}/{file}"] = Shared.store[f"{top}/labels/{file}"]
    mirror = Mirror("shared://bucket/prompts")
    listed = fsspec.filesystem("shared").find(top, maxdepth=3)
    assert f"{top}/../escape/prompt.json" in listed
    before = {path.name for path in mirror.directory.parent.iterdir()}
    mirror.update()
    assert {path.name for path in mirror.directory.iterdir() if path.is_symlink()} == {"labels", "free", "long"}
    assert all(path.resolve().is_relative_to(mirror.directory) for path in mirror.directory.rglob("*"))
    assert not {path.name for path in mirror.directory.parent.iterdir() if path.name in (".hidden", "escape")} - before


def test_a_prompt_that_cannot_be_fetched_does_not_delay_the_others(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    directory = str(store.load("shared://bucket/prompts"))
    write_prompt(world, "labels", 77)
    upload(world, "labels")
    upload(world, "free", "new")
    fsspec.filesystem("shared").rm("shared://bucket/prompts/long", recursive=True)
    Shared.forbidden = "/labels/"
    changes = store.look(directory) + store.look(directory) + store.look(directory)
    assert [line.split(" (")[0] for line in changes] == ["removed prompt `long`", "added prompt `new`"]
    warned = capsys.readouterr().err
    assert warned.count("warning: prompt `labels`") == warned.count("warning") == 1
    assert warned.endswith("its previous version, if any, is still served\n")
    Shared.forbidden = ""
    assert store.look(directory)[0].startswith("replaced prompt `labels`")


def test_a_prompt_that_cannot_be_fetched_does_not_keep_a_server_from_starting(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shared.forbidden = "/labels/"
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    directory = str(store.load("shared://bucket/prompts"))
    assert (list(store.all()), store.unserved) == (["free", "long"], ["labels"])
    assert store.look(directory) == []
    assert capsys.readouterr().err.count("warning: prompt `labels`") == 1
    Shared.forbidden = ""
    assert [line.split(" (")[0] for line in store.look(directory)] == ["added prompt `labels`"]
    assert store.unserved == []


def test_a_prompt_named_prompt_does_not_hide_the_others(world: Path) -> None:
    """Nor one that is named like the last part of the URL."""
    for name in ("prompt", "prompts"):
        write_prompt(world, name, 5)
        upload(world, name)
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    store.load("shared://bucket/prompts")
    assert list(store.all()) == ["free", "labels", "long", "prompt", "prompts"]
