"""Overrides: values of the command line that replace those of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from t5_pipeline.config.recipe_file import RECIPE_KEYS
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.variables import variables_of
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, NotYAML, parse_value
from t5_pipeline.core.suggestions import nearest


@dataclass(frozen=True)
class Override:
    """A value that replaces a setting of the recipe.

    Attributes:
        path: (stage, key), ("tasks", name, key), or a key or variable of the recipe, such as ("seed",).
        flag: the command-line flag that gave it, for errors.
    """

    path: tuple[str, ...]
    value: Any
    flag: str = "--set"


def parse_override(text: str) -> Override:
    """Parse `stage.key=value`, `tasks.name.key=value`, `seed=value` or a variable, as `--set` takes them, in YAML.

    A value that YAML cannot read is text, and so is a number like 010 that is not in a list.

    Raises:
        InputError: if it has no key, or a list or mapping contains a key twice or a number like 010.

    >>> parse_override("lm_adapt.keep_steps=[100, 200]")
    Override(path=('lm_adapt', 'keep_steps'), value=[100, 200], flag='--set')
    """
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise InputError(f"--set {text}: is not an override; write it as stage.key=value")
    try:
        return Override(keys, parse_value(value, f"--set {path.strip()}"))
    except NotYAML:  # such as the template {premise} {hypothesis}
        return Override(keys, value)
    except InputError:
        if value.lstrip().startswith(("[", "{")):
            raise
        return Override(keys, value)


def apply_overrides(located: Located, overrides: Iterable[Override]) -> None:
    """Replace values in a recipe that has been read.

    Raises:
        InputError: if there is no such stage, or a path leads through a value.
    """
    data: dict[str, Any] = located.data
    stages, tasks = (data[key] if isinstance(data.get(key), dict) else {} for key in ("stages", "tasks"))
    variables = variables_of(located)
    for override in overrides:
        path, where = override.path, f"{override.flag} {'.'.join(override.path)}"
        if len(path) == 1 and path[0] in variables:
            path = ("vars", *path)
        if path[0] not in (*RECIPE_KEYS, *stages):
            if path[0] in tasks and len(path) > 1:
                raise InputError(f"{where}: is a setting of a task; did you mean `tasks.{'.'.join(path)}`?")
            raise InputError(f"{where}: {_unknown_path(path, stages, variables)}")
        if path[0] == "tasks" and len(path) > 2 and path[1] not in tasks:
            raise InputError(f"{where}: there is no task `{path[1]}`; {nearest(path[1], tasks)}")
        if path[0] == "vars" and len(path) > 1 and path[1] not in variables:
            raise InputError(f"{where}: there is no variable `{path[1]}`; {nearest(path[1], variables)}")
        is_stage = path[0] not in RECIPE_KEYS
        target = stages if is_stage else data
        for key in path[:-1]:
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError(f"{where}: `{key}` is a value without keys; set it as a whole")
            target = inner
        target[path[-1]] = override.value
        # A value replaces the matrix axis of the same name.
        if is_stage and len(path) == 2 and isinstance(target.get("matrix"), dict):
            target["matrix"].pop(path[1], None)
        located.overridden[("stages", *path) if is_stage else path] = override.flag


def _unknown_path(path: tuple[str, ...], stages: Mapping[str, Any], variables: Iterable[str]) -> str:
    """The problem of an override that begins with neither a stage nor a key of the recipe."""
    kinds = {name: entry.get("uses", name) for name, entry in stages.items() if isinstance(entry, dict)}
    having = [name for name, kind in kinds.items() if kind in STAGES and path[0] in STAGES[kind].model_fields]
    if len(path) == 1 and having:
        return f"is a setting of {', '.join(having)}; name the stage, as in {having[-1]}.{path[0]}=VALUE"
    return f"there is no stage `{path[0]}`; {nearest(path[0], [*variables, *stages, *RECIPE_KEYS])}"
