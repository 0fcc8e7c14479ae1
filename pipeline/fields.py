"""What a setting is: a field with its meaning, its unit, and the part it plays in a result.

Fingerprints follow from that part:

    trajectory   shapes the result: a change makes another result            (the default)
    extent       how far the same trajectory is followed: more `steps` goes on from a checkpoint
    runtime      how it is run: threads, microbatch, logging; never part of a fingerprint
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["trajectory", "extent", "runtime"]


def setting(default: Any, description: str, *, unit: str = "", role: Role = "trajectory", **constraints: Any) -> Any:
    """A field with its meaning, its unit, and the part it plays in the result."""
    extra: dict[str, Any] = {"unit": unit, "role": role}
    if isinstance(default, (dict, list)):
        return Field(
            default_factory=lambda: type(default)(default),
            description=description,
            json_schema_extra=extra,
            **constraints,
        )
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Input:
    """Marks a field that names an artifact: what another stage published, or a path on disk; `many`: any number."""

    def __init__(self, artifact: str, many: bool = False) -> None:
        self.artifact = artifact
        self.many = many


class Data:
    """Marks a field that names data outside the run: its contents are part of the fingerprint."""


class Settings(BaseModel):
    """Unknown keys are errors; nothing is coerced in silence but numbers written as text on a command line."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)


def data_fields(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel, str]]:
    """Fields that are marked as data, those of inner settings too: dotted name, whose field it is, location."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if any(isinstance(mark, Data) for mark in field.metadata) and value is not None:
            yield prefix + name, settings, value
        for index, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, BaseModel):
                yield from data_fields(
                    inner, f"{prefix}{name}.{index}." if isinstance(value, list) else f"{prefix}{name}."
                )
