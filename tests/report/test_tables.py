"""Tables on the page, and their downloads as CSV and Markdown."""

from __future__ import annotations

import base64
import csv
import io
import re
from importlib import resources

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.report.tables import Sheet, downloads, plain_table


def files(html: str) -> dict[str, str]:
    found = re.findall(r'<a href="data:[^"]*;base64,([^"]*)" download="([^"]*)">', html)
    return {name: base64.b64decode(data).decode() for data, name in found}


def test_scores_are_downloaded_in_full_precision(finished) -> None:
    found = files(render(collect(finished.run_dir.path)))
    assert {"scores-package-test.csv", "scores-package-test.md", "confusion-package-test.csv", "digests.csv"} <= set(
        found
    )
    rows = list(csv.DictReader(io.StringIO(found["scores-package-test.csv"])))
    (row,) = (
        r for r in rows if (r["frozen T5"], r["method"], r["metric"]) == ("lm_adapt", "prompt tuning", "accuracy")
    )
    assert float(row["mean"]) == pytest.approx(0.64, abs=1e-12)
    assert row["values by seed"] == "0.6 0.64 0.68"
    assert float(row["95% interval over rows, low"]) == pytest.approx(0.5716, abs=1e-4)
    assert found["recipe.yaml"] == (finished.run_dir.path / "recipe.yaml").read_text()


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1"])
def test_a_spreadsheet_runs_no_cell(text: str) -> None:
    (_, row) = csv.reader(io.StringIO(Sheet("s", ["a", "b"], [[text, -1.5]]).csv()))
    assert row == [f"'{text}", "-1.5"]


def test_cells_keep_their_place() -> None:
    """Delimiters, quotes, newlines and markup in a cell do not end it."""
    nasty = 'a,"b"\n| c | <script>`*_[x](y)\\'
    sheet = Sheet("../../etc/pass wd", [nasty, "n"], [[nasty, 1], [None, 2]])
    assert list(csv.reader(io.StringIO(sheet.csv()))) == [[nasty, "n"], [nasty, "1"], ["", "2"]]
    for line in sheet.markdown().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
        assert not re.search(r"(?<!\\)[<`*\[]", line)
    assert set(files(str(downloads(sheet)))) == {"etc-pass-wd.csv", "etc-pass-wd.md"}


def test_stacked_cells_have_the_title_of_their_column() -> None:
    """On a phone the head of the table is hidden, and each cell shows its own title."""
    sheet = Sheet("x", ["finding", "points"], [["a", 0.5]])
    found = plain_table("Caption", sheet, [["a", "+50.0"]], "stacked", links=False)
    assert '<td class="n" data-column="Points">+50.0</td>' in found
    assert '<table class="stacked">' in found
    style = resources.files("t5_pipeline.report").joinpath("style.css").read_text(encoding="utf-8")
    phone = style[style.index("@media (max-width: 40rem)") : style.index("@media print")]
    assert ":is(.scores, .stacked) thead" in phone
    assert ".stacked td::before { content: attr(data-column);" in phone
