"""Disk space of a stage: token shards, checkpoints, published models and prompts. Reads only sizes of files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.flops import training_footprint
from t5_pipeline.cost.memory import moments_bytes
from t5_pipeline.data_prep.corpora.documents import corpus_files
from t5_pipeline.data_prep.corpora.files import compression, file_format
from t5_pipeline.data_prep.corpora.parquet import column_bytes
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_DOCS
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import PRESETS

_FP32 = 4
BYTES_PER_TOKEN = 4.26
"""UTF-8 bytes of English text per token of T5's vocabulary, measured on 120 Wikipedia articles."""

# Uncompressed bytes per byte of English text.
_COMPRESSED = {".gz": 2.6, ".zst": 2.9}
# Bytes of text of corpora by name and configuration. C4: Raffel et al. 2020, table 8; Wikipedia: its data set card.
_KNOWN: dict[tuple[str, str | None], float] = {
    (STDLIB_DOCS, None): 2.2e6,
    ("allenai/c4", "en"): 745e9,
    ("allenai/c4", "realnewslike"): 35e9,
    ("wikimedia/wikipedia", "20231101.en"): 20.2e9,
}


def checkpoints_bytes(together: Sequence[TrainingConfig], shape: T5Config) -> int | None:
    """Checkpoints of a job: those kept at its end, and one more that is written before the oldest is deleted."""
    footprint = training_footprint(together, shape, LaunchConfig())
    if footprint is None:
        return None
    c = together[0]
    one = _FP32 * (footprint.numbers + footprint.kept) + moments_bytes(shape, footprint)
    return (c.keep_last + 1 + (c.run_steps(c.steps) // c.keep_every if c.keep_every else 0) + c.keep_best) * one


def published_bytes(settings: StageConfig, shape: T5Config, steps: int = 1) -> int | None:
    """Published fp32 weights of a cell, at `steps` different steps: models or prompts."""
    numbers = shape.parameters if "model" in settings.outputs else settings.published_parameters(shape)
    return None if numbers is None else steps * _FP32 * numbers


def shards_bytes(tokens: int, settings: PrepareConfig) -> int:
    """Token shards: two bytes per token, four for a large vocabulary. Ends of documents add little."""
    if settings.vocabulary is None:
        ids = settings.vocabulary_size + SENTINELS
    else:
        ids = PRESETS.get(settings.vocabulary, T5Config()).vocab_size
    return tokens * (2 if ids <= 2**16 else 4)


def tokens_of(settings: PrepareConfig) -> int | None:
    """Approximate tokens of a corpus that has not been read; None if nothing is known of its size."""
    known = _KNOWN.get((settings.corpus, settings.config)) if settings.split == "train" else None
    size = known or text_bytes(Path(settings.corpus), settings.text_field)
    if size is None:
        return settings.max_tokens or None
    return min(round(size / BYTES_PER_TOKEN), settings.max_tokens or sys.maxsize)


def text_bytes(corpus: Path, field: str) -> int | None:
    """Bytes of text in the files of a corpus: column sizes of Parquet, file sizes of others.

    Compressed files are assumed to be compressed as well as English text is. None if there is no text.
    """
    return sum(_text_bytes(file, field) for file in corpus_files(corpus)) or None


def _text_bytes(file: Path, field: str) -> int:
    """Bytes of text in a file; 0 if `prepare` cannot read it."""
    if file_format(file) != ".parquet":
        return round(file.stat().st_size * _COMPRESSED.get(compression(file), 1))
    with contextlib.suppress(InputError):
        return sum(size for size, _ in column_bytes(file, field))
    return 0
