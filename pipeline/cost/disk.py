"""What a stage leaves on disk: token shards, checkpoints, published models and prompts. Nothing is read but sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.stage import StageConfig, TrainingConfig
from t5_pipeline.cost.flops import trained_together
from t5_pipeline.cost.memory import moments_bytes
from t5_pipeline.modeling.config import T5Config

_FP32 = 4
BYTES_OF_A_TOKEN = 4.26
"""UTF-8 bytes of English text that a piece of T5's vocabulary stands for, as measured on 120 articles of Wikipedia."""


def checkpoints_bytes(together: Sequence[TrainingConfig], shape: T5Config) -> int | None:
    """Checkpoints of a job: those that are kept at its end, and one more until it has taken the place of the oldest."""
    trained = trained_together(together, shape, LaunchConfig())
    if trained is None:
        return None
    c = together[0]
    one = _FP32 * trained.numbers * (2 if trained.keeps_best else 1) + moments_bytes(shape, trained)
    return (c.keep_last + 1 + (c.steps // c.keep_every if c.keep_every else 0) + c.keep_best) * one


def published_bytes(settings: StageConfig, shape: T5Config, steps: int = 1) -> int | None:
    """What a cell publishes, in fp32: a model, at so many steps, or prompts."""
    numbers = shape.parameters if "model" in settings.outputs else settings.trained_parameters(shape)
    return None if numbers is None else steps * _FP32 * numbers


def shards_bytes(tokens: int, settings: PrepareConfig) -> int:
    """Token shards: two bytes a token, four where the vocabulary needs them. Where documents end adds little."""
    narrow = settings.vocabulary is not None or settings.vocabulary_size + 100 <= 2**16
    return tokens * (2 if narrow else 4)


def tokens_of(settings: PrepareConfig) -> int | None:
    """About how many tokens a corpus on this disk has; None where only reading it would tell."""
    size = text_bytes(Path(settings.corpus), settings.text_field)
    return None if size is None else round(size / BYTES_OF_A_TOKEN)


def text_bytes(corpus: Path, field: str) -> int | None:
    """Bytes of text in a file or below a folder: the size of .txt and .jsonl, of Parquet what its metadata says.

    None where that is not known of every file: what is compressed, or is not there.
    """
    files = [corpus] if corpus.is_file() else sorted(path for path in corpus.rglob("*") if path.is_file())
    total = 0
    for file in files:
        size = _text_bytes(file, field)
        if size is None:
            return None
        total += size
    return total or None


def _text_bytes(file: Path, field: str) -> int | None:
    if file.suffix in (".txt", ".jsonl"):
        return file.stat().st_size
    if file.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    found = pq.read_metadata(file)
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(found.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field) or None
