"""Preparation: text to token shards, the only data that LM training reads.

    corpus → chunks → SentencePiece ids without EOS → shards, memory-mapped by training

Without a given vocabulary, one is trained on the start of the corpus. Documents that contain a held-out input of a task
under `decontaminate` are dropped and counted. Each chunk becomes one shard, encoded on all cores of this
machine or on a Ray cluster with identical bytes. An interrupted run resumes with the missing shards.

In:  a corpus, optionally a vocabulary
Out: "tokens" (shards, the vocabulary, counts of dropped documents by reason)
Run: accelerate launch stages/prepare.py --corpus text/ --vocabulary google/t5-v1_1-base --output-dir runs/text
 or: accelerate launch stages/prepare.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from t5_pipeline.artifacts import working
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import Interrupted
from t5_pipeline.data_prep.corpora.documents import Chunk, corpus_chunks, first_texts, skipped_files
from t5_pipeline.data_prep.corpora.row import listed
from t5_pipeline.data_prep.shards.encoding import Counts, Workers
from t5_pipeline.data_prep.shards.limit import Limit
from t5_pipeline.data_prep.shards.local_workers import encode_locally
from t5_pipeline.data_prep.shards.ray_workers import encode_on_ray
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.execution.stage_process import main


def prepare(stage: Stage[PrepareConfig]) -> None:
    c = stage.config
    held_out = [text for task in c.decontaminate for text in Task.load(task).held_out_texts()]
    if skipped := skipped_files(c.corpus):
        log.warning("%s: skipped files in %s (%s): %s", stage.name, c.corpus, f"{len(skipped):,}", listed(skipped))
        stage.cells[0].facts.update(skipped_files=listed(skipped))
    chunks = corpus_chunks(c.corpus, text_field=c.text_field, config=c.config, split=c.split, chunk_bytes=c.shard_bytes)
    vocabulary = Vocabulary.load(c.vocabulary) if c.vocabulary else trained_vocabulary(stage, chunks, held_out)

    partial, published = stage.directory / working.PARTIAL_TOKENS, stage.directory / "tokens"
    if published.is_dir() and not partial.is_dir():
        published.rename(partial)  # a previous run was stopped before it wrote the manifest; keep its shards
    workers: Workers = functools.partial(encode_locally, cores=c.threads)
    if c.ray:
        workers = functools.partial(encode_on_ray, address=c.ray, cores=c.threads)

    with StopSignal(stage.launch) as stop, reporter(stage, stop) as report:
        tokens = write_tokens(
            chunks,
            vocabulary,
            partial,
            validation_fraction=c.validation_fraction,
            seed=c.seed,
            decontaminate=held_out,
            limit=Limit(c.max_documents or None, c.max_tokens or None),
            description={"corpus": c.corpus, "config": c.config, "split": c.split},
            workers=workers,
            on_progress=report,
        )
    stage.stopped_by = stop.signum

    dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in tokens.dropped.items())
    log.info("%s: %s documents, %s tokens%s", stage.name, f"{tokens.documents:,}", f"{tokens.tokens:,}", dropped)
    if left := tokens.left_out:
        text = "{documents:,} documents of the last chunk and {chunks:,} of {of_chunks:,} chunks".format(**left)
        log.warning("%s: left out because of max_documents or max_tokens: %s", stage.name, text)
        stage.cells[0].facts.update(left_out=text)
    stage.cells[0].facts.update(
        documents=tokens.documents, tokens=tokens.tokens, vocabulary=vocabulary.size, dropped=tokens.dropped
    )
    stage.publish("tokens", partial)


def trained_vocabulary(stage: Stage[PrepareConfig], chunks: list[Chunk], held_out: list[str]) -> Vocabulary:
    """The vocabulary trained on the start of the decontaminated corpus, by this run or a previous one."""
    c, directory = stage.config, stage.directory / "vocabulary"
    if not working.intact(stage.directory, ["vocabulary"]):
        log.info("%s: training a vocabulary of %s pieces", stage.name, f"{c.vocabulary_size:,}")
        texts = first_texts(chunks, c.vocabulary_characters, without=held_out, corpus=c.corpus)
        trained = Vocabulary.train(texts, c.vocabulary_size)
        stage.cells[0].claim("vocabulary")
        write_directory(directory, trained.save)
        working.complete(stage.directory, "vocabulary")
    return Vocabulary.load(directory)


@contextlib.contextmanager
def reporter(stage: Stage[PrepareConfig], stop: StopSignal) -> Iterator[Callable[[Counts], None]]:
    """Logs and shows counts as they grow; raises Interrupted after a stop signal."""
    with (
        Progress(stage.name, None, unit="document") as progress,
        MetricsLog(stage.directory / "metrics.jsonl") as metrics,
    ):
        metrics.truncate_after(-1)
        first: list[Counts] = []  # the shards of previous runs, which do not count toward this run's throughput

        def report(counts: Counts) -> None:
            first[:] = first or [counts]
            rate = (counts.tokens - first[0].tokens) / max(stage.seconds, 1e-9)
            row = {"step": counts.documents, "tokens": counts.tokens, "tokens_per_second": round(rate)}
            metrics.write(row)
            progress.update(counts.documents, row)
            if stop.signum:
                raise Interrupted(stop.signum)

        yield report


if __name__ == "__main__":
    main(prepare, PrepareConfig)
