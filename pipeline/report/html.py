"""HTML from nested calls; the only place where text is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from t5_pipeline.core.printable import printable

_VOID = frozenset({"br", "col", "hr", "meta"})


class Markup(str):
    """Text that is already HTML and is not escaped again."""

    __slots__ = ()


Child = str | None
Attribute = str | int | float | bool | None


def tag(name: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element; plain strings are escaped, `Markup` is not.

    None children and None or False attributes are omitted. In attribute names a trailing underscore is dropped and
    other underscores become hyphens.

    >>> tag("p", "a < b ", tag("b", "&"), class_="note", aria_hidden="true")
    '<p class="note" aria-hidden="true">a &lt; b <b>&amp;</b></p>'
    """
    inside = "".join(text(child) for child in children if child is not None)
    return Markup(
        f"<{name}{_attributes(attributes)}>" if name in _VOID else f"<{name}{_attributes(attributes)}>{inside}</{name}>"
    )


def text(value: str) -> Markup:
    """A string as HTML: escaped unless it is `Markup`.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value, keep="\n\t"), quote=True))


def identifier(value: str) -> str:
    """A string as the value of `id`: letters, digits and hyphens; other characters as hexadecimal numbers.

    Different strings have different identifiers.

    >>> identifier("loss-a 1"), identifier("tune_<b>")
    ('loss-a_20_1', 'tune_5f__3c_b_3e_')
    """
    return re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match[0]):x}_", value)


def join(parts: Iterable[Child], between: str = "") -> Markup:
    """Concatenated parts, plain strings escaped."""
    return Markup(text(between).join(text(part) for part in parts if part is not None))


def _attributes(attributes: dict[str, Attribute]) -> str:
    found = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        found += f" {name}" if value is True else f' {name}="{text(str(value))}"'
    return found
