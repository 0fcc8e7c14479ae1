"""The three charts of docs/performance.md, drawn from benchmarks/results: `python -m benchmarks.charts`.

Each is docs/performance_NAME.svg. The same results give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLORS = {"ours": "#1f6feb", "Trainer": "#8b949e", "Accelerate loop": "#c4c9d0", "PEFT": "#8b949e"}
PARTS = {"weights": "#c4c9d0", "activations": "#1f6feb", "gradients": "#d29922", "moments": "#8b949e"}

Groups = Mapping[str, Mapping[str, float]]
"""Group on the axis → bar → value."""


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def tokens() -> Figure:
    found = results("lm_adaptation")
    groups = {f"T5 1.1 {row['size'].capitalize()}": row["tokens_per_second"] for row in found["rows"]}
    return grouped(groups, "LM adaptation: tokens/s without padding", COLORS)


def prompts() -> Figure:
    groups = {
        f"{row['task']}\ndropout {row['dropout']:g}": {"ours": row["ours_per_second"], "PEFT": row["theirs_per_second"]}
        for row in results("prompt_tuning")["rows"]
    }
    return grouped(groups, "Prompt tuning, T5 1.1 Small: examples/s", COLORS)


def memory() -> Figure:
    groups = {
        row["kind"].replace(", ", ",\n"): {part: row[part] / 2**20 for part in PARTS}
        for row in results("prompt_memory")["rows"]
    }
    return grouped(groups, "Memory of a step, T5 1.1 Small: MiB", PARTS, stacked=True)


def grouped(groups: Groups, title: str, colors: Mapping[str, str], *, stacked: bool = False) -> Figure:
    """Bars side by side, or on top of one another, labeled with their values or sums."""
    figure = Figure(figsize=(7.2, 2.8), dpi=96, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    names: Sequence[str] = list(next(iter(groups.values())))
    width = 0.6 if stacked else 0.8 / len(names)
    below = [0.0] * len(groups)
    for place, name in enumerate(names):
        values = [group[name] for group in groups.values()]
        shift = 0.0 if stacked else (place - (len(names) - 1) / 2) * width
        at = [index + shift for index in range(len(groups))]
        bars = axes.bar(at, values, width, bottom=below if stacked else None, color=colors[name], label=name)
        if stacked:
            below = [low + value for low, value in zip(below, values, strict=True)]
        if not stacked or name == names[-1]:
            labels = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (below if stacked else values)]
            axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=len(names), loc="upper right")
    return figure


def draw(directory: Path) -> list[Path]:
    """Write the charts; returns their files."""
    written = []
    for chart in (tokens, prompts, memory):
        path = directory / f"performance_{chart.__name__}.svg"
        style = {"svg.hashsalt": chart.__name__, "svg.fonttype": "none", "font.family": ["DejaVu Sans"]}
        with matplotlib.rc_context(style):
            figure = chart()
            figure.savefig(path, format="svg", metadata=dict.fromkeys(("Date", "Creator")), facecolor="white")
        written.append(path)
    return written


if __name__ == "__main__":
    for path in draw(HERE.parent / "docs"):
        print(path)
