"""The file of a directory from which its text model is read.

No SentencePiece, because commands that read no text use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from t5_pipeline.core.bounded import read_object
from t5_pipeline.data_prep.tokenizer.layout import CONFIG_FILES

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model")
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
BPE_FILES = ("vocab.json", "merges.txt")
FILES = (*SENTENCEPIECE_FILES, TOKENIZER, CONFIG, *BPE_FILES, "added_tokens.json", "special_tokens_map.json")
"""Every file that can matter, to download a tokenizer."""

PUBLISHED = (SENTENCEPIECE_FILES[0], TOKENIZER, CONFIG)
"""Files that `Vocabulary.save` writes."""

_T5_CLASSES = ("T5Tokenizer", "T5TokenizerFast")
_BYTE_CLASSES = ("ByT5Tokenizer",)


class Source(NamedTuple):
    """Attributes:
    form: "t5" is a tokenizer.json from which T5's spiece.model can be rebuilt.
    """

    form: Literal["sentencepiece", "bytes", "t5", "tokenizers", "bpe"]
    path: Path


def vocabulary_files(directory: Path) -> list[Path]:
    """The files of a directory that decide the ids of its vocabulary, in the order of their names."""
    return [path for name in sorted((*FILES, *CONFIG_FILES)) if (path := directory / name).is_file()]


def source_of(directory: Path) -> Source | None:
    """The source of the text model of a directory; None if it has none.

    Raises:
        InputError: if tokenizer_config.json is damaged.
    """
    for name in SENTENCEPIECE_FILES:
        if (directory / name).is_file():
            return Source("sentencepiece", directory / name)
    made_by = tokenizer_class(directory)
    if made_by in _BYTE_CLASSES:
        return Source("bytes", directory / CONFIG)
    if (directory / TOKENIZER).is_file():
        return Source("t5" if made_by in _T5_CLASSES else "tokenizers", directory / TOKENIZER)
    if all((directory / name).is_file() for name in BPE_FILES):
        return Source("bpe", directory / BPE_FILES[0])
    return None


def tokenizer_class(directory: Path) -> str | None:
    """The class of transformers named in tokenizer_config.json.

    Raises:
        InputError: if the file is damaged.
    """
    path = directory / CONFIG
    if not path.is_file():
        return None
    return str(read_object(path, "save the tokenizer again").get("tokenizer_class"))
