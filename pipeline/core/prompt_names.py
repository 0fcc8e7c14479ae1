"""The rule for names of prompts, which are those of their directories."""

from __future__ import annotations

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import check_file_name

_LONGEST = 255
"""Bytes of the name of a directory in most file systems."""


def check_prompt_name(name: str, where: object) -> None:
    """Check the name of a prompt: any name that a directory may have, blanks included, without control characters.

    Args:
        where: location of the name, for errors.

    Raises:
        InputError: if it is not such a name.

    >>> check_prompt_name("tone of voice, seed=0", "name")
    """
    if not name.strip():
        raise InputError(f"{where}: is empty; name the prompt")
    check_file_name(name, where, longest=_LONGEST)
