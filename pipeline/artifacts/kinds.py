"""Artifacts that stages pass to one another: the file that marks each kind, its location and its digest. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.core.checksums import file_digest, json_digest, tensors_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import is_url
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.records import read_published
from t5_pipeline.core.schema import validate
from t5_pipeline.data_prep.corpora.hub import may_be_on_hub
from t5_pipeline.data_prep.shards.remote_tokens import local_tokens
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.digest import model_digest, t5x_files, t5x_folder
from t5_pipeline.modeling.model_metadata import read_metadata

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""PEFT's names of the files of an adapter."""

_FOLDERS_OF_PROMPTS = ("mixture", "task_prompts")
_MOST_INSIDE = 8  # directories in an error
_SINGLE = ("model", "tokens", "scores")  # kinds of which a stage reads one


def marker(kind: str) -> str:
    """The file that marks a directory as an artifact: `prompt.json` for a prompt."""
    return "config.json" if kind == "model" else f"{kind}.json"


def locate(kind: str, location: str, where: str) -> list[Path]:
    """Directories of the artifacts at a path: the path itself, or what a stage published in it.

    A stage with many cells, or a folder of artifacts, gives all of them; of models, token shards and scores, only what
    a stage published if there is such a one. A name that is not a directory is a model on the hub, and stays a name.
    Token shards at a URL are represented by a local directory.

    Args:
        where: setting that names the location, for errors.

    Raises:
        InputError: if there is no such artifact.
    """
    if kind == "tokens" and is_url(location):
        return [local_tokens(location, where)]
    path, name = Path(location), marker(kind)
    if kind == "model":
        path = t5x_folder(path)
    if kind == "model" and (foreign := _foreign_model(path)):
        raise InputError(f"{where}: {location} {foreign}")
    if (path / name).is_file() or (kind == "model" and t5x_files(path)):
        return [path]
    if kind in _SINGLE and (path / kind / name).is_file():
        return [path / kind]
    if many := _within(path, kind):
        return many
    if path.is_dir():
        inside = [str(child) for child in sorted(path.glob("[!.]*")) if _within(child, kind)]
        fix = f"give {' or '.join(inside)}" if 0 < len(inside) <= _MOST_INSIDE else "check the path"
        others = [other for other in KINDS if _is_marked(path, other) or _within(path, other)]
        found = f", found: {', '.join(others)}" if others else ""
        raise InputError(f"{where}: no {kind} in {location} ({name} is missing{found}); {fix}")
    if kind == "model" and is_hub_name(location):
        return [path]
    if path.exists():
        raise InputError(f"{where}: {location} is not a directory; give the directory of a {kind.replace('_', ' ')}")
    raise InputError(f"{where}: {location} does not exist; {_check_path(location)}")


def locate_one(kind: str, location: str, where: str) -> Path:
    """The directory of the only artifact at a path, as `locate` finds it.

    Raises:
        InputError: if there is no such artifact, or several.
    """
    found = locate(kind, location, where)
    if len(found) > 1:
        places = [path.parent if path.name == kind and path.parent != Path(location) else path for path in found]
        named = ", ".join(map(str, places[:_MOST_INSIDE]))
        named += ", …" if len(found) > _MOST_INSIDE else ""
        raise InputError(f"{where}: {location} contains {len(found)} {kind.replace('_', ' ')}s; choose one of {named}")
    return found[0]


def _within(folder: Path, kind: str) -> list[Path]:
    """Artifacts of a folder in the order of their names: FOLDER/NAME, or FOLDER/NAME/KIND as stages publish them.

    FOLDER/KIND, which a stage published, is one of them, because a prompt in a folder of prompts may be named `prompt`.
    """
    places = [[child, child / kind] for child in sorted(folder.glob("[!.]*"))]
    marked = [[place for place in pair if _is_marked(place, kind)] for pair in places]
    return [found[0] for found in marked if found]


def named_prompts(location: str, where: str) -> dict[str, Path]:
    """The prompts at a location by their names (see `named_artifacts`)."""
    return {name: path for name, (_, path) in named_artifacts(("prompt",), location, where).items()}


def named_artifacts(kinds: Sequence[str], location: str, where: str) -> dict[str, tuple[str, Path]]:
    """Kind and directory of the artifacts at a location, as `locate` finds them, by their names.

    An artifact is named after its directory, or after the parent of a directory that a stage published (`prompt`),
    unless that parent contains several artifacts. Of the models in a folder, only fine-tuned ones are taken.

    Args:
        kinds: kinds to look for; a directory that could be of several is the first of them.
        where: setting that names the location, for errors.

    Raises:
        InputError: if there is none.
    """
    folder = Path(location)
    found = _marked(kinds, folder)
    if [path for _, path in found] != [folder]:
        pairs = [pair for child in sorted(folder.glob("[!.]*")) for pair in _marked(kinds, child)]
        inner = [(kind, path) for kind, path in pairs if kind != "model" or _is_fine_tuned(path)]
        found = inner if len(inner) > 1 else found or inner
    if not found:
        locate(kinds[0], location, where)  # raises the error
    names = {}
    for kind, path in found:
        full = Path(os.path.abspath(path))  # noqa: PTH100 (a link keeps its own name; resolve() would follow it)
        published = full.name == kind and not (len(found) > 1 and path.parent == folder)
        names[full.parent.name if published else full.name] = (kind, path)
    return names


KINDS = ("prompt", "task_prompts", "adapter", "mixture", "text_prompt", "tokens", "scores", "model")


def solved_tasks(kind: str, path: Path) -> list[TaskConfig]:
    """The tasks that an artifact solves, as its records name them; none for a model that was not fine-tuned.

    Raises:
        InputError: if a record is damaged.
    """
    if kind == "model":
        return [tuned.task for tuned in read_metadata(path).tasks]
    own = path / marker(kind)
    records = sorted(path.glob(f"*/{marker('prompt')}")) if kind in _FOLDERS_OF_PROMPTS else [own]
    return [_task_of(record) for record in records]


def _task_of(record: Path) -> TaskConfig:
    task = read_published(record).get("task")
    return validate(
        TaskConfig,
        task if isinstance(task, dict) else {},
        lambda loc: f"{record}: {'.'.join(map(str, ('task', *loc)))}",
    )


def kind_at(location: str) -> str | None:
    """The kind of the artifact at a path, or of what a stage published in it; None if there is none."""
    return next((kind for kind, _ in _marked(KINDS, Path(location))), None)


def _marked(kinds: Sequence[str], place: Path) -> list[tuple[str, Path]]:
    """The artifact in a directory, or else what a stage published in it: one or none."""
    pairs = [(kind, place) for kind in kinds] + [(kind, place / kind) for kind in kinds]
    return [(kind, path) for kind, path in pairs if _is_marked(path, kind)][:1]


def _is_marked(path: Path, kind: str) -> bool:
    """Whether a directory is of a kind; not if it may not be entered, as `lost+found` on a server's volume."""
    try:
        return (path / marker(kind)).is_file()
    except OSError:
        return False


def _is_fine_tuned(model: Path) -> bool:
    metadata = model / "t5_pipeline.json"
    try:
        return metadata.is_file() and bool(read_published(metadata).get("tasks"))
    except InputError:  # whoever reads it reports the reason, and can read the others
        return True


def check_data(location: str, where: str) -> None:
    """Check that a corpus, a task's rows or a vocabulary exists, unless it may be a name on the hub.

    Args:
        where: setting that names the location, for errors.

    Raises:
        InputError: if it does not exist.
    """
    path = Path(location)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{where}: {location} is neither a file nor a directory; check the path")
    if not path.exists() and (not may_be_on_hub(location) or path.suffix == ".model"):
        raise InputError(f"{where}: {location} does not exist; {_check_path(location)}")


def _check_path(location: str) -> str:
    return "write the whole path, because ~ is not expanded here" if location.startswith("~") else "check the path"


def _foreign_model(path: Path) -> str | None:
    """Description of a model in a format that is not read, and a remedy; None for any other path."""
    if path.is_file():
        return (
            "is a file; give the directory of a model (a T5X checkpoint in a single file is not read; save it again as"
            " a directory)"
        )
    listed = False
    if (path / "checkpoint").is_file():  # T5X's tree, or TensorFlow's text
        with (path / "checkpoint").open("rb") as file:
            listed = file.read(21) == b"model_checkpoint_path"
    if listed or any(path.glob("model.ckpt-*.index")):
        return (
            "is a Mesh TensorFlow checkpoint, which is not read; give its T5X or transformers version (T5X's"
            " convert_tf_checkpoint.py converts it)"
        )
    return None


def artifact_digest(kind: str, path: Path) -> str:
    """Digest of a published artifact.

    Raises:
        InputError: if the directory is not such an artifact.
    """
    try:
        return _DIGESTS[kind](path) if kind in _DIGESTS else _record_digest(kind, path)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is damaged (an entry of a JSON file); run its stage again to rebuild it") from None


def _record_digest(kind: str, path: Path) -> str:
    """The digest of a method's artifact: its record without scores, and the tensors beside it and one folder below."""
    described = _described(kind, path)
    folders = [folder for folder in (path, *sorted(path.glob("*/"))) if any(folder.glob("*.safetensors"))]
    return json_digest({"tensors": [tensors_digest(folder) for folder in folders], "described": described})


def _prompt_digest(path: Path) -> str:
    """The digest of the record without scores and of the rows; a package contains the rows for PEFT, too."""
    return json_digest({"described": _described("prompt", path), "rows": tensors_digest(path, "prompt.safetensors")})


def _described(kind: str, path: Path) -> dict[str, Any]:
    described = read_published(path / marker(kind))
    described.pop("scores", None)
    return described


# The kinds whose digest is not that of a method's artifact.
_DIGESTS: dict[str, Callable[[Path], str]] = {
    "model": model_digest,
    "prompt": _prompt_digest,
    "tokens": lambda path: str(read_published(path / "tokens.json")["digest"]),
    "scores": lambda path: file_digest(path / "scores.json"),
}
