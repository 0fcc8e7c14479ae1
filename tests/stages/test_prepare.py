"""`prepare` in several processes and on Ray: identical shards, resumption, and repair."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5_pipeline.artifacts.manifest import read
from t5_pipeline.data_prep.corpora import hub
from tests.tiny_run import ROOT, Tiny, listing, refused, script, stage, t5_pipeline


@pytest.fixture(scope="module")
def flags(finished: Tiny) -> list[object]:
    vocabulary = finished.run / "prepare" / "tokens" / "tokenizer"
    return ["--corpus", finished.data / "corpus", "--vocabulary", vocabulary, "--shard-bytes", 20_000]


def digest(place: Path) -> str:
    manifest = read(place)
    assert manifest is not None
    return manifest.outputs["tokens"].digest


@pytest.fixture(scope="module")
def expected(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the shards that one process writes."""
    alone = tmp_path_factory.mktemp("alone") / "out"
    assert stage("prepare", *flags, "--threads", 1, "--output-dir", alone).code == 0
    return digest(alone)


def test_all_cores(flags: list[object], tmp_path: Path, expected: str) -> None:
    made = stage("prepare", *flags, "--threads", 3, "--output-dir", tmp_path / "three")
    assert made.code == 0, made.err
    assert digest(tmp_path / "three") == expected
    # The way of encoding is not part of the fingerprint.
    again = stage("prepare", *flags, "--threads", 1, "--ray", "local", "--output-dir", tmp_path / "three")
    assert "nothing to do" in again.out


def test_a_limit_is_the_same_in_several_processes(flags: list[object], tmp_path: Path) -> None:
    digests = set()
    for threads in (1, 3):
        place = tmp_path / str(threads)
        made = stage("prepare", *flags, "--max-documents", 100, "--threads", threads, "--output-dir", place)
        assert made.code == 0, made.err
        digests.add(digest(place))
        manifest = read(place)
        assert manifest is not None
        assert manifest.facts["documents"] <= 100 < manifest.facts["documents"] + 20  # the others are for validation
        left_out = manifest.facts["left_out"]
        assert re.fullmatch(r"\d+ documents of the last chunk and [1-9]\d* of \d+ chunks", left_out)
        assert f"prepare: left out because of max_documents or max_tokens: {left_out}\n" in made.err
    assert len(digests) == 1


def command(process: psutil.Process) -> str:
    """Its command line; empty if it has exited."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_ray(flags: list[object], tmp_path: Path, expected: str) -> None:
    """Ray is started and stopped by the stage. test_local_workers.py kills its workers."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 't5-pipeline[ray]'")
    place = tmp_path / "ray"
    running = subprocess.Popen(
        script("prepare", *flags, "--shard-bytes", 4_000, "--threads", 2, "--ray", "local", "--output-dir", place),
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"},  # its socket paths must be short
    )
    at_work: list[psutil.Process] = []
    while not at_work and running.poll() is None:
        of_ray = psutil.Process(running.pid).children(recursive=True)
        named = {process: name for process in of_ray if "ray::" in (name := command(process))}
        at_work = [process for process, name in named.items() if "_encode_chunk" in name]
        time.sleep(0.002 if named else 0.2)  # looking for processes slows down Ray, which needs seconds to start
    _, said = running.communicate(timeout=300)
    assert at_work, said
    assert running.returncode == 0, said
    assert "Traceback" not in said
    assert digest(place) == expected
    assert psutil.wait_procs(of_ray, timeout=15)[1] == []


def test_unreachable_ray_cluster(flags: list[object], tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 't5-pipeline[ray]'")
    said = stage("prepare", *flags, "--ray", "127.0.0.1:1", "--output-dir", tmp_path / "x")
    refused(said, r"--ray: 127\.0\.0\.1:1: no cluster answers there \(.*\); check the address")


def test_ray_cannot_start(flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of its sockets must be short."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 't5-pipeline[ray]'")
    (long := tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    said = stage("prepare", *flags, "--ray", "local", "--output-dir", tmp_path / "x")
    assert said.code == 2, said
    assert re.search(
        r"error: --ray: local: cannot start Ray \(.*AF_UNIX path length.*\); fix that or run without `ray`$",
        said.err.strip(),
    ), said
    assert "Traceback" not in said.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_signal(flags: list[object], tmp_path: Path, expected: str, signum: signal.Signals, code: int) -> None:
    """Ctrl-C in a terminal reaches the workers, too."""
    place = tmp_path / "stopped"
    flags = [*flags, "--shard-bytes", 3_000]
    running = subprocess.Popen(
        script("prepare", *flags, "--threads", 2, "--output-dir", place),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not list(place.glob("tokens.partial/shard-?????")):
        assert running.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(running.pid).children(recursive=True)
    if signum == signal.SIGINT:
        os.killpg(running.pid, signum)
    else:
        running.send_signal(signum)
    _, said = running.communicate(timeout=300)
    assert running.returncode == code, said
    assert said.splitlines()[-1] == f"stopped by {signum.name}; run the same command to resume"
    assert "Traceback" not in said
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    whole = {path: path.stat().st_mtime_ns for path in place.glob("tokens.partial/shard-?????")}
    assert whole
    assert stage("prepare", *flags, "--threads", 1, "--output-dir", place).code == 0
    kept = {path.name: path.stat().st_mtime_ns for path in place.glob("tokens/shard-?????")}
    assert all(kept[path.name] == time_ns for path, time_ns in whole.items())
    assert digest(place) == expected


def test_hub_data_set(flags: list[object], finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are the shards; the hub is replaced by a folder with the same layout."""
    import datasets

    (tmp_path / "set").mkdir()
    for shard in range(3):
        table = pa.table({"body": [f"shard {shard} row {i} is text" for i in range(20)]})
        pq.write_table(table, tmp_path / "set" / f"train-{shard:05d}-of-00003.parquet")
    load, asked = datasets.load_dataset, []

    def load_dataset(name: str, config: str | None, **options: object) -> object:
        asked.append(name)
        return load(str(tmp_path / "set"), config, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "network_error", lambda: None)
    here = ["--corpus", "some/set", "--text-field", "body", "--validation-fraction", 0, "--threads", 1]
    made = stage("prepare", *here, *flags[2:4], "--output-dir", tmp_path / "out")
    assert made.code == 0, made.err
    assert sorted(path.name for path in (tmp_path / "out" / "tokens").glob("shard-*")) == [
        "shard-00000", "shard-00001", "shard-00002"
    ]  # fmt: skip
    assert asked == ["some/set"]
    whole = stage("prepare", "--corpus", tmp_path / "set", *here[2:], *flags[2:4], "--output-dir", tmp_path / "files")
    assert whole.code == 0, whole.err
    assert digest(tmp_path / "out") == digest(tmp_path / "files")


@pytest.mark.parametrize("name", ["vocabulary/spiece.model", "tokens/shard-00001/shard.json"])
def test_damage_to_an_unfinished_prepare(finished: Tiny, tiny: Tiny, name: str) -> None:
    """`verify` finds it, and following its advice gives the digest of an undisturbed run."""
    place = tiny.run / "prepare"
    (place / "manifest.json").unlink()
    (place / "tokens").rename(place / "tokens.partial")  # as a run that was stopped has it
    name = name.replace("tokens/", "tokens.partial/")
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    said = t5_pipeline("verify", tiny.run)
    assert said.code == 2
    assert f"  {name} is damaged" in said.out
    assert "run `t5-pipeline run` to rebuild them" in said.err
    assert tiny.start("--until", "prepare").code == 0
    assert tiny.digests() == finished.digests()
    assert t5_pipeline("verify", tiny.run).code == 0


def test_damaged_shard_is_rebuilt_and_training_resumes(finished: Tiny, tiny: Tiny) -> None:
    """Following the error message of training repairs it and re-encodes one shard."""
    (damaged, *_) = [p for p in sorted((tiny.run / "prepare" / "tokens").glob("shard-*")) if p.name != "shard-00000"]
    path = damaged / "train.tokens"
    stamp, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # bit rot does not change the modification time

    more = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", 40)
    said = stage("lm_adapt", *more)
    assert said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]  # some steps may have been logged
    assert line == (f"error: {path}: block 1 of 1 is damaged; remove {damaged} and run `prepare` again to rebuild it")
    others = {name: of for name, of in listing(tiny.run / "prepare" / "tokens").items() if str(damaged) not in name}
    shutil.rmtree(damaged)
    assert tiny.start("--until", "prepare").code == 0
    now = listing(tiny.run / "prepare" / "tokens")
    assert all(now[name] == of for name, of in others.items() if "shard-" in name)
    assert tiny.digests()["prepare/tokens"] == finished.digests()["prepare/tokens"]
    assert stage("lm_adapt", *more).code == 0


def test_bad_input_leaves_nothing_in_the_way_of_the_corrected_command(finished: Tiny, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": f"Some text {i}."}) + "\n" for i in range(40)))
    command = ["prepare", "--corpus", tmp_path / "rows.jsonl", "--vocabulary", finished.run / "prepare/tokens/tokenizer",
               "--threads", 1, "--output-dir", tmp_path / "out"]  # fmt: skip
    refused = stage(*command)
    assert (refused.code, "has no field 'text'" in refused.err) == (2, True)
    assert not (tmp_path / "out").exists()
    done = stage(*command, "--text-field", "body")
    assert done.code == 0, done.err
