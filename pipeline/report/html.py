"""HTML from nested calls; the only place where text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

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
    return value if isinstance(value, Markup) else Markup(html.escape(value, quote=True))


def join(parts: Iterable[Child], between: str = "") -> Markup:
    """Concatenated parts, plain strings escaped."""
    return Markup(text(between).join(text(part) for part in parts if part is not None))


def _attributes(attributes: dict[str, Attribute]) -> str:
    found = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        found += f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'
    return found
