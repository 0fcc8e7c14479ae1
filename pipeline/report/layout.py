"""Parts of the page that every section uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.svg import SERIES


@dataclass(frozen=True)
class Section:
    """A section of the page, which the table of contents links to."""

    anchor: str
    title: str
    children: tuple[Markup | None, ...]

    @property
    def markup(self) -> Markup:
        heading, named = tag("h2", self.title, id=f"{self.anchor}-title"), f"{self.anchor}-title"
        return tag("section", heading, *self.children, id=self.anchor, aria_labelledby=named)


def section(anchor: str, title: str, *children: Markup | None) -> Section:
    return Section(anchor, title, children)


def noted(anchor: str, title: str, note: str, *children: Markup | None) -> Section | None:
    """A section that begins with a note; None without other content."""
    if all(child is None for child in children):
        return None
    return section(anchor, title, tag("p", note, class_="note"), *children)


def plots(figures: Sequence[Markup]) -> Markup | None:
    """Figures side by side; None without any."""
    return tag("div", *figures, class_="plots") if figures else None


def contents(sections: Sequence[Section]) -> Markup:
    """The table of contents."""
    items = [tag("li", tag("a", part.title, href=f"#{part.anchor}")) for part in sections]
    return tag("nav", tag("ol", *items), class_="contents", aria_label="Contents")


def figure(plot: Markup, caption: Markup | str) -> Markup:
    return tag("figure", plot, tag("figcaption", caption))


def swatch(series: int | None) -> Markup | None:
    """The color of a model, shown beside its name."""
    if series is None:
        return None
    return tag("span", class_="swatch", style=f"--c:var(--series-{series % SERIES})", aria_hidden="true")
