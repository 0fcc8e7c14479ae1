"""Shards are the same whoever makes them, one process, several, or Ray's, and whoever of these is killed on the way."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Document, FilesPiece, Piece, corpus_pieces
from t5_pipeline.data_prep.shards.local_workers import ATTEMPTS, in_processes, on_this_machine
from t5_pipeline.data_prep.shards.ray_workers import on_ray
from t5_pipeline.data_prep.shards.writer import Workers, Written, here, write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

SETTINGS = {"validation_fraction": 0.2, "seed": 3, "decontaminate": ["the quick brown fox"]}
PROCESSES: Workers = functools.partial(in_processes, count=2)
RAY: Workers = functools.partial(on_ray, address="local", cores=2)


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("a", "b"):
        rows = [{"text": f"{name} {text}"} for text in texts[:600]]
        rows[100]["text"] += " The quick, brown fox."
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pieces(corpus: Path) -> list[Piece]:
    found = corpus_pieces(corpus, piece_bytes=sum(f.stat().st_size for f in corpus.iterdir()) // 6 + 1)
    assert len(found) == 6
    return found


@pytest.fixture(scope="module")
def alone(corpus: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    place = tmp_path_factory.mktemp("alone")
    write_tokens(pieces(corpus), vocabulary, place, **SETTINGS)  # type: ignore[arg-type]
    return content(place)


def content(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray on two cores of this machine, for the whole module: starting it takes seconds."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 't5-pipeline[ray]'")
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, _temp_dir="/tmp/ray", **quiet)  # its sockets need a short path
    signal.signal(signal.SIGTERM, before)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Killed(FilesPiece):
    """Kills the process that reads it, in the middle, the first `times` times."""

    mark: Path
    times: int

    def documents(self) -> Iterator[Document]:
        for number, document in enumerate(super().documents()):
            if number == 150 and len(list(self.mark.iterdir())) < self.times:
                (self.mark / str(time.monotonic_ns())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield document


def killed(corpus: Path, mark: Path, times: int) -> list[Piece]:
    mark.mkdir()
    plain = pieces(corpus)
    for number in (1, 4):
        piece = plain[number]
        assert isinstance(piece, FilesPiece)
        (mark / str(number)).mkdir()
        fields = {field.name: getattr(piece, field.name) for field in dataclasses.fields(piece)}
        plain[number] = Killed(**fields, mark=mark / str(number), times=times)
    return plain


@pytest.mark.parametrize("workers", [PROCESSES, functools.partial(on_this_machine, cores=2)], ids=["two", "machine"])
def test_processes_write_what_one_writes(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, alone: dict[str, bytes], workers: Workers
) -> None:
    calls: list[Written] = []
    write_tokens(pieces(corpus), vocabulary, tmp_path, **SETTINGS, workers=workers, on_progress=calls.append)  # type: ignore[arg-type]
    assert content(tmp_path) == alone
    assert calls[-1].documents == 1198
    assert calls[-1].dropped == {"holds a held-out text": 2}


def test_threads_change_nothing(corpus: Path, vocabulary: Vocabulary, tmp_path: Path, alone: dict[str, bytes]) -> None:
    write_tokens(pieces(corpus), vocabulary, tmp_path, **SETTINGS, workers=functools.partial(here, threads=3))  # type: ignore[arg-type]
    assert content(tmp_path) == alone


def test_processes_that_are_killed(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    broken = killed(corpus, tmp_path / "mark", times=1)
    write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=PROCESSES)  # type: ignore[arg-type]
    assert len([p for p in (tmp_path / "mark").rglob("*") if p.is_file()]) == 2
    assert content(tmp_path / "tokens") == alone


def test_a_piece_that_kills_every_process(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    broken = killed(corpus, tmp_path / "mark", times=100)
    with pytest.raises(InputError, match=rf"^[ab]\.jsonl \d+-\d+: the process .* was killed {ATTEMPTS} times"):
        write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=PROCESSES)  # type: ignore[arg-type]
    assert not [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]


def test_bad_rows_of_a_worker(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in "ab":
        (tmp_path / "c" / f"{name}.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    bad = corpus_pieces(tmp_path / "c", piece_bytes=29)
    assert len(bad) == 2
    with pytest.raises(InputError, match=r"^\S*\.jsonl:2: field 'text' is a int, not text$"):
        write_tokens(bad, vocabulary, tmp_path / "tokens", workers=PROCESSES)


def test_workers_end_with_the_process_that_started_them(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Killed without a word, it leaves no process behind, and what was whole is kept."""
    vocabulary.save(tmp_path / "vocabulary")
    script = tmp_path / "write.py"
    script.write_text(
        textwrap.dedent(f"""
        import functools, sys
        from t5_pipeline.data_prep.corpora.documents import corpus_pieces
        from t5_pipeline.data_prep.shards.local_workers import in_processes
        from t5_pipeline.data_prep.shards.writer import write_tokens
        from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

        if __name__ == "__main__":
            pieces = corpus_pieces({str(corpus)!r}, piece_bytes=2_000)
            write_tokens(pieces, Vocabulary.load({str(tmp_path / "vocabulary")!r}), {str(tmp_path / "tokens")!r},
                         workers=functools.partial(in_processes, count=2))
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
    many = corpus_pieces(corpus, piece_bytes=2_000)
    kept = {path: path.stat().st_mtime_ns for path in whole}
    resumed = write_tokens(many, vocabulary, tmp_path / "tokens")
    assert {path: path.stat().st_mtime_ns for path in whole} == kept
    assert resumed.digest == write_tokens(many, vocabulary, tmp_path / "anew").digest


@pytest.mark.usefixtures("ray")
def test_ray_writes_what_one_process_writes(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    calls: list[Written] = []
    write_tokens(pieces(corpus), vocabulary, tmp_path, **SETTINGS, workers=RAY, on_progress=calls.append)  # type: ignore[arg-type]
    assert content(tmp_path) == alone
    assert calls[-1].documents == 1198


@pytest.mark.usefixtures("ray")
def test_ray_workers_that_are_killed(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    broken = killed(corpus, tmp_path / "mark", times=2)
    write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=RAY)  # type: ignore[arg-type]
    assert len([p for p in (tmp_path / "mark").rglob("*") if p.is_file()]) == 4
    assert content(tmp_path / "tokens") == alone


@pytest.mark.usefixtures("ray")
def test_bad_input_on_ray(corpus: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    broken = killed(corpus, tmp_path / "mark", times=100)
    with pytest.raises(InputError, match=rf"\.jsonl .*: the process that encodes it was killed {ATTEMPTS} times"):
        write_tokens(broken, vocabulary, tmp_path / "tokens", **SETTINGS, workers=RAY)  # type: ignore[arg-type]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"^\S*bad\.jsonl:2: field 'text' is a int, not text$"):
        write_tokens(corpus_pieces(bad), vocabulary, tmp_path / "more", workers=RAY)


def test_no_ray_and_no_cluster(
    corpus: Path, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray: local: Ray is not installed; pip install 't5-pipeline\[ray\]'"):
        write_tokens(pieces(corpus), vocabulary, tmp_path, workers=RAY)
