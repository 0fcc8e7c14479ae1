"""The YAML file of a recipe, before its settings are parsed."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.checksums import file_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, read_yaml
from t5_pipeline.core.packaged import or_packaged

ORIGIN = "origin.json"
RECIPE_KEYS = ("name", "vars", "seed", "tasks", "stages", "launch")


def read_recipe(path: str | Path) -> Located:
    """Read a recipe without parsing its settings.

    Raises:
        InputError: if the file is not a YAML mapping.
    """
    path = or_packaged(Path(path))
    located = read_yaml(path)
    if not isinstance(located.data, dict):
        raise InputError(f"{path}: is not a recipe; give a YAML file with the keys {', '.join(RECIPE_KEYS)}")
    return located


def origin_of(located: Located, copy: str) -> str:
    """Where the keys of a recipe were written, as JSON: errors about a copy of the recipe name these places.

    Args:
        copy: text of the copy.
    """
    return json.dumps(
        {
            "of": sha256(copy.encode()).hexdigest(),
            "path": str(located.path),
            "lines": [[key, line] for key, line in located.lines.items()],
            "overridden": [[key, flag] for key, flag in located.overridden.items()],
        }
    )


def with_origin(copy: Located, file: Path) -> Located:
    """A copy of a recipe whose errors name the places in the original, or keys only if these are not known.

    Args:
        file: with the `origin_of` the original.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        origin = read_json(file)
        if origin["of"] == file_digest(copy.path) and origin["lines"]:
            lines = {tuple(key): int(line) for key, line in origin["lines"]}
            overridden = {tuple(key): str(flag) for key, flag in origin["overridden"]}
            return replace(copy, path=Path(origin["path"]), lines=lines, overridden=overridden)
    return replace(copy, keys_only=True)


def stages_of_kind(located: Located, kind: str) -> list[str]:
    """Names of the stages of one kind, before the recipe is parsed."""
    entries = located.data.get("stages")
    entries = entries if isinstance(entries, dict) else {}
    return [name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("uses", name) == kind]
