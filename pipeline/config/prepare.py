"""Settings of `prepare`, which turns text into token shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from t5_pipeline.config.stage import Package, SplitRead, StageConfig
from t5_pipeline.core.schema import Data, setting
from t5_pipeline.data_prep.tasks.config import TaskConfig


class PrepareConfig(StageConfig):
    """From text to token shards."""

    kind: ClassVar[str] = "prepare"
    summary: ClassVar[str] = "read a corpus, train or load the vocabulary, write token shards"
    outputs: ClassVar[tuple[str, ...]] = ("tokens",)
    repairs_output: ClassVar[bool] = True
    code_version: ClassVar[int] = 5

    # Files: .txt, .jsonl, .ndjson, .json (each also .gz or .zst) or .parquet. stdlib-docs: the documentation that ships
    # with Python.
    corpus: Annotated[str, Data()] = setting(
        ..., "text to read: `stdlib-docs`, a file or folder, or a `datasets` hub data set"
    )
    config: str | None = setting(None, "configuration of a hub data set")
    split: str = setting("train", "split of a hub data set")
    text_field: str = setting("text", "field with the text in JSONL, Parquet and hub rows; nested: doc.text")
    vocabulary: Annotated[str | None, Data()] = setting(
        None, "SentencePiece file, tokenizer directory or hub model; none: train one on the corpus"
    )
    vocabulary_size: int = setting(
        32000, "size of a trained vocabulary, without sentinels", unit="tokens", only="no vocabulary", gt=8
    )
    vocabulary_characters: int = setting(
        100_000_000,
        "characters from the start of the corpus to train the vocabulary on",
        unit="characters",
        only="no vocabulary",
        gt=0,
    )
    decontaminate: list[TaskConfig] = setting(
        [], "drop documents that contain an input of these tasks from a split other than `train`"
    )
    validation_fraction: float = setting(0.01, "fraction of the documents held out for validation", ge=0, lt=1)
    max_documents: int = setting(0, "documents to write, from the start of the corpus; 0: all", unit="documents", ge=0)
    max_tokens: int = setting(
        0, "maximum tokens to write, in whole documents from the start of the corpus; 0: all", unit="tokens", ge=0
    )
    # .txt and compressed files are not split, hub data sets use their own files, and a small corpus makes smaller
    # shards, so that every core has work.
    shard_bytes: int = setting(
        2**28, "corpus bytes per shard, the unit of parallel work and of resuming", unit="bytes", gt=0
    )
    # Machines of the cluster share the output directory. Addresses: auto, HOST:PORT, ray://HOST:PORT.
    ray: str | None = setting(
        None, "Ray cluster: its address, or `local` to start one; none: `threads` local processes",
        role="runtime",
    )  # fmt: skip

    def packages(self) -> list[Package]:
        return [Package("ray", "ray", "ray")] if self.ray is not None else []

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        return [SplitRead(task, split, inputs_only=True) for task in self.decontaminate for split in task.held_out]
