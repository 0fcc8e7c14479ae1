"""Settings of `prepare`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.schema import Data, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig


class PrepareConfig(StageConfig):
    """Text to token shards."""

    kind: ClassVar[str] = "prepare"
    summary: ClassVar[str] = "read a corpus, train or load the vocabulary, write token shards"
    outputs: ClassVar[tuple[str, ...]] = ("tokens",)
    repairs_output: ClassVar[bool] = True
    code_version: ClassVar[int] = 2  # 2: shards are pieces of the corpus, validation documents are drawn by place

    corpus: Annotated[str, Data()] = setting(
        ...,
        "what to read: a file or folder of .txt, .jsonl (each also .gz or .zst) or .parquet, a `datasets` hub name, or"
        " `stdlib-docs`, the documentation that comes with Python",
    )
    config: str | None = setting(None, "configuration of a hub data set")
    split: str = setting("train", "split of a hub data set")
    text_field: str = setting("text", "field of JSONL, Parquet and hub rows that holds the text")
    vocabulary: Annotated[str | None, Data()] = setting(
        None, "SentencePiece model, tokenizer directory or hub model whose vocabulary to use; none trains one"
    )
    vocabulary_size: int = setting(
        32000, "pieces of a vocabulary that is trained, sentinels not counted", unit="pieces", gt=8
    )
    vocabulary_characters: int = setting(
        100_000_000,
        "characters of the corpus, from its start, that a vocabulary is trained on",
        unit="characters",
        gt=0,
    )
    decontaminate: list[TaskConfig] = setting(
        [], "tasks whose validation and test inputs must not occur in the corpus: a document that holds one is dropped"
    )
    validation_fraction: float = setting(0.01, "share of the documents kept aside to measure the loss on", ge=0, lt=1)
    shard_bytes: int = setting(
        2**28,
        "bytes of the corpus that become one shard, the unit of work and of going on; files that are compressed or .txt"
        " are not cut, a hub data set is by its own files; of a small corpus less, so that all cores have work",
        unit="bytes",
        gt=0,
    )
    ray: str | None = setting(
        None,
        "Ray cluster whose machines make the shards and share the output directory: its address (`auto`, `HOST:PORT`,"
        " `ray://HOST:PORT`), or `local` to start Ray here; none: processes of this machine, as many as `threads`",
        role="runtime",
    )
