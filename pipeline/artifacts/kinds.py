"""What stages hand to one another: a model, token shards, a prompt, scores. Where it lies, and what it is.

A model's digest is taken over its tensors (name, dtype, shape, bytes) in the order of their names, so sharding, model
cards and file names do not change it. Nothing here needs torch: safetensors files are read by their own header.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t5_pipeline.core.checksums import file_digest, json_digest, tensors_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import is_url
from t5_pipeline.data_prep.shards.remote_tokens import local_tokens
from t5_pipeline.modeling.config import T5Config

# The file that says what a directory is.
MARKERS = {
    "model": "config.json",
    "tokens": "tokens.json",
    "prompt": "prompt.json",
    "mixture": "mixture.json",
    "text_prompt": "text_prompt.json",
    "adapter": "adapter.json",
    "scores": "scores.json",
}

_DATA_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".model")


def locate(artifact: str, location: str, where: str) -> list[Path]:
    """Where an artifact lies that was named by path: the directory itself, or what a stage made in it.

    A stage of many cells, or a folder of such artifacts, gives all of them. A name that is no directory is a model on
    the hub, and stays a name. Token shards may lie at a URL; a local directory then stands for them.

    Raises:
        InputError: there is nothing like that; `where` names the setting that asked for it.
    """
    if artifact == "tokens" and is_url(location):
        return [local_tokens(location, where)]
    path, marker = Path(location), MARKERS[artifact]
    if (path / marker).is_file() or (artifact == "model" and _t5x_files(path)):
        return [path]
    if (path / artifact / marker).is_file():
        return [path / artifact]
    if many := _within(path, artifact):
        return many
    if path.is_dir():
        raise InputError(f"{where}: {location} holds no {artifact} (no {marker} in it); give a directory that does")
    if artifact == "model" and not path.is_absolute() and location.count("/") <= 1 and not location.startswith("."):
        return [path]
    raise InputError(f"{where}: {location} does not exist; give the directory of a {artifact}")


def _within(folder: Path, artifact: str) -> list[Path]:
    """Artifacts of a folder, in the order of their names: FOLDER/NAME, or FOLDER/NAME/prompt as stages make them."""
    places = [[child, child / artifact] for child in sorted(folder.glob("[!.]*"))]
    marked = [[place for place in pair if (place / MARKERS[artifact]).is_file()] for pair in places]
    return [found[0] for found in marked if found]


def named_prompts(location: str, where: str) -> dict[str, Path]:
    """The prompts at a location by name: that of their directory, or where this is called `prompt`, of the one above.

    Raises:
        InputError: there is none; `where` names the setting that asked for it.
    """
    found = {}
    for path in locate("prompt", location, where):
        full = Path(os.path.abspath(path))  # noqa: PTH100 (a link keeps its own name; resolve() would follow it)
        found[full.parent.name if full.name == "prompt" else full.name] = path
    return found


def check_data(location: str, where: str) -> None:
    """A corpus, a task's rows or a vocabulary must be there, unless its name may be one on the hub.

    Raises:
        InputError: `where` names the setting that asked for it.
    """
    path = Path(location)
    a_path = path.is_absolute() or location.startswith(".") or location.count("/") > 1 or path.suffix in _DATA_SUFFIXES
    if a_path and not path.exists():
        raise InputError(f"{where}: {location} does not exist; mend the path")


def weights_digest(directory: Path) -> str:
    """Digest of a model's weights: over its safetensors tensors, or over the files of a T5X checkpoint.

    Raises:
        InputError: `directory` contains neither, or a damaged file.
    """
    t5x = [] if any(directory.glob("*.safetensors")) else _t5x_files(directory)
    if t5x:
        return json_digest([[path.relative_to(directory).as_posix(), file_digest(path)] for path in t5x])
    return tensors_digest(directory)


def _t5x_files(directory: Path) -> list[Path]:
    """Files of the T5X checkpoint that a directory is or holds; of those the digest is over the files themselves."""
    is_t5x = (directory / "checkpoint").is_file() or any(directory.glob("checkpoint_*/checkpoint"))
    return sorted(path for path in directory.rglob("*") if path.is_file()) if is_t5x else []


def artifact_digest(artifact: str, path: Path) -> str:
    """Digest of a published artifact, of a kind that `MARKERS` names.

    Raises:
        InputError: the directory does not hold such an artifact.
    """
    if artifact == "tokens":
        return str(_json(path / "tokens.json", "token shards, as prepare writes them")["digest"])
    if artifact == "scores":
        return file_digest(path / "scores.json")
    if artifact == "prompt":
        described = _json(path / "prompt.json", "a prompt, as prompt_tune writes it")
        described.pop("scores", None)
        return json_digest({"rows": tensors_digest(path), "described": described})
    if artifact in ("mixture", "text_prompt", "adapter"):
        described = _json(path / MARKERS[artifact], f"a {artifact}")
        described.pop("scores", None)
        within = [
            tensors_digest(folder) for folder in (path, *sorted(path.glob("*/"))) if any(folder.glob("*.safetensors"))
        ]
        return json_digest({"tensors": within, "described": described})
    metadata = path / "t5_pipeline.json"
    vocabulary, tokenizer = path / "spiece.model", path / "tokenizer_config.json"
    return json_digest(
        {
            "tensors": weights_digest(path),
            "shape": _shape(path),
            "sentinel": _json(metadata, "a model")["sentinel"] if metadata.exists() else "none",
            "vocabulary": file_digest(vocabulary) if vocabulary.exists() else None,
            "extra ids": _json(tokenizer, "a tokenizer").get("extra_ids") if tokenizer.exists() else None,
        }
    )


def _shape(path: Path) -> dict[str, Any] | None:
    """What of config.json decides how the tensors are used; dropout is each stage's own."""
    config = path / "config.json"
    if not config.exists():
        return None
    shape = asdict(T5Config.from_config(_json(config, "a model"), str(config)))
    del shape["dropout_rate"]
    return shape


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path.parent}: does not hold {what} ({path.name} is missing or damaged)") from None
