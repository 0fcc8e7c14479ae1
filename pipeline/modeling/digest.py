"""The digest of a model, by which prompts, manifests and model cards name it.

It covers the tensors (name, dtype, shape, bytes) in the order of their names, the entries of config.json that decide
how they are used, the sentinel variant and the vocabulary. Sharding, model cards and file names do not change it.
Torch-free: safetensors files are read by their own header.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t5_pipeline.core.bounded import read_file
from t5_pipeline.core.checksums import file_digest, json_digest, tensors_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import read_published
from t5_pipeline.data_prep.tokenizer.sources import BPE_FILES, source_of
from t5_pipeline.data_prep.tokenizer.special_tokens import T5_TOKENS
from t5_pipeline.modeling.config import INDEX, WEIGHTS, T5Config

_LARGEST_VOCABULARY = 2**28  # bytes


def model_digest(directory: Path) -> str:
    """Digest of a model's directory.

    Raises:
        InputError: if it contains no weights, or a damaged file.
    """
    metadata, tokenizer = directory / "t5_pipeline.json", directory / "tokenizer_config.json"
    return json_digest(
        {
            "tensors": _weights_digest(directory),
            "shape": _shape(directory),
            "sentinel": read_published(metadata)["sentinel"] if metadata.exists() else "none",
            "vocabulary": _vocabulary_digest(directory),
            "extra ids": read_published(tokenizer).get("extra_ids") if tokenizer.exists() else None,
        }
    )


def _vocabulary_digest(directory: Path) -> str | None:
    """Digest of the file that decides the ids; None without a vocabulary, or with T5's tokenizer.json alone."""
    source = source_of(directory)
    if source is None or source.form == "t5":
        return None
    if source.form == "bytes":
        return "bytes"
    if source.form == "bpe":
        return json_digest([_bounded_digest(directory / name) for name in BPE_FILES])
    return _bounded_digest(source.path)


def _bounded_digest(path: Path) -> str:
    return hashlib.sha256(read_file(path, _LARGEST_VOCABULARY)).hexdigest()


def t5x_folder(path: Path) -> Path:
    """The folder of a T5X checkpoint whose file `checkpoint` is given; any other path as it is."""
    return path.parent if path.name == "checkpoint" and path.is_file() else path


def t5x_files(directory: Path) -> list[Path]:
    """Files of the T5X checkpoint that a directory is or contains."""
    is_t5x = (directory / "checkpoint").is_file() or any(directory.glob("checkpoint_*/checkpoint"))
    return sorted(path for path in directory.rglob("*") if path.is_file()) if is_t5x else []


def _weights_digest(directory: Path) -> str:
    """Digest of the safetensors tensors, or of the files of a T5X checkpoint."""
    if any(directory.glob("*.safetensors")):
        return tensors_digest(directory)
    t5x = t5x_files(directory)
    if not t5x:
        raise no_weights(directory)
    return json_digest([[path.relative_to(directory).as_posix(), file_digest(path)] for path in t5x])


def no_weights(directory: Path) -> InputError:
    """The error about a model's directory without weights that can be read."""
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    if pickles:
        return InputError(
            f"{directory}: contains only pickled weights ({pickles[0]}), which are never read; if you trust them,"
            " convert them once: T5ForConditionalGeneration.from_pretrained(this).save_pretrained(new) in transformers"
        )
    return InputError(f"{directory}: contains a config.json but no weights; add {WEIGHTS} or {INDEX}")


# Without dropout and what the tensors show. Special ids count only if they are not T5's, and scaled outputs only if the
# output matrix is not the embedding.
_NOT_USE = ("dropout_rate", "special", "scaled", "model_type")


def _shape(directory: Path) -> dict[str, Any] | None:
    """The entries of config.json that decide how the tensors are used, thus without dropout."""
    config = directory / "config.json"
    if not config.exists():
        return None
    shape = T5Config.from_config(read_published(config), str(config))
    later: dict[str, Any] = {"special": asdict(shape.special)} if shape.special != T5_TOKENS else {}
    if shape.scaled and not shape.tied:
        later["scaled"] = True
    return {key: value for key, value in asdict(shape).items() if key not in _NOT_USE} | later
