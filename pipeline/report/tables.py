"""Tables to download: CSV and Markdown inside the page, as links that need no script and no server."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from t5_pipeline.core.printable import printable
from t5_pipeline.report.format import sentence_case
from t5_pipeline.report.html import Markup, join, tag

Value = str | int | float | None


@dataclass(frozen=True)
class Sheet:
    """A table as plain values: numbers in full precision, None for an empty cell.

    Attributes:
        name: file name without suffix.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]

    def csv(self) -> str:
        """Comma-separated values, as RFC 4180 defines them.

        Spreadsheets run a text that begins like a formula; an apostrophe in front of it prevents this.

        >>> Sheet("x", ["a", "b"], [['say "hi", twice', 0.5], ["=1+1", -2], [None, None]]).csv().splitlines()
        ['a,b', '"say ""hi"", twice",0.5', "'=1+1,-2", ',']
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\r\n")
        for row in (self.columns, *self.rows):
            writer.writerow([_harmless(value) if isinstance(value, str) else value for value in row])
        return file.getvalue()

    def markdown(self) -> str:
        r"""A table in GitHub's Markdown, every text escaped.

        >>> print(Sheet("x", ["model", "score"], [["a|b_c", 0.5], [None, 2]]).markdown())
        | model | score |
        | --- | ---: |
        | a\|b\_c | 0.5 |
        |  | 2 |
        <BLANKLINE>
        """
        numeric = [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            [_plain(name) for name in self.columns],
            ["---:" if number else "---" for number in numeric],
            *[[_plain(value) for value in row] for row in self.rows],
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def download_link(name: str, media_type: str, content: str, label: str) -> Markup:
    """A link that saves `content` as a file; the file is part of the page."""
    data = base64.b64encode(printable(content, keep="\r\n\t").encode()).decode()
    return tag("a", label, href=f"data:{media_type};charset=utf-8;base64,{data}", download=name)


def downloads(sheet: Sheet) -> Markup:
    """Links to a table as CSV and Markdown."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", sheet.name).strip(".-") or "table"
    links = [
        download_link(f"{name}.csv", "text/csv", sheet.csv(), "CSV"),
        download_link(f"{name}.md", "text/markdown", sheet.markdown(), "Markdown"),
    ]
    return tag("p", f"Download {name}: ", join(links, " · "), class_="downloads")


def table(caption: str | Markup, *rows: Markup, class_: str = "", sheet: Sheet | None = None) -> Markup:
    """A table with its own horizontal scrolling on narrow screens, and links to download it."""
    inside = tag("table", tag("caption", caption), *rows, class_=class_ or None)
    scroll = tag("div", inside, class_="scroll", tabindex=0, role="group", aria_label="table")
    return join([scroll, downloads(sheet) if sheet else None])


def head(columns: Iterable[tuple[str, bool]]) -> Markup:
    """The head of a table from the titles of its columns; True for columns of numbers."""
    return tag("thead", tag("tr", *[tag("th", title, scope="col", class_=_kind(n)) for title, n in columns]))


def plain_table(
    caption: str | Markup, sheet: Sheet, shown: Sequence[Sequence[str]], class_: str = "", links: bool = True
) -> Markup:
    """A table whose first column names its rows.

    Args:
        shown: the cells of the sheet as the page shows them.
        class_: "stacked" puts the cells of a row below one another on a phone.
        links: whether the sheet can be downloaded.
    """
    numeric = [all(not isinstance(row[i], str) for row in sheet.rows) for i in range(len(sheet.columns))]
    columns = list(zip(map(sentence_case, sheet.columns), numeric, strict=True))
    body = []
    for name, *cells in shown:
        titled = zip(cells, columns[1:], strict=True)
        data = [tag("td", text, class_=_kind(number), data_column=title) for text, (title, number) in titled]
        body.append(tag("tr", tag("th", name, scope="row"), *data))
    return table(caption, head(columns), tag("tbody", *body), class_=class_, sheet=sheet if links else None)


def _kind(number: bool) -> str | None:
    return "n" if number else None


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _plain(value: Value) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return re.sub(r"([\\`*_{}\[\]()<>#|&~!])", r"\\\1", " ".join(value.split()))
