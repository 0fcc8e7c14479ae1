"""Tokenization by `prepare`, compared with `datasets.map` and transformers' fast tokenizer on the same text and cores.

The peer reads the same Parquet file and runs, batched and with one process per core (`num_proc`), the tokenizer.json
published with the vocabulary, or the tokenizer that transformers derives from spiece.model. It writes ids to its Arrow
cache; ours writes token shards, with checksums and digest. Every measurement is a process of its own, timed without
imports; the sides take turns. Also measured: memory by size of the corpus, time by cores, and the cost of an
interruption.

Text and vocabulary are not part of the project: set `T5_PIPELINE_TEXT` to a directory with train.parquet, and
`T5_PIPELINE_VOCABULARY` to a spiece.model. Without them nothing is measured.

    python -m benchmarks.prepare ours CORPUS VOCABULARY PLACE CORES      one measurement; prints JSON
    python -m benchmarks.prepare theirs CORPUS VOCABULARY PLACE CORES [OURS]
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROUNDS = 3
CORES = 2
PART = 2_000  # articles of the rounds that take turns; the peer is slow on all of them
LARGE = 18  # copies of the text in the large corpus
TEXT = Path(os.environ.get("T5_PIPELINE_TEXT", "../shared/data/text/wikipedia"))
VOCABULARY = Path(os.environ.get("T5_PIPELINE_VOCABULARY", "../shared/data/t5/spiece.model"))


def ours(corpus: str, vocabulary: str, place: str, cores: str) -> dict[str, Any]:
    from t5_pipeline.data_prep.corpora.documents import corpus_chunks
    from t5_pipeline.data_prep.shards.local_workers import encode_locally
    from t5_pipeline.data_prep.shards.writer import write_tokens
    from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

    began = time.perf_counter()
    tokens = write_tokens(
        corpus_chunks(corpus),
        Vocabulary.load(vocabulary),
        place,
        validation_fraction=0.0,
        workers=functools.partial(encode_locally, cores=int(cores)),
    )
    return {"seconds": time.perf_counter() - began, "documents": len(tokens), "tokens": tokens.tokens}


def theirs(corpus: str, vocabulary: str, place: str, cores: str, compared: str = "") -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer, T5TokenizerFast

    datasets.disable_progress_bars()
    published = Path(vocabulary, "tokenizer.json").is_file()
    tokenizer = (AutoTokenizer if published else T5TokenizerFast).from_pretrained(vocabulary)
    began = time.perf_counter()
    texts = datasets.load_dataset("parquet", data_files=corpus, split="train", cache_dir=place)
    read = time.perf_counter()

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        return dict(tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False))

    ids = texts.map(encode, batched=True, num_proc=int(cores), remove_columns=texts.column_names)
    ended = time.perf_counter()
    found = {"seconds": ended - read, "seconds_to_read": read - began, "documents": len(ids)}
    lengths = [len(row) for row in ids["input_ids"]]
    found["tokens"] = sum(lengths)
    if compared:
        from t5_pipeline.data_prep.shards.reader import TokenShards

        tokens = TokenShards.open(compared)
        found["documents_that_differ"] = sum(
            tokens.document(i).tolist() != row for i, row in enumerate(ids["input_ids"])
        )
    return found


def measure(side: str, corpus: Path, vocabulary: Path, place: Path, cores: int, *more: Path) -> dict[str, Any]:
    """Measure one side once in a new process: its numbers, and the peak memory of it and of its largest child."""
    command = [sys.executable, "-m", "benchmarks.prepare", side, *map(str, (corpus, vocabulary, place, cores, *more))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    """All measurements; None if text or vocabulary do not exist."""
    text = TEXT / "train.parquet"
    if not text.is_file() or not VOCABULARY.is_file():
        print(f"prepare: skipped, because {text} or {VOCABULARY} does not exist", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory(prefix="t5-pipeline-benchmark-") as directory:
        work = Path(directory)
        peers = {"published tokenizer.json": work / "published", "transformers' own": work / "own"}
        write_tokenizers(peers["published tokenizer.json"], peers["transformers' own"])
        part = work / "part.parquet"
        pq.write_table(pq.read_table(text, columns=["text"]).slice(0, PART), part, row_group_size=500)
        return {
            "name": "prepare",
            "peer_versions": {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers")},
            "text": f"{text.name} of {TEXT.name}",
            "flags": {
                "ours": f"write_tokens(…, workers=encode_locally(cores={CORES}))",
                "theirs": f'load_dataset("parquet").map(…, batched=True, num_proc={CORES}, remove_columns=…)',
            },
            "rows": [row for what, peer in peers.items() for row in [beside(what, part, peer, work)]],
            "same_ids": same_ids(text, peers["published tokenizer.json"], work),
            "cores": cores(text, work),
            **large(text, work),
        }


def write_tokenizers(published: Path, own: Path) -> None:
    from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

    Vocabulary.load(VOCABULARY).save(published)
    own.mkdir()
    shutil.copy(VOCABULARY, own / "spiece.model")


def beside(what: str, corpus: Path, peer: Path, work: Path) -> dict[str, Any]:
    """Both sides in turn: medians, and the median ratio of the rounds."""
    rounds = []
    for number in range(ROUNDS):
        place = work / f"round-{number}"
        rounds.append(
            (
                measure("ours", corpus, VOCABULARY, place / "ours", CORES)["tokens_per_second"],
                measure("theirs", corpus, peer, place / "theirs", CORES)["tokens_per_second"],
            )
        )
        shutil.rmtree(place)
    return {
        "peer": what,
        "cores": CORES,
        "ours_tokens_per_second": round(statistics.median(ours for ours, _ in rounds)),
        "theirs_tokens_per_second": round(statistics.median(theirs for _, theirs in rounds)),
        "speedup": round(statistics.median(ours / theirs for ours, theirs in rounds), 1),
        "rounds": rounds,
    }


def same_ids(text: Path, peer: Path, work: Path) -> dict[str, Any]:
    """Number of documents of the whole text whose ids differ between the sides."""
    made = measure("ours", text, VOCABULARY, work / "same", CORES)
    found = measure("theirs", text, peer, work / "their-same", CORES, work / "same")
    return {
        "documents": made["documents"],
        "documents_that_differ": found["documents_that_differ"],
        "tokens": [made["tokens"], found["tokens"]],
    }


def cores(text: Path, work: Path) -> dict[str, Any]:
    """Seconds of the same work on one core and on two, in turn."""
    rounds = []
    for number in range(ROUNDS):
        places = {count: work / f"cores-{number}-{count}" for count in (1, CORES)}
        rounds.append([measure("ours", text, VOCABULARY, place, count)["seconds"] for count, place in places.items()])
        for place in places.values():
            shutil.rmtree(place)
    return {
        "seconds": {"1": median(one for one, _ in rounds), str(CORES): median(many for _, many in rounds)},
        "speedup": median(one / many for one, many in rounds),
    }


def large(text: Path, work: Path) -> dict[str, Any]:
    """Memory for one and for many copies of the text, and resuming after a kill halfway."""
    lines = "".join(
        json.dumps({"text": row}) + "\n" for row in pq.read_table(text, columns=["text"])["text"].to_pylist()
    )
    corpora = {"once": work / "once.jsonl", f"{LARGE} times": work / "large.jsonl"}
    for corpus, times in zip(corpora.values(), (1, LARGE), strict=True):
        if shutil.disk_usage(work).free < 3 * times * len(lines):
            raise SystemExit(
                f"{work}: has too little space for {times} × {len(lines) / 1e6:.0f} MB and its tokens; free some"
            )
        with corpus.open("w", encoding="utf-8") as file:
            for _ in range(times):
                file.write(lines)
    memory = {}
    for what, corpus in corpora.items():
        made = measure("ours", corpus, VOCABULARY, work / "tokens", CORES)
        memory[what] = {"text_mb": round(corpus.stat().st_size / 1e6)} | {
            key: made[key] for key in ("peak_mb", "peak_mb_of_a_worker", "seconds", "tokens_per_second")
        }
        whole, shards = made["seconds"], len(list((work / "tokens").glob("shard-*")))
        shutil.rmtree(work / "tokens")
    command = [sys.executable, "-m", "benchmarks.prepare", "ours", corpus, VOCABULARY, work / "tokens", CORES]
    running = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (there := len(list((work / "tokens").glob("shard-?????")))) < shards // 2:
        time.sleep(0.05)
    running.kill()
    running.wait()
    rest = measure("ours", corpus, VOCABULARY, work / "tokens", CORES)["seconds"]
    interrupted = {"shards": shards, "killed_after": there, "seconds_for_all": whole, "seconds_for_the_rest": rest}
    return {"memory": memory, "interrupted": interrupted}


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)


def table(found: dict[str, Any]) -> str:
    """Rows for docs/performance.md."""
    lines = ["| peer | ours | datasets.map | speed-up |", "|---|---|---|---|"]
    for row in found["rows"]:
        ours, theirs = row["ours_tokens_per_second"], row["theirs_tokens_per_second"]
        lines.append(f"| {row['peer']} | {ours:,} tokens/s | {theirs:,} tokens/s | {row['speedup']} × |")
    return "\n".join(lines)


def main() -> None:
    side, *arguments = sys.argv[1:]
    found = {"ours": ours, "theirs": theirs}[side](*arguments)
    found["tokens_per_second"] = round(found["tokens"] / found["seconds"])
    # ru_maxrss of this process would include that of its parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found["peak_mb"] = round(int(status["VmHWM"].split()[0]) / 1000)
    found["peak_mb_of_a_worker"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
