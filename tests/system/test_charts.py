"""The charts of docs/performance.md show the results that are committed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.charts import draw, results
from tests.tiny_run import ROOT


def test_charts_are_drawn_from_the_committed_results(tmp_path: Path) -> None:
    drawn = draw(tmp_path)
    shown = [(ROOT / "docs" / path.name).read_text() for path in drawn]
    numbers = [
        [f"{value:,}" for row in results("lm_adaptation")["rows"] for value in row["tokens_per_second"].values()],
        [
            str(row[side])
            for row in results("prompt_tuning")["rows"]
            for side in ("ours_per_second", "theirs_per_second")
        ],
        [
            f"{sum(row[part] for part in ('weights', 'activations', 'gradients', 'moments')) / 2**20:,.0f}"
            for row in results("prompt_memory")["rows"]
        ],
    ]
    for path, committed, values in zip(drawn, shown, numbers, strict=True):
        for value in values:
            assert f">{value}</text>" in path.read_text()
            assert f">{value}</text>" in committed, f"run python -m benchmarks.charts: {path.name} lacks {value}"
