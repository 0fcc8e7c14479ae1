"""`diagnose`: find out what is at a place, and diagnose it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t5_pipeline.artifacts import manifest
from t5_pipeline.artifacts.kinds import PEFT_CONFIG, PEFT_WEIGHTS, kind_at, locate_one
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import corpus_files
from t5_pipeline.data_prep.corpora.files import file_format, is_data_name
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_DOCS
from t5_pipeline.data_prep.corpora.tables import TABLES
from t5_pipeline.diagnosis.data import diagnose_corpus, diagnose_task, diagnose_tokens
from t5_pipeline.diagnosis.findings import Diagnosis

_YAML = (".yaml", ".yml")
_MOST_SHOWN = 8


def diagnose(location: str, model: str | None = None, text_field: str = "text") -> Diagnosis:
    """Diagnose a T5, a prompt or another method's artifact, an adapter or .npy rows, tokens, a corpus or a task file.

    Args:
        location: path, stage directory, or the name of a T5 on the hub.
        model: the T5 that a prompt, corpus or task is for.
        text_field: field of a corpus's rows that contains the text.

    Raises:
        InputError: if there is nothing of this kind.
    """
    path = Path(location)
    if path.name in (PEFT_CONFIG, PEFT_WEIGHTS) and path.is_file():
        return diagnose(str(path.parent), model, text_field)
    if path.suffix in _YAML and not path.is_dir():  # a missing one is not looked up on the hub
        return diagnose_task(path, model)
    if location == STDLIB_DOCS:
        return diagnose_corpus(location, text_field, model)
    kind = kind_at(location)
    if kind == "scores":
        raise InputError(f"{location}: contains scores; give a model, a prompt, a corpus or a task file")
    if kind == "tokens":
        return diagnose_tokens(locate_one(kind, location, "WHAT"), location, model)
    if kind is None and (inside := [*_results(path)]):
        shown = ", ".join(map(str, inside[:_MOST_SHOWN])) + (", …" if len(inside) > _MOST_SHOWN else "")
        raise InputError(f"{location}: contains several results; give one of them: {shown}")
    if kind is None and _is_npy(path):
        from t5_pipeline.diagnosis.learned import diagnose_rows

        return diagnose_rows("npy", path, location, model)
    if kind is None and not _has_weights(path) and _is_corpus(path):
        return diagnose_corpus(location, text_field, model)
    if path.is_file() and file_format(path) in TABLES:
        raise InputError(
            f"{location}: contains rows; describe their task in a YAML file with the keys name, data, inputs, targets,"
            " and give that file"
        )
    # These import torch.
    from t5_pipeline.diagnosis.learned import diagnose_artifact, diagnose_rows
    from t5_pipeline.diagnosis.model import diagnose_model

    if kind is None and (path / PEFT_CONFIG).is_file():
        return diagnose_rows("peft", path, location, model)
    place = locate_one(kind or "model", location, "WHAT")
    if kind in (None, "model"):
        return diagnose_model(place, location)
    return diagnose_artifact(kind, place, location, model)


def _results(folder: Path, depth: int = 2) -> Iterator[Path]:
    """The directories with results in a run directory, or in the directory of a stage with several cells.

    A model without a manifest does not count: a config.json may be part of a corpus.
    """
    for child in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
        kind = kind_at(str(child))
        if kind is None and depth > 1:
            yield from _results(child, depth - 1)
        elif kind not in (None, "scores") and (kind != "model" or (child / manifest.NAME).is_file()):
            yield child


def _has_weights(path: Path) -> bool:
    """Whether a directory is a model or an adapter, perhaps without its config."""
    patterns = ("*.safetensors", "*.bin", "checkpoint*", "model.ckpt-*")
    return path.is_dir() and any(found for pattern in patterns for found in path.glob(pattern))


def _is_npy(path: Path) -> bool:
    """Whether a file is an array of NumPy, whatever its name, or has the suffix of one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".npy" or file.read(6) == b"\x93NUMPY"


def _is_corpus(path: Path) -> bool:
    return bool(corpus_files(path)) if path.exists() else is_data_name(path)
