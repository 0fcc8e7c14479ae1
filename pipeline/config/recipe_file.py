"""The YAML file of a recipe, before its settings are parsed."""

from __future__ import annotations

from pathlib import Path

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, read_yaml
from t5_pipeline.core.packaged import or_packaged

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


def stages_of_kind(located: Located, kind: str) -> list[str]:
    """Names of the stages of one kind, before the recipe is parsed."""
    entries = located.data.get("stages")
    entries = entries if isinstance(entries, dict) else {}
    return [name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("uses", name) == kind]
