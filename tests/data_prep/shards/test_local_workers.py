"""Shards are byte-identical from one process, several, or Ray, even if workers are killed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Chunk, Document, FileChunk, corpus_chunks
from t5_pipeline.data_prep.shards import local_workers, ray_workers
from t5_pipeline.data_prep.shards.encoding import CONTAMINATED, Counts, Encoding, Events, Workers, encode_serially
from t5_pipeline.data_prep.shards.local_workers import ATTEMPTS, encode_in_processes, encode_locally
from t5_pipeline.data_prep.shards.ray_workers import encode_on_ray
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

SETTINGS = {"validation_fraction": 0.2, "seed": 3, "decontaminate": ["the quick brown fox"]}
PROCESSES: Workers = functools.partial(encode_in_processes, count=2)
RAY: Workers = functools.partial(encode_on_ray, address="local", cores=2)


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("a", "b"):
        rows = [{"text": f"{name} {text}"} for text in texts[:600]]
        rows[100]["text"] += " The quick, brown fox."
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chunks(corpus: Path) -> list[Chunk]:
    found = corpus_chunks(corpus, chunk_bytes=sum(f.stat().st_size for f in corpus.iterdir()) // 6 + 1)
    assert len(found) == 6
    return found


@pytest.fixture(scope="module")
def expected(corpus: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes."""
    place = tmp_path_factory.mktemp("expected")
    write_tokens(chunks(corpus), vocabulary, place, **SETTINGS)  # type: ignore[arg-type]
    return content(place)


def test_workers_build_the_ngrams_of_held_out_texts(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Sending them would take the main process longer than it takes a worker to build them."""
    held_out = [" ".join(f"{text}{word}" for word in range(100)) for text in range(200)]
    sent: list[int] = []

    def workers(encoding: Encoding, chunks: dict[int, Chunk]) -> Events:
        sent.append(len(pickle.dumps(encoding)))
        yield from encode_serially(encoding, chunks)

    for texts in ([], held_out):
        write_tokens(chunks(corpus)[:1], vocabulary, tmp_path / str(len(texts)), decontaminate=texts, workers=workers)
    assert sent[1] - sent[0] < 1.1 * sum(map(len, held_out))


def content(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray on two cores of this machine, started once for the module because that takes seconds."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 't5-pipeline[ray]'")
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, _temp_dir="/tmp/ray", **quiet)  # its socket paths must be short
    signal.signal(signal.SIGTERM, before)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Killing(FileChunk):
    """Kills the process that reads it, halfway, the first `times` times."""

    mark: Path
    times: int

    def documents(self) -> Iterator[Document]:
        for number, document in enumerate(super().documents()):
            if number == 150 and len(list(self.mark.iterdir())) < self.times:
                (self.mark / str(time.monotonic_ns())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield document


def killing(corpus: Path, mark: Path, times: int, numbers: tuple[int, ...] = (1, 4)) -> list[Chunk]:
    mark.mkdir()
    plain = chunks(corpus)
    for number in numbers:
        chunk = plain[number]
        assert isinstance(chunk, FileChunk)
        (mark / str(number)).mkdir()
        fields = {field.name: getattr(chunk, field.name) for field in dataclasses.fields(chunk)}
        plain[number] = Killing(**fields, mark=mark / str(number), times=times)
    return plain


@pytest.mark.parametrize("workers", [PROCESSES, functools.partial(encode_locally, cores=2)], ids=["two", "machine"])
def test_processes_write_the_same_bytes_as_one(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, expected: dict[str, bytes], workers: Workers
) -> None:
    calls: list[Counts] = []
    write_tokens(chunks(corpus), vocabulary, tmp_path, **SETTINGS, workers=workers, on_progress=calls.append)  # type: ignore[arg-type]
    assert content(tmp_path) == expected
    assert calls[-1].documents == 1198
    assert calls[-1].dropped == {CONTAMINATED: 2}


def test_threads_do_not_change_the_bytes(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    write_tokens(
        chunks(corpus), vocabulary, tmp_path, **SETTINGS, workers=functools.partial(encode_serially, threads=3)
    )  # type: ignore[arg-type]
    assert content(tmp_path) == expected


def test_shards_of_killed_processes_are_reassigned(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    broken = killing(corpus, tmp_path / "mark", times=1)
    write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=PROCESSES)  # type: ignore[arg-type]
    assert len([p for p in (tmp_path / "mark").rglob("*") if p.is_file()]) == 2
    assert content(tmp_path / "tokens") == expected


def test_chunk_that_kills_every_process(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    broken = killing(corpus, tmp_path / "mark", times=100, numbers=(4,))
    with pytest.raises(InputError, match=rf"^[ab]\.jsonl \d+-\d+: its worker process was killed {ATTEMPTS} times"):
        write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=PROCESSES)  # type: ignore[arg-type]
    assert not [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]


def test_bad_row_in_a_worker(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in "ab":
        (tmp_path / "c" / f"{name}.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    bad = corpus_chunks(tmp_path / "c", chunk_bytes=29)
    assert len(bad) == 2
    with pytest.raises(
        InputError, match=r"^\S*\.jsonl:2: field 'text' is a number, not text; fix the row or set `text_field`$"
    ):
        write_tokens(bad, vocabulary, tmp_path / "tokens", workers=PROCESSES)


def test_workers_exit_when_their_parent_is_killed(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """A SIGKILLed parent leaves no process behind, and complete shards are kept."""
    vocabulary.save(tmp_path / "vocabulary")
    script = tmp_path / "write.py"
    script.write_text(
        textwrap.dedent(f"""
        import functools, sys
        from t5_pipeline.data_prep.corpora.documents import corpus_chunks
        from t5_pipeline.data_prep.shards.local_workers import encode_in_processes
        from t5_pipeline.data_prep.shards.writer import write_tokens
        from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

        if __name__ == "__main__":
            chunks = corpus_chunks({str(corpus)!r}, chunk_bytes=2_000)
            write_tokens(chunks, Vocabulary.load({str(tmp_path / "vocabulary")!r}), {str(tmp_path / "tokens")!r},
                         workers=functools.partial(encode_in_processes, count=2))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = psutil.Popen([sys.executable, str(script)], env=environment)
    try:
        while not (whole := list((tmp_path / "tokens").glob("shard-?????"))):
            assert process.poll() is None
            time.sleep(0.01)
        workers = [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
    finally:
        process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert not (tmp_path / "tokens" / "tokens.json").exists()
    many = corpus_chunks(corpus, chunk_bytes=2_000)
    kept = {path: path.stat().st_mtime_ns for path in whole}
    resumed = write_tokens(many, vocabulary, tmp_path / "tokens")
    assert {path: path.stat().st_mtime_ns for path in whole} == kept
    assert resumed.digest == write_tokens(many, vocabulary, tmp_path / "again").digest


@pytest.mark.usefixtures("ray")
def test_ray_writes_the_same_bytes_as_one_process(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """One of six workers is killed."""
    broken = killing(corpus, tmp_path / "mark", times=1, numbers=(4,))
    calls: list[Counts] = []
    write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=RAY, on_progress=calls.append)  # type: ignore[arg-type]
    assert calls[-1].documents == 1198
    assert len([p for p in (tmp_path / "mark").rglob("*") if p.is_file()]) == 1
    assert content(tmp_path / "tokens") == expected


@pytest.mark.usefixtures("ray")
def test_bad_input_on_ray(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts at a shard instead of four, because Ray needs seconds for each new worker."""
    for module in (local_workers, ray_workers):
        monkeypatch.setattr(module, "ATTEMPTS", 2)
    broken = killing(corpus, tmp_path / "mark", times=100, numbers=(1,))
    with pytest.raises(InputError, match=r"\.jsonl .*: its worker process was killed 2 times"):
        write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=RAY)  # type: ignore[arg-type]
    assert len([p for p in (tmp_path / "mark").rglob("*") if p.is_file()]) == 2
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(
        InputError, match=r"^\S*bad\.jsonl:2: field 'text' is a number, not text; fix the row or set `text_field`$"
    ):
        write_tokens(corpus_chunks(bad), vocabulary, tmp_path / "more", workers=RAY)


def test_ray_is_not_installed(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray: local: Ray is not installed; pip install 't5-pipeline\[ray\]'"):
        write_tokens(chunks(corpus), vocabulary, tmp_path, workers=RAY)


def test_a_worker_that_cannot_write_ends_with_one_line(
    vocabulary: Vocabulary, texts: list[str], tmp_path: Path
) -> None:
    """A limit on the size of files, as an example of a full disk: the vocabulary can be written, but no shard."""
    vocabulary.save(tmp_path / "vocabulary")
    (tmp_path / "corpus").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"corpus/{name}.txt").write_text("\n".join(texts) * 4)
    most = max(file.stat().st_size for file in (tmp_path / "vocabulary").iterdir()) // 1024 + 100
    command = (
        f"ulimit -f {most}; exec {sys.executable} -m t5_pipeline.stages.prepare --corpus {tmp_path}/corpus --threads 2"
        f" --vocabulary {tmp_path}/vocabulary --output-dir {tmp_path}/out"
    )
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "File too large" in ended.stderr.splitlines()[-1]
