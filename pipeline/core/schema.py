"""Settings: fields with a description, a unit, and a role in the result.

Fingerprints follow from the role:

    trajectory   changes the result (the default)
    extent       length of the same trajectory: more `steps` resume from a checkpoint
    runtime      threads, microbatch, logging: never part of a fingerprint
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.suggestions import close_to, nearest

_LONGEST_VALUE = 200  # characters of a value in an error
_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "list": "a list",
    "dictionary": "a mapping",
}

Model = TypeVar("Model", bound=BaseModel)
Role = Literal["trajectory", "extent", "runtime"]
Sentinel = Literal["none", "targets", "both"]
"""Use of extra_id_0 in a model's texts: nowhere, at the start of targets, or also at the end of inputs."""


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    role: Role = "trajectory",
    neutral: bool = False,
    only: str = "",
    **constraints: Any,
) -> Any:
    """A field with its description, unit and role.

    Args:
        neutral: the default changes no result and is left out of fingerprints, so that stages that finished before the
            setting existed stay up to date.
        only: the values of another setting with which this one has an effect, as in "method: lora or ia3"; "sweep" is
            any value but the default, and "no mixture" the default.
    """
    extra: dict[str, Any] = {"unit": unit, "role": role, "neutral": neutral, "only": only}
    if isinstance(default, (dict, list)):
        return Field(
            default_factory=lambda: type(default)(default),
            description=description,
            json_schema_extra=extra,
            **constraints,
        )
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Input:
    """Marks a field that names an artifact: a stage's output or a path; with `many`, any number of them."""

    def __init__(self, artifact: str, many: bool = False) -> None:
        self.artifact = artifact
        self.many = many


class Data:
    """Marks a field that names data outside the run, whose contents are part of the fingerprint."""


@dataclass(frozen=True)
class Origin:
    """Where settings were written. All origins are equal, because settings are compared by their values."""

    where: Callable[[tuple[str | int, ...]], str] | None = field(default=None, compare=False)


class Config(BaseModel):
    """Base of all settings: immutable, unknown keys are errors, only numbers given as text are converted."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def where(self, *key: str | int) -> str:
        """Where a key was written, for errors: `recipes/demo.yaml:7: stages.prepare.corpus`, or `--corpus`."""
        return self._origin.where(key) if self._origin.where else self.default_where(*key)

    def default_where(self, *key: str | int) -> str:
        """The name of a key of settings that were not validated with `validate`."""
        return ".".join(map(str, key))

    def changed(self, name: str) -> bool:
        """Whether a setting has another value than its default."""
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) != default)

    def without_effect(self) -> dict[str, str]:
        """The settings that the value of another one makes useless: name → `only` of its declaration."""
        conditions = {name: properties(field)["only"] for name, field in type(self).model_fields.items()}
        return {name: only for name, only in conditions.items() if only and not self._meets(only)}

    def _meets(self, condition: str) -> bool:
        name, _, values = condition.removeprefix("no ").partition(": ")
        if name not in type(self).model_fields:  # a stage can use a group of settings without the one that asks for it
            return True
        if values:
            return getattr(self, name) in values.split(" or ")
        return self.changed(name) != condition.startswith("no ")

    @field_validator("*", mode="before")
    @classmethod
    def number_is_not_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Python and pydantic take True for 1."""
        types = list(types_in(cls.model_fields[info.field_name or ""].annotation))
        takes_numbers = (int in types or float in types) and bool not in types
        for one in value if isinstance(value, list) else [value]:
            if takes_numbers and isinstance(one, bool):
                raise ValueError(f"must be a number, not {str(one).lower()}")
        return value

    @field_validator("*")
    @classmethod
    def number_has_64_bits(cls, value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError("must be less than 2^63")
        return value

    @field_validator("*")
    @classmethod
    def place_is_not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty path would be the current directory."""
        marks = cls.model_fields[info.field_name or ""].metadata
        if value == "" and any(isinstance(mark, (Input, Data)) for mark in marks):
            raise ValueError("is empty; give a path or a name (is a variable of the shell not set?)")
        return value


def properties(field: FieldInfo) -> dict[str, Any]:
    """Unit, role, neutrality and condition of a setting."""
    assert isinstance(field.json_schema_extra, dict), f"{field.description} is not declared with setting()"
    return field.json_schema_extra


def defaults(**values: Any) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: change the defaults of inherited settings; description, unit, role and constraints stay.

    With several bases that inherit one setting, the first base's default wins (pydantic ignores the MRO).

    >>> class Group(Config):
    ...     learning_rate: float = setting(1e-3, "learning rate", gt=0)
    >>> @defaults(learning_rate=0.3)
    ... class Stage(Group): ...
    >>> Stage().learning_rate, Group().learning_rate
    (0.3, 0.001)
    """

    def decorate(cls: type[Model]) -> type[Model]:
        for name, value in values.items():
            field = copy(cls.model_fields[name])
            field.default = value
            cls.model_fields[name] = field
        cls.model_rebuild(force=True)
        return cls

    return decorate


def data_fields(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel, str]]:
    """Fields marked as data, including those of nested settings: (dotted name, its settings, location)."""
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if any(isinstance(mark, Data) for mark in info.metadata) and value is not None:
            yield prefix + name, settings, value
        for index, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, BaseModel):
                yield from data_fields(
                    inner, f"{prefix}{name}.{index}." if isinstance(value, list) else f"{prefix}{name}."
                )


def validate(
    cls: type[Model], values: Mapping[str, Any], where: Callable[[tuple[str | int, ...]], str], for_list: str = ""
) -> Model:
    """Validate plain values as settings of class `cls`.

    Args:
        where: location of a key, for errors: `recipes/demo.yaml:7: stages.prepare.corpus`, or `--corpus`.
        for_list: the remedy if a list was given for a setting that takes one value.

    Raises:
        InputError: if a value is wrong; reports the first one and its location.
    """
    try:
        made = cls.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key also leaves the right one missing; report the misspelling.
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        place = where(tuple(problem["loc"]))
        remedy = for_list if isinstance(problem["input"], list) else ""
        raise InputError(f"{place}: {_say(cls, problem, remedy)}") from None
    if isinstance(made, Config):
        made._origin = Origin(where)
    return made


def mentioned(where: str) -> str:
    """A place in the middle of a sentence.

    >>> mentioned("recipes/demo.yaml:7: tasks.kind.inputs"), mentioned("--inputs")
    ('`tasks.kind.inputs` (recipes/demo.yaml:7)', '`--inputs`')
    """
    place, _, key = where.rpartition(": ")
    return f"`{key}`" + (f" ({place})" if place else "")


def _say(cls: type[BaseModel], problem: Any, remedy: str) -> str:
    loc, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(loc[-1]), _fields_at(cls, loc[:-1]))}"
    if kind == "missing":
        return "is required; give a value"
    return message_of(problem, remedy)


def message_of(problem: Any, remedy: str = "") -> str:
    """Pydantic's message for one problem, in lower case, with the value that was given and a remedy, or a hint."""
    message = restated(str(problem["msg"]))
    if problem["type"] == "value_error":
        return message
    given = problem["input"]
    remedy = f"; {remedy}" if remedy else _hint(problem["type"], given, problem.get("ctx", {}))
    return f"{message}, not {_shortened(given)}{remedy}"


def restated(message: str) -> str:
    """A message of pydantic in the words of this project's errors.

    >>> restated("Input should be a valid integer, unable to parse string as an integer")
    'must be an integer'
    >>> restated("Input should be greater than or equal to 0"), restated("Input should be 'a' or 'b'")
    ('must be at least 0', "must be 'a' or 'b'")
    """
    message = message.removeprefix("Value error, ")
    if found := re.match(r"Input should be a valid (\w+)", message):
        return f"must be {_TYPES.get(found[1], f'a {found[1]}')}"
    message = re.sub(r"^Input should (be|have)", r"must \1", message)
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return message[0].lower() + message[1:]


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with thousands of digits
        return "a very large number"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _hint(kind: str, given: Any, context: Mapping[str, Any]) -> str:
    """The probable meaning of a wrong value: the nearest choice, a list, a text without quotes, a number."""
    if kind == "literal_error" and (meant := close_to(str(given), re.findall(r"'([^']*)'", context["expected"]))):
        return f"; did you mean `{meant}`?"
    if kind == "list_type" and isinstance(given, str):
        items = given.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
        return f"; write a list: [{', '.join(items)}]"
    if kind == "string_type" and given is not None:
        return "; YAML reads a text as something else unless it is in quotes"
    if kind == "int_parsing" and re.fullmatch(r"\d+(,\d{3})+|\d{1,9}(\.\d+)?[eE]\+?\d{1,2}", str(given)):
        number = float(str(given).replace(",", ""))
        return f"; write {number:.0f}" if number.is_integer() else ""
    if kind == "float_parsing" and re.fullmatch(r"-?\d+,\d+", str(given)):
        return f"; write {str(given).replace(',', '.')}"
    return ""


def _fields_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the model at `loc` inside `cls`."""
    for name in loc:
        field = cls.model_fields.get(str(name))
        if field is None:
            continue
        cls = model_in(field.annotation) or cls
    return list(cls.model_fields)


def types_in(annotation: Any) -> Iterator[Any]:
    """An annotation and the types in it, without the metadata of `Annotated`.

    >>> list(types_in(list[int] | None))
    [list[int] | None, list[int], <class 'int'>, <class 'NoneType'>]
    """
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from types_in(inner)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of nested settings in an annotation; None if there is none."""
    return next((one for one in types_in(annotation) if isinstance(one, type) and issubclass(one, BaseModel)), None)
