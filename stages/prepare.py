"""Preparation: text to token shards, the one thing that training reads.

    pieces of the corpus → SentencePiece ids, without EOS → shards, memory-mapped by training

Without a vocabulary one is trained on the corpus first. Documents that hold a validation or test input of a task under
`decontaminate` are dropped, and counted. Each piece becomes a shard by itself, on all cores of this machine or on a Ray
cluster, with the same bytes. An interrupted preparation goes on with the shards that are not there yet.

In:  a corpus, perhaps a vocabulary
Out: "tokens" (shards, the vocabulary, what was dropped and why)
Run: accelerate launch stages/prepare.py --corpus text/ --vocabulary google/t5-v1_1-base --output-dir runs/text
 or: accelerate launch stages/prepare.py --recipe recipes/demo.yaml
"""

from __future__ import annotations

from collections.abc import Iterator

from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError, Interrupted
from t5_pipeline.data_prep.corpora.decontamination import Decontamination
from t5_pipeline.data_prep.corpora.documents import Piece, corpus_pieces
from t5_pipeline.data_prep.shards.local_workers import on_this_machine
from t5_pipeline.data_prep.shards.ray_workers import on_ray
from t5_pipeline.data_prep.shards.writer import Encoding, Events, Written, write_tokens
from t5_pipeline.data_prep.tasks.encode import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.execution.context import Stage, log
from t5_pipeline.execution.metrics_log import MetricsLog
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.signals import StopSignal
from t5_pipeline.execution.stage_process import main


def prepare(stage: Stage[PrepareConfig]) -> None:
    c = stage.config
    held_out = [text for task in c.decontaminate for text in Task.load(task).held_out_texts()]
    vocabulary = Vocabulary.load(c.vocabulary) if c.vocabulary else trained_vocabulary(stage, held_out)
    partial, published = stage.directory / "tokens.partial", stage.directory / "tokens"
    if published.is_dir() and not partial.is_dir():
        published.rename(partial)  # stopped before the manifest was written: nothing of it is lost
    progress, metrics = Progress(stage.name, None, unit="document"), MetricsLog(stage.directory / "metrics.jsonl")

    def workers(encoding: Encoding, pieces: dict[int, Piece]) -> Events:
        return on_ray(encoding, pieces, c.ray, c.threads) if c.ray else on_this_machine(encoding, pieces, c.threads)

    with progress, metrics, StopSignal(stage.launch) as stop:
        metrics.truncate_after(-1)
        begun: list[Written] = []  # what was there when this process began, which was not made in its time

        def show(written: Written) -> None:
            begun[:] = begun or [written]
            rate = (written.tokens - begun[0].tokens) / max(stage.seconds, 1e-9)
            row = {"step": written.documents, "tokens": written.tokens, "tokens_per_second": round(rate)}
            metrics.write(row)
            progress.update(written.documents, row)
            if stop.signum:
                raise Interrupted(stop.signum)

        text = write_tokens(
            pieces(c),
            vocabulary,
            partial,
            validation_fraction=c.validation_fraction,
            seed=c.seed,
            decontaminate=held_out,
            description={"corpus": c.corpus, "config": c.config, "split": c.split},
            workers=workers,
            on_progress=show,
        )
    stage.stopped_by = stop.signum

    dropped = "".join(f", {count:,} dropped: {reason}" for reason, count in text.dropped.items())
    log.info("%s: %s documents, %s tokens%s", stage.name, f"{text.documents:,}", f"{text.tokens:,}", dropped)
    stage.cells[0].facts.update(documents=text.documents, tokens=text.tokens, vocabulary=vocabulary.size)
    stage.cells[0].facts.update(dropped=text.dropped)

    stage.publish("tokens", partial)


def pieces(c: PrepareConfig) -> list[Piece]:
    return corpus_pieces(c.corpus, text_field=c.text_field, config=c.config, split=c.split, piece_bytes=c.shard_bytes)


def trained_vocabulary(stage: Stage[PrepareConfig], held_out: list[str]) -> Vocabulary:
    """A vocabulary trained on the beginning of the corpus, without what is held out; trained once."""
    c, place = stage.config, stage.directory / "vocabulary"
    if not place.is_dir():
        log.info("%s: training a vocabulary of %s pieces", stage.name, f"{c.vocabulary_size:,}")
        kept_out = Decontamination(held_out)

        def texts() -> Iterator[str]:
            left = c.vocabulary_characters
            for document in (document for piece in pieces(c) for document in piece.documents()):
                if left <= 0:
                    return
                if not kept_out.found_in(document.text):
                    left -= len(document.text)
                    yield document.text
            if left == c.vocabulary_characters:
                raise InputError(
                    f"prepare.corpus: {c.corpus} holds no text to train a vocabulary on; give one that does"
                )

        write_directory(place, Vocabulary.train(texts(), c.vocabulary_size).save)
    return Vocabulary.load(place)


if __name__ == "__main__":
    main(prepare, PrepareConfig)
