"""Variables of a recipe: with `vars: {size: base}`, `$(size)` is `base` in every value; `--set size=xl` replaces it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, Located
from t5_pipeline.core.suggestions import nearest

_USE = re.compile(r"\$\((\w+)\)")


def variables_of(located: Located) -> Mapping[str, Any]:
    """The variables of a recipe that has been read; none if `vars:` is not a mapping."""
    found = located.data.get("vars")
    return found if isinstance(found, dict) else {}


def substitute(located: Located, taken: Collection[str]) -> None:
    """Replace `$(name)` in the values of a recipe, and remove `vars:`. Without variables, nothing is replaced.

    A value that is only `$(name)` has the variable's type.

    Args:
        taken: names that `--set` understands otherwise: stages and keys of recipes.

    Raises:
        InputError: if a name or value cannot be a variable's, or a variable does not exist; names file, line and key.
    """
    given = located.data.pop("vars", None)
    if given is not None and not isinstance(given, dict):
        raise InputError(f"{located.where(('vars',))}: must map names to values, as in size: base")
    for name, value in (given or {}).items():
        where = located.where(("vars", str(name)))
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise InputError(f"{where}: is not the name of a variable; use letters, digits and _")
        if name in taken:
            raise InputError(f"{where}: is also the name of a stage or a key of recipes; choose another")
        if not isinstance(value, str | int | float):
            raise InputError(f"{where}: must be text, a number, true or false")
    if given:
        for key in list(located.data):
            located.data[key] = _replaced(located, given, located.data[key], (key,))


def _replaced(located: Located, variables: Mapping[str, Any], value: Any, at: Key) -> Any:
    def meant(use: re.Match[str]) -> Any:
        name = use[1]
        if name not in variables:
            raise InputError(f"{located.where(at)}: there is no variable `{name}`; {nearest(name, variables)}")
        return variables[name]

    match value:
        case dict():
            return {key: _replaced(located, variables, inner, (*at, key)) for key, inner in value.items()}
        case list():
            return [_replaced(located, variables, inner, (*at, index)) for index, inner in enumerate(value)]
        case str():
            whole = _USE.fullmatch(value)
            return meant(whole) if whole else _USE.sub(lambda use: str(meant(use)), value)
        case _:
            return value
