"""Charts with logarithmic axes, error bars and labels; colors for every reader."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from t5_pipeline.report.plots import Axis, Line, chart, size_plot


def drawn(*lines: Line, x: Axis | None = None) -> str:
    return str(chart(lines, x or Axis("Prompt length"), Axis("Score"), "figure", "scores by length"))


def test_a_chart_has_a_log_axis_error_bars_labels_and_rings() -> None:
    lengths, scores = [1, 10, 100], [50, 60, 70]
    axis = Axis("Prompt length", log=True, ticks=lengths)
    errors = [(y - 3, y + 2) for y in scores]
    figure = drawn(Line(lengths, scores, 0, errors, label="LM <adapted>", dots=True, marked=[2]), x=axis)
    plain = drawn(Line(lengths, scores, 0), x=axis)
    assert re.findall(r">(1|10|100)</text>", figure) == ["1", "10", "100"]
    assert "LM &lt;adapted&gt;" in figure
    assert figure.count("<use") - plain.count("<use") >= 3 + 2 * 3 + 1  # dots, caps of the error bars, a ring
    left, middle, right = (float(x) for x in re.findall(r'x="([\d.]+)"[^>]*>10*</text>', plain))
    assert middle - left == pytest.approx(right - middle, rel=0.01)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7, 1500])
def test_whole_numbers_have_whole_ticks(last: int) -> None:
    axis = Axis("Step", low=0, high=last, whole=True, text=lambda value: f"at {value:g}")
    figure = drawn(Line([0, last], [0.0, 1.0], 0), x=axis)
    ticks = [float(text) for text in re.findall(r">at ([\d.e+]+)</text>", figure)]
    assert len(ticks) >= 2
    assert all(tick.is_integer() for tick in ticks)


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    figure = drawn(*[Line([1, 2], [1.0, 2.0 + i / 1000], i, label=f"model {i}") for i in range(5)])
    heights = sorted(float(y) for y in re.findall(r' y="([\d.]+)"[^>]*>model \d', figure))
    assert len(heights) == 5
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 9  # of text that is 8.5 high


def test_error_bars_may_lie_to_one_side_of_the_value() -> None:
    line = Line([1.0], [50.0], 0, [(51.0, 60.0)], "macro F1", dots=True)
    assert chart([line], Axis("bytes"), Axis("score"), "one", "one")


def test_charts_do_not_change_matplotlib_settings() -> None:
    before = dict(matplotlib.rcParams)
    drawn(Line([1, 2], [2.0, 1.0], 0))
    assert dict(matplotlib.rcParams) == before


# Machado, Oliveira & Fernandes 2009: what a dichromat sees, on linear RGB.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "full": np.eye(3).tolist(),
}


def linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089], 1e-6, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_colors_are_readable_and_distinct_for_every_reader(mode: int) -> None:
    style = resources.files("t5_pipeline.report").joinpath("style.css").read_text(encoding="utf-8")
    block = style.split(":root {")[mode + 1].split("}")[0]
    colors = re.findall(r"--series-\d: (#\w+);", block)
    paper = re.findall(r"--paper: (#\w+);", block)[0].replace("#fff;", "#ffffff;")
    paper = "#ffffff" if paper == "#fff" else paper
    assert len(colors) == 8
    for color in colors:
        light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (color, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color
    for kind, matrix in VISION.items():
        seen = [lab(np.array(matrix) @ linear(color)) for color in colors[:4]]
        for one, two in itertools.combinations(range(4), 2):
            assert np.linalg.norm(seen[one] - seen[two]) > 11, (kind, colors[one], colors[two])


@pytest.mark.parametrize("label", ["W" * 80, "PROMPTS OF " * 8, "a short label"])
def test_the_label_of_a_strip_ends_before_its_value(label: str) -> None:
    """Widths are those of DejaVu Sans, in which plots are laid out; it is wider than the fonts of the page."""
    figure = str(size_plot([(label, 5, "98.8 ± 0.2"), ("b", 9, "9")], "figure", "sizes"))
    (width,) = (float(w) for w in re.findall(r'viewBox="0 0 ([\d.]+) ', figure))
    texts = {text: float(x) for x, text in re.findall(r' x="([\d.]+)"[^>]*>([^<]+)</text>', figure)}
    (shown,) = (text for text in texts if text[:2] == label[:2])
    assert shown == label or " …" in shown
    name, value = (
        TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", size=8.5, weight=weight)).get_extents().width
        for text, weight in ((shown, "normal"), ("98.8 ± 0.2", "bold"))
    )
    assert texts["98.8 ± 0.2"] > 0.95 * width, "the end of the value, at the end of the axes"
    assert texts[shown] + name + 4 < texts["98.8 ± 0.2"] - value
