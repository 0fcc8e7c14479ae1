"""Remote token shards through a bounded cache, from a store that logs every fetch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from t5_pipeline.artifacts.kinds import artifact_digest, locate
from t5_pipeline.core.checksums import block_sha256
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import FileCache
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.shards.remote_array import RemoteArrayPool
from t5_pipeline.data_prep.shards.remote_tokens import local_tokens
from tests.tiny_run import Tiny, refused, stage, t5_pipeline

U2 = np.dtype("<u2")


class Counted(LocalFileSystem):
    """counted:///path is the file /path; each open appends a line to the file COUNTED_LOG."""

    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("counted://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "SLOW" in os.environ:
            time.sleep(0.3)
        file = super()._open(path, mode, **options)
        with open(os.environ["COUNTED_LOG"], "a") as log:
            log.write(Path(path).name + "\n")
        return file


fsspec.register_implementation("counted", Counted, clobber=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T5_PIPELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COUNTED_LOG", str(tmp_path / "fetched"))
    (tmp_path / "fetched").touch()
    return tmp_path / "cache" / "files"


@pytest.fixture
def fetched(tmp_path: Path) -> Any:
    def names() -> list[str]:
        return (tmp_path / "fetched").read_text().split()

    return names


class Store:
    """Files of 2,000 bytes: file k contains the numbers 1000·k to 1000·k + 999."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.directory = directory
        for k in range(count):
            (directory / f"f{k}").write_bytes(self.numbers(k).tobytes())

    def numbers(self, k: int) -> np.ndarray:
        return np.arange(1000 * k, 1000 * k + 1000, dtype=U2)

    def arrays(self, directory: Path, limit: int, known: bool = True) -> list[Any]:
        """The arrays of one process, in a cache of `limit` bytes."""
        pool = RemoteArrayPool(FileCache(directory, limit))
        return [
            pool.array(f"counted://{path}", U2, 1000, block_sha256(path) if known else None)
            for path in sorted(self.directory.iterdir())
        ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 6)


def held(cache: Path) -> int:
    """Bytes in the cache, under the lock for evicting and fetching."""
    with FileCache(cache)._lock_file("room", wait=True):
        sizes = []
        for path in cache.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a fetch that failed
                sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)


def test_files_are_fetched_once_when_first_read(store: Store, cache: Path, fetched: Any) -> None:
    arrays = store.arrays(cache, 10**6)
    assert fetched() == []
    for _ in range(3):
        assert arrays[2].read(10, 20).tolist() == list(range(2010, 2020))
        assert arrays[4].read(0, 1000).tolist() == store.numbers(4).tolist()
        assert arrays[1].read(7, 7).tolist() == []
    assert fetched() == ["f2", "f4"]
    # Another process reuses them.
    assert store.arrays(cache, 10**6)[2].read(0, 1).tolist() == [2000]
    assert fetched() == ["f2", "f4"]


@pytest.mark.parametrize("known", [True, False])
def test_least_recently_used_files_are_evicted(store: Store, cache: Path, fetched: Any, known: bool) -> None:
    arrays = store.arrays(cache, 6_500, known)  # three files
    views = [arrays[k].read(0, 1000) for k in (0, 1, 2)]
    for _ in range(2):
        time.sleep(0.01)
        arrays[0].read(5, 6)  # so that f1 is the oldest
    arrays[3].read(0, 1)
    assert fetched() == ["f0", "f1", "f2", "f3"]
    assert held(cache) == 6_000
    assert arrays[0].read(0, 1).tolist() == [0]
    assert fetched() == ["f0", "f1", "f2", "f3"]
    # Evicted files stay readable where they are mapped.
    assert [view.tolist() for view in views] == [store.numbers(k).tolist() for k in (0, 1, 2)]
    arrays[1].read(0, 1)
    assert fetched() == ["f0", "f1", "f2", "f3", "f1"]


def test_random_reads_stay_within_the_limit(store: Store, cache: Path, fetched: Any) -> None:
    arrays = store.arrays(cache, 4_000)
    for k in np.random.default_rng(0).integers(0, 6, 200).tolist():
        assert arrays[k].read(3, 5).tolist() == [1000 * k + 3, 1000 * k + 4]
        assert held(cache) <= 4_000
        mapped = {array.path for array in arrays if array._array is not None and array.path.is_file()}
        assert len(mapped) <= 2
        # Evicted files are eventually unmapped, or their space would not be freed.
        assert sum(one._array is not None for one in arrays) <= 3


def _read_all(store: Store, cache: Path, seed: int) -> None:
    arrays = store.arrays(cache, 4_000 if seed >= 100 else 10**6)
    for k in np.random.default_rng(seed).integers(0, 6, 100).tolist():
        assert arrays[k].read(0, 1000).tolist() == store.numbers(k).tolist()


@pytest.mark.parametrize("first_seed", [0, 100], ids=["all fit", "two fit"])
def test_processes_share_the_cache(
    store: Store, cache: Path, fetched: Any, first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not first_seed:
        monkeypatch.setenv("SLOW", "1")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_all, args=(store, cache, first_seed + seed)) for seed in range(4)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        if cache.is_dir():
            most = max(most, held(cache))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    if first_seed:
        assert most <= 4_000
        assert held(cache) <= 4_000
    else:
        assert sorted(fetched()) == [f"f{k}" for k in range(6)]
    assert not list(cache.glob("*.tmp"))


def test_a_killed_fetch_does_not_block_the_next(store: Store, cache: Path) -> None:
    (array, *_) = store.arrays(cache, 10**6)
    cache.mkdir(parents=True)
    place = array.pool.cache.place(array.url, 2000, array.blocks)
    place.with_name(place.name + ".tmp").write_bytes(b"half of it")
    assert array.read(0, 1000).tolist() == store.numbers(0).tolist()
    assert [path.name for path in cache.iterdir() if path.is_file()] == [place.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "flipped",
            r"^counted:///.*/f1: block 1 of 1 is damaged; upload the file again$",
        ),
        ("shorter", r"^counted:///.*/f1: is not 2,000 bytes long; upload"),
        ("gone", r"^counted:///.*/f1: does not exist; upload the file again$"),
    ],
)
def test_damage_in_the_store(store: Store, cache: Path, damage: str, message: str) -> None:
    arrays = store.arrays(cache, 10**6, known=damage == "flipped")
    path = store.directory / "f1"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flipped" else content[:-1])
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            arrays[1].read(0, 1)
    path.write_bytes(content)
    assert arrays[1].read(0, 1).tolist() == [1000]


def test_damage_in_the_cache(store: Store, cache: Path) -> None:
    store.arrays(cache, 10**6)[0].read(0, 1)
    (copy,) = (path for path in cache.iterdir() if path.is_file())
    copy.write_bytes(b"\1" + copy.read_bytes()[1:])
    with pytest.raises(
        InputError, match=rf"^{copy}: block 1 of 1 is damaged; remove it and run again to fetch counted:///.*/f0 again"
    ):
        store.arrays(cache, 10**6)[0].read(0, 1)


def test_a_cache_that_is_too_small(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"f0: has 2,000 bytes, more than the cache's limit of 1,999; raise T5_PIPELINE"
    ):
        store.arrays(cache, 1_999)[0].read(0, 1)
    for given in ("much", "inf", "nan", "0"):
        monkeypatch.setenv("T5_PIPELINE_CACHE_GB", given)
        with pytest.raises(InputError, match=f"T5_PIPELINE_CACHE_GB: must be a positive number of GB, not '{given}'"):
            FileCache(cache)


def test_a_file_system_without_locks(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, flags: int) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"does not support locks \(No locks available\).*; set T5_PIPELINE_CACHE"):
        store.arrays(cache, 10**6)[0].read(0, 1)


def test_local_copy_of_remote_tokens(finished: Tiny, fetched: Any) -> None:
    for url in (
        f"counted://{finished.run}/prepare/tokens",
        f"counted://{finished.run}/prepare",
        f"file://{finished.run}/prepare/",
    ):
        (place,) = locate("tokens", url, "lm_adapt.tokens")
        assert artifact_digest("tokens", place) == finished.digests()["prepare/tokens"]
    near, far = TokenShards.open(finished.run / "prepare" / "tokens"), TokenShards.open(place)
    assert far.vocabulary.digest == near.vocabulary.digest
    assert "train.tokens" not in fetched()
    assert far.lengths_N[:].tolist() == near.lengths_N[:].tolist()
    assert all(far.document(i).tolist() == near.document(i).tolist() for i in range(len(near)))


def test_the_processes_of_a_launch_begin_with_remote_tokens_at_once(finished: Tiny, cache: Path) -> None:
    """Each of them finds the whole directory from its own return on, whatever the others do."""
    url = f"counted://{finished.run}/prepare/tokens"
    names, start = ["spiece.model", "tokenizer.json"], threading.Barrier(8)

    def process(_: int) -> Path:
        start.wait()
        local = local_tokens(url, "x.tokens")
        for _ in range(100):
            assert json.loads((local / "tokens.json").read_text())["remote"] == url
            assert all((local / "tokenizer" / name).is_file() for name in names)
        return local

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            (local,) = set(pool.map(process, range(8)))
        shutil.rmtree(local)


def test_a_cache_for_remote_tokens_that_cannot_be_written(finished: Tiny, cache: Path) -> None:
    cache.parent.mkdir()
    (cache.parent / "tokens").write_text("a file where a directory should be")
    with pytest.raises(InputError, match=r"^cannot write .+ \(Not a directory\); set T5_PIPELINE_CACHE to a writable"):
        local_tokens(f"counted://{finished.run}/prepare/tokens", "x.tokens")


def test_invalid_remote_tokens_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^x\.tokens: counted:///nowhere contains no tokens\.json;"):
        local_tokens("counted:///nowhere", "x.tokens")
    with pytest.raises(
        InputError, match=r"^x\.tokens: cannot read nosuch://a/tokens\.json \(Protocol not known: nosuch"
    ):
        local_tokens("nosuch://a", "x.tokens")
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "tokens.json").write_text(text)
        with pytest.raises(InputError, match=r"tokens\.json is damaged"):
            local_tokens(f"file://{tmp_path}", "x.tokens")
    monkeypatch.setattr("t5_pipeline.data_prep.shards.remote_tokens.MAX_JSON", 99_999)
    with pytest.raises(InputError, match=r"^x\.tokens: \S+tokens\.json has more than 99,999 bytes; check the URL$"):
        local_tokens(f"file://{tmp_path}", "x.tokens")


def test_training_on_remote_tokens(finished: Tiny, tiny: Tiny, tmp_path: Path, fetched: Any) -> None:
    """The model is bit-identical to one from local shards, and not retrained when the shards move."""
    url = f"counted://{finished.run}/prepare/tokens"
    moved = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--set", f"lm_adapt.tokens={url}")
    assert "nothing to do" in stage("lm_adapt", *moved).out
    alone = tmp_path / "alone"
    manifest = finished.manifests()["lm_adapt"]
    model = finished.run / "pretrain"
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in json.loads(json.dumps(manifest.settings)).items()
             if isinstance(value, (int, float, str)) and not isinstance(value, bool) and key not in ("model", "tokens")]  # fmt: skip
    made = stage("lm_adapt", "--model", model, "--tokens", url, *flags, "--output-dir", alone)
    assert made.code == 0, made.err
    assert "train.tokens" in fetched()
    again = finished.manifests(alone.parent)["alone"]
    assert again.outputs["model"].digest == manifest.outputs["model"].digest
    refused(
        stage("lm_adapt", "--model", model, "--tokens", f"{url}x", *flags, "--output-dir", tmp_path / "no"),
        r"--tokens: counted://.*/tokensx contains no tokens\.json; give the URL .*",
    )
    assert t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run, "--set", f"lm_adapt.tokens={url}").code == 0
