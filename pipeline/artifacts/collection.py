"""Artifacts of a folder that are read one by one: a damaged one does not stop the others. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.prompt_names import check_prompt_name

Place = TypeVar("Place")
Content = TypeVar("Content")


@dataclass(frozen=True)
class Collection(Generic[Content]):
    """Contents of the prompts at a location, by their names.

    Attributes:
        sound: name → content.
        damaged: name → why it cannot be read.
    """

    location: str
    sound: dict[str, Content]
    damaged: dict[str, str]

    def complete(self) -> dict[str, Content]:
        """All contents.

        Raises:
            InputError: if a prompt is damaged; it names every one.
        """
        if self.damaged:
            raise unusable(self.location, self.damaged, len(self.sound) + len(self.damaged))
        return self.sound


def read_each(location: str, places: Mapping[str, Place], read: Callable[[str, Place], Content]) -> Collection[Content]:
    """Read every prompt at a location.

    Args:
        location: as the user gave it, for errors.
        places: name → the second argument of `read`.
        read: function of both that returns the content of a prompt, with an InputError for a damaged one.

    Raises:
        InputError: if all of them are damaged; it names every one.
    """
    sound, damaged = {}, {}
    for name, place in places.items():
        try:
            check_prompt_name(name, f"{location}: prompt {name!r}")
            sound[name] = read(name, place)
        except (InputError, OSError) as error:
            damaged[name] = str(error)
    if not sound:
        raise unusable(location, damaged, len(damaged))
    return Collection(location, sound, damaged)


def unusable(location: str, reasons: Mapping[str, str], total: int) -> InputError:
    """The error about all prompts of a location that cannot be used.

    Args:
        reasons: name → reason.
        total: number of prompts at the location.

    >>> print(unusable("prompts", {"a": "a/prompt.json: is empty; restore it"}, 3))
    a/prompt.json: is empty; restore it
    >>> print(unusable("DIR", {"a": "a: is empty; restore it", "b": "b: is lost; restore it"}, 3))
    DIR: 2 of 3 prompts cannot be used: `a` (a: is empty; restore it), `b` (b: is lost; restore it); repair or move them
    """
    if len(reasons) == 1:
        return InputError(next(iter(reasons.values())))
    each = ", ".join(f"`{name}` ({reason})" for name, reason in reasons.items())
    return InputError(f"{location}: {len(reasons)} of {total} prompts cannot be used: {each}; repair or move them")
