from __future__ import annotations

import os
from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import MAX_NAME, check_file_name, inside, refuse_links_out


@pytest.mark.parametrize("path", ["", ".", "..", "../victim", "a/../../victim", "/etc", "a\0b"])
def test_paths_that_leave_their_directory_are_rejected(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"^manifest.json: the path .* does not stay inside"):
        inside(tmp_path, path, "manifest.json")


def test_links_are_followed_before_the_check(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    for directory in (run / "stage" / "deep", victim):
        directory.mkdir(parents=True)
    (run / "near").symlink_to("stage")
    (tmp_path / "same").symlink_to(run)
    assert inside(tmp_path / "same", "near/deep", "x") == tmp_path / "same" / "near" / "deep"
    refuse_links_out(run, ["stage", "near", "missing"])
    (run / "loop").symlink_to("loop")
    (run / "stage" / "deep" / "out").symlink_to(victim)
    (run / "stage" / "log.txt").symlink_to(victim / "log.txt")
    for path in ("loop", "near/deep/out/x", "stage/log.txt"):
        with pytest.raises(InputError, match=f"{path} is a link that leads out of {run}"):
            inside(run, path, "x")
    with pytest.raises(InputError, match="is a link that leads out of"):
        refuse_links_out(run, ["stage"])
    (run / "fifo").mkdir()
    os.mkfifo(run / "fifo" / "log.txt")
    with pytest.raises(InputError, match=r"log\.txt: is neither a file nor a directory; remove it"):
        refuse_links_out(run, ["fifo"])


def test_files_that_vanish_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, whose lock is asked for later, saves a checkpoint and removes its temporary files."""
    (tmp_path / "stage").mkdir()
    monkeypatch.setattr(os, "walk", lambda top: [(str(top), [".step-1.tmp"], [".log.tmp"])])
    refuse_links_out(tmp_path, ["stage"])


@pytest.mark.parametrize("name", ["..", "a/b", "/abs", "a\\b", "a\nb", "\x1b[31m", "x" * (MAX_NAME + 1), "superseded"])
def test_names_of_directories(name: str) -> None:
    with pytest.raises(InputError, match=r"^recipe.yaml:3: .*; choose another name$"):
        check_file_name(name, "recipe.yaml:3", ["superseded"])
    check_file_name("t5-v1_1-base ü", "recipe.yaml:3")
