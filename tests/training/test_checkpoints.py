"""Checkpoints come back as they were, or are passed over, or say what is wrong."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.training.checkpoints import Checkpoints

TENSORS = {
    "model/w": torch.randn(30, 40, generator=torch.Generator().manual_seed(0)),
    "model/turned": torch.arange(12.0).reshape(3, 4).t(),
    "optimizer/w/step": torch.tensor(7),
    "model/narrow": torch.tensor([1.5, -2.0]).bfloat16(),
    "meter": torch.zeros(0, 3, dtype=torch.float64),
}


def saved(directory: Path, *steps: int, fingerprint: str = "f") -> Checkpoints:
    checkpoints = Checkpoints(directory / "checkpoints", fingerprint, keep_last=3)
    for step in steps:
        checkpoints.save(step, TENSORS, {"elapsed_s": 0.1 + step})
    return checkpoints


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    latest = saved(tmp_path, 10, 20).latest()
    assert latest is not None
    assert (latest.step, latest.scalars) == (20, {"elapsed_s": 20.1})
    found = latest.tensors()
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_newest_of_no_later_step(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30)
    for at_most, expected in ((30, 30), (29, 20), (20, 20)):
        latest = checkpoints.latest(at_most)
        assert latest is not None
        assert latest.step == expected
    assert checkpoints.latest(9) is None


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert saved(tmp_path).latest() is None
    with pytest.raises(InputError, match="no checkpoint of step 5; there are: none"):
        saved(tmp_path).at(5)


def test_a_step_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of step 15; there are: 10, 2,000"):
        saved(tmp_path, 10, 2000).at(15)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    path = tmp_path / "checkpoints" / "step-00000020" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-7])
    else:
        # The last byte of state.json is a line end, which means nothing: flip the one before it.
        index = {"flip first": 0, "flip middle": len(content) // 2, "flip last": len(content) - 2}[damage]
        content[index] ^= 0x04
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 10
    [warning] = caplog.messages
    assert str(path) in warning
    with pytest.raises(InputError, match=name):
        checkpoints.at(20)


def test_when_none_is_intact_it_says_so_instead_of_starting_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-00000010" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoints.latest()


def test_a_checkpoint_of_other_settings_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    saved(tmp_path, 10, fingerprint="aaa")
    with pytest.raises(InputError, match=r"step-00000010.*fingerprint aaa, now bbb"):
        saved(tmp_path, fingerprint="bbb").latest()


def test_the_newest_and_the_kept_steps_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", keep_last=2, keep_steps=[20])
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, TENSORS, {})
    assert checkpoints.steps() == [20, 40, 50]
    checkpoints.discard_after(40)
    assert checkpoints.steps() == [20, 40]


def test_saving_a_step_again_replaces_it_and_sweeps_what_a_kill_left(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    leftover = tmp_path / "checkpoints" / ".step-00000020.1234.tmp"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    checkpoints.save(10, {"model/w": torch.ones(1)}, {})
    assert list(checkpoints.at(10).tensors()) == ["model/w"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_disk_that_is_full_leaves_the_older_ones_and_one_line(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match="step-00000020: cannot be written"):
            checkpoints.save(20, {"model/w": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert checkpoints.latest() is not None


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step-00000010"
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "tensors.safetensors"]
    assert json.loads((folder / "state.json").read_text())["step"] == 10
