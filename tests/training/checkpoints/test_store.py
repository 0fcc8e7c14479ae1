"""Checkpoints are read back unchanged, or skipped as damaged, or refused with the reason."""

from __future__ import annotations

import errno
import itertools
import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.training.checkpoints import store
from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.checkpoints.tensor_shards import TensorShard, assemble, share
from t5_pipeline.training.distributed.collectives import HostCollectives

TENSORS = {
    "model/w": torch.randn(30, 40, generator=torch.Generator().manual_seed(0)),
    "model/turned": torch.arange(12.0).reshape(3, 4).t(),
    "optimizer/w/step": torch.tensor(7),
    "model/narrow": torch.tensor([1.5, -2.0]).bfloat16(),
    "meter": torch.zeros(0, 3, dtype=torch.float64),
}
SHARDS = [TensorShard.whole(name, tensor) for name, tensor in TENSORS.items()]


def saved(directory: Path, *steps: int, fingerprint: str = "f", **keep: Any) -> Checkpoints:
    checkpoints = Checkpoints(directory / "checkpoints", fingerprint, **{"keep_last": 3, **keep})
    for step in steps:
        checkpoints.save(step, SHARDS, {"elapsed_s": 0.1 + step})
    checkpoints.wait()
    return checkpoints


def test_saved_tensors_are_read_back(tmp_path: Path) -> None:
    latest = saved(tmp_path, 10, 20).latest()
    assert latest is not None
    assert (latest.step, latest.scalars) == (20, {"elapsed_s": 20.1})
    found = latest.tensors()
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape == latest.shape(name)
        assert torch.equal(found[name], tensor)
    assert latest.tensors("model/").keys() == {"w", "turned", "narrow"}


class Ring(HostCollectives):
    """HostCollectives between threads of one process, each in place of a process."""

    def __init__(self, rank: int, world: int, shared: dict[str, Any]) -> None:
        self.rank, self.world, self.shared = rank, world, shared

    def all_reduce_max(self, number: int) -> int:
        self.shared["said"][self.rank] = number
        self.shared["barrier"].wait()
        found = max(self.shared["said"])
        self.shared["barrier"].wait()
        return int(found)

    def broadcast(self, number: int) -> int:
        return self.all_reduce_max(number if self.rank == 0 else -1)


def together(world: int, directory: Path) -> list[Checkpoints]:
    shared = {"said": [0] * world, "barrier": threading.Barrier(world)}
    return [Checkpoints(directory, "f", control_group=Ring(rank, world, shared)) for rank in range(world)]


def errors_of_two(directory: Path, **options: Any) -> dict[int, str]:
    """The errors of two processes that save step 2, by rank."""
    said: dict[int, str] = {}

    def write(rank: int, checkpoints: Checkpoints) -> None:
        try:
            checkpoints.save(2, SHARDS, {}, **options)
            checkpoints.wait()
        except InputError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=write, args=each) for each in enumerate(together(2, directory))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return said


@given(cuts=st.lists(st.integers(0, 1200), max_size=6), reads=st.lists(st.integers(0, 1200), min_size=2, max_size=2))
def test_any_slice_of_a_tensor_that_was_saved_in_shards(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], reads: list[int]
) -> None:
    """For any sharding at saving and at reading."""
    directory = tmp_path_factory.mktemp("shards")
    flat = TENSORS["model/w"].flatten()
    edges = sorted({0, *cuts, len(flat)})
    shards = [TensorShard("w", (30, 40), a, flat[a:b]) for a, b in itertools.pairwise(edges)]
    checkpoints = Checkpoints(directory, "f")
    checkpoints.save(1, shards, {})
    checkpoints.wait()
    start, stop = sorted(reads)
    found = checkpoints.at(1)
    assert torch.equal(found.read("w", start, stop), flat[start:stop])
    assert torch.equal(found.tensor("w"), TENSORS["model/w"])
    assert torch.equal(assemble(shards)["w"], TENSORS["model/w"])


@given(sizes=st.lists(st.integers(1, 50), max_size=20), world=st.integers(1, 5))
def test_replicated_shards_are_saved_once_by_all_ranks_in_turn(sizes: list[int], world: int) -> None:
    shards = [TensorShard.whole(str(index), torch.zeros(size)) for index, size in enumerate(sizes)]
    shares = [share(shards, rank, world) for rank in range(world)]
    assert sorted(shard.name for mine in shares for shard in mine) == sorted(shard.name for shard in shards)
    loads = [sum(shard.values_N.numel() for shard in mine) for mine in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_a_checkpoint_of_two_processes_is_read_by_one(tmp_path: Path) -> None:
    def halves(rank: int) -> list[TensorShard]:
        w = TENSORS["model/w"].flatten()
        return [TensorShard("model/w", (30, 40), 600 * rank, w[600 * rank : 600 * (rank + 1)]), *SHARDS[1:]]

    threads = [
        threading.Thread(target=lambda c=c, r=r: (c.save(5, halves(r), {"a": 1}), c.wait()))  # type: ignore[misc]
        for r, c in enumerate(together(2, tmp_path))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    found = Checkpoints(tmp_path, "f").latest()
    assert found is not None
    assert {path.name for path in found.path.iterdir()} == {
        "state.json", "rank-00000.json", "rank-00000.safetensors", "rank-00001.json", "rank-00001.safetensors"
    }  # fmt: skip
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensor(name), tensor)


def test_a_failed_write_on_one_rank_fails_on_all_and_keeps_older_checkpoints(tmp_path: Path) -> None:
    saved_before = Checkpoints(tmp_path, "f")
    saved_before.save(1, SHARDS, {})
    saved_before.wait()

    def full() -> None:
        raise OSError("no space left")

    said = errors_of_two(tmp_path, before=full)  # only rank 0 calls it
    assert "cannot write " in said[0]
    assert "(no space left)" in said[0]
    assert "another process could not write its shards" in said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_a_process_that_cannot_write_says_so_unless_the_first_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: tuple[int, ...]
) -> None:
    def write_shards(folder: Path, rank: int, shards: list[TensorShard]) -> None:
        if rank in failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_shards", write_shards)
    said = errors_of_two(tmp_path)
    full = f"cannot write {tmp_path}/step-00000002 (No space left on device); free some space and run again"
    assert said[1] == full
    assert (
        said[0] == full if 0 in failing else "another process could not write its shards (see its message)" in said[0]
    )
    assert capsys.readouterr().err == ("" if 0 in failing else f"error: rank 1: {full}\n")


def test_saving_copies_and_does_not_block(tmp_path: Path) -> None:
    """Changes after the call are not written, and the call does not wait for the disk."""
    weight, slow = torch.zeros(1000), threading.Event()
    checkpoints = Checkpoints(tmp_path, "f")
    checkpoints.save(3, [TensorShard.whole("w", weight)], {}, before=lambda: slow.wait(20) and None)
    weight += 1
    assert checkpoints.steps() == []
    slow.set()
    checkpoints.wait()
    assert checkpoints.at(3).tensor("w").abs().sum() == 0


def test_the_newest_up_to_a_step(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30)
    for at_most, expected in ((30, 30), (29, 20), (20, 20)):
        latest = checkpoints.latest(at_most)
        assert latest is not None
        assert latest.step == expected
    assert checkpoints.latest(9) is None


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert saved(tmp_path).latest() is None
    with pytest.raises(InputError, match="no checkpoint of step 5; there are: none"):
        saved(tmp_path).at(5)


def test_a_missing_step_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of step 15; there are: 10, 2,000"):
        saved(tmp_path, 10, 2000).at(15)


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", "state.json"])
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "cut", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, log_messages: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    path = tmp_path / "checkpoints" / "step-00000020" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-7])
    else:
        # The last byte of a JSON file is a line end without meaning: flip the one before it.
        index = {"flip first": 0, "flip middle": len(content) // 2, "flip last": len(content) - 2}[damage]
        content[index] ^= 0x04
        path.write_bytes(content)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 10
    [warning] = log_messages.messages
    assert str(path) in warning
    with pytest.raises(InputError, match=name):
        checkpoints.at(20)


def test_all_checkpoints_damaged_is_an_error(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-00000010" / "rank-00000.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        checkpoints.latest()


def test_a_checkpoint_of_other_settings_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    saved(tmp_path, 10, fingerprint="aaa")
    with pytest.raises(InputError, match=r"step-00000010.*fingerprint aaa, now bbb"):
        saved(tmp_path, fingerprint="bbb").latest()


def test_shards_that_do_not_cover_a_tensor_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f")
    checkpoints.save(1, [TensorShard("w", (10,), 4, torch.ones(6))], {})
    checkpoints.wait()
    assert checkpoints.at(1).read("w", 4, 10).sum() == 6
    with pytest.raises(InputError, match=r"w lacks [0-9,]+ elements"):
        checkpoints.at(1).tensor("w")


def test_the_newest_and_every_nth_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30, 40, 50, 60, 70, keep_last=2, keep_every=20)
    assert checkpoints.steps() == [20, 40, 60, 70]
    checkpoints.discard_after(40)
    assert checkpoints.steps() == [20, 40]


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", keep_last=1, keep_best=True)
    left = []
    for step, score in ((1, -5.0), (2, -3.0), (3, None), (4, -4.0), (5, -2.0), (6, -9.0)):
        checkpoints.save(step, SHARDS, {}, score=score)
        checkpoints.wait()
        left.append(checkpoints.steps())
    assert left == [[1], [2], [2, 3], [2, 4], [5], [5, 6]]
    assert checkpoints.at(5).score == -2.0


def test_an_older_checkpoint_is_removed_after_a_newer_is_complete(tmp_path: Path) -> None:
    """With keep_last 1 there is a checkpoint at every moment."""
    checkpoints = Checkpoints(tmp_path, "f", keep_last=1)
    seen: list[list[int]] = []
    for step in range(1, 6):
        checkpoints.save(step, SHARDS, {}, before=lambda: seen.append(checkpoints.steps()))
        checkpoints.wait()
    assert seen == [[], [1], [2], [3], [4]]
    assert checkpoints.steps() == [5]


def test_saving_a_step_again_replaces_it_and_sweeps_what_a_kill_left(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    leftover = tmp_path / "checkpoints" / ".step-00000020.tmp"
    leftover.mkdir()
    (leftover / "rank-00000.safetensors").write_bytes(b"half")
    checkpoints.save(10, [TensorShard.whole("model/w", torch.ones(1))], {})
    checkpoints.wait()
    assert list(checkpoints.at(10).tensors()) == ["model/w"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_disk_that_is_full_leaves_the_older_ones_and_one_line(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        checkpoints.save(20, [TensorShard.whole("model/w", torch.zeros(10_000))], {})
        with pytest.raises(InputError, match=r"cannot write .*step-00000020 "):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert checkpoints.latest() is not None


def test_failure_in_the_background_is_known_before_it_is_asked_for(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "not" / "there", "f")
    (tmp_path / "not").write_text("a file where a folder should be")
    checkpoints.save(1, SHARDS, {})
    deadline = time.monotonic() + 20
    while not checkpoints.failed and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InputError, match="cannot write "):
        checkpoints.save(2, SHARDS, {})


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step-00000010"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["rank-00000.json", "rank-00000.safetensors", "state.json"]
    assert json.loads((folder / "state.json").read_text())["step"] == 10
    assert isinstance(Checkpoints(folder.parent, "f").at(10), Checkpoint)
