"""Matplotlib figures as inline SVG that take colors and fonts from the page, for light and dark mode.

Matplotlib draws with one placeholder color per role, which becomes a CSS variable in the SVG (style.css). Text stays
text. Drawing is deterministic.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from t5_pipeline.report.html import Markup, identifier, tag

SERIES = 8
"""Number of colors for models; they repeat after that."""

INK, QUIET, RULE, GRID, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
HALO = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.6}
_VARIABLES = {INK: "--ink", QUIET: "--quiet", RULE: "--rule", GRID: "--grid", PAPER: "--paper"} | {
    f"#0606{i:02d}": f"--series-{i}" for i in range(SERIES)
}
WIDTH = 4.7  # inches of 96 CSS pixels at 1:1; the page scales plots to its columns
_STYLE = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout everywhere; the page sets its own
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "path.simplify": True,
}


def drawing(name: str) -> AbstractContextManager[None]:
    """Matplotlib's settings while a figure of this name is drawn and written."""
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": identifier(name)})


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure of `height` inches with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), dpi=96, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def series_color(index: int | None) -> str:
    """Placeholder of a model's color; ink without a model."""
    return INK if index is None else f"#0606{index % SERIES:02d}"


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an SVG element with unique ids, colors as CSS variables, and a text description."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = ElementTree.fromstring(buffer.getvalue())
    inside = [_element(child, identifier(name)) for child in drawn]
    return tag("svg", *inside, class_="plot", viewBox=drawn.get("viewBox"), role="img", aria_label=description)


def _element(drawn: ElementTree.Element, prefix: str) -> Markup | None:
    """An element of matplotlib's SVG, its attributes and texts written by `tag`; None for metadata and style sheets."""
    name = _local(drawn.tag)
    if name in ("metadata", "style"):
        return None
    attributes = {}
    for key, value in drawn.attrib.items():
        key = _local(key)
        if key == "id":
            value = f"{prefix}-{value}"
        elif key == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
        else:
            value = value.replace("url(#", f"url(#{prefix}-").replace("'DejaVu Sans'", "var(--sans)")
            for color, variable in _VARIABLES.items():
                value = value.replace(color, f"var({variable})")
        attributes[key] = value
    words = drawn.text if name == "text" or name == "tspan" else None
    return tag(name, words, *[_element(child, prefix) for child in drawn], **attributes)


def _local(name: str) -> str:
    """The name without its XML namespace."""
    return name.rpartition("}")[2]
