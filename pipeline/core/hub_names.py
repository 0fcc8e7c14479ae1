"""Names of repositories on the Hugging Face hub."""

from __future__ import annotations

import re

_NAME = re.compile(r"[\w-][\w.-]*(?P<repository>/[\w.-]+)?")


def is_hub_name(text: str, *, with_owner: bool = False) -> bool:
    """Whether a text has the form of a repository's name, `NAME` or `OWNER/NAME`. It may also be a relative path.

    Args:
        with_owner: accept only `OWNER/NAME`.

    >>> [is_hub_name(text) for text in ("t5-small", "google/t5-v1_1-base", "./t5", "/t5", "a/b/c")]
    [True, True, False, False, False]
    >>> is_hub_name("t5-small", with_owner=True)
    False
    """
    found = _NAME.fullmatch(text)
    return found is not None and (not with_owner or found["repository"] is not None)
