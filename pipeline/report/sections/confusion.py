"""Section with confusion matrices."""

from __future__ import annotations

from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, noted, swatch
from t5_pipeline.report.scores import frequent_confusions
from t5_pipeline.report.sections.scores import task_title
from t5_pipeline.report.summary import PROMPT_TUNING, ScoreLine, TaskScores
from t5_pipeline.report.tables import Sheet, Value, downloads, plain_table, table

WIDE = 5
"""Labels from which on a matrix takes the full width of the page."""
LARGEST = 20
"""Labels up to which a matrix is drawn; of larger ones the most frequent confusions are listed."""
LISTED = 12


def confusion_section(tasks: list[TaskScores], series: dict[str, int]) -> Section | None:
    """Confusion matrices of each model's best prompts and of the best of each other method."""
    parts: list[Markup | None] = []
    apart = False
    for task in tasks:
        lines = [line for line in [*task.compared(), *task.best_of_each_method()] if line.confusion]
        apart |= any(_illegal_apart(line) is not None for line in lines)
        if lines:
            parts += [task_title(task, tasks), _matrices(lines, series), downloads(_sheet(task, lines))]
    note = "Rows: true label and number of its examples. Columns: answer. Cells: percent of the row, over all seeds."
    if apart:
        note += " Free: percent of the row for which the decoded text is not a label."
    return noted("confusion", "Confusion matrices", note, *parts)


def _matrices(lines: list[ScoreLine], series: dict[str, int]) -> Markup:
    size = len(lines[0].labels)
    draw, wide = (_list if size > LARGEST else _matrix), WIDE <= size <= LARGEST
    return tag("div", *[draw(line, series) for line in lines], class_="matrices wide" if wide else "matrices")


def _illegal_apart(line: ScoreLine) -> list[int] | None:
    """Illegal outputs by true label; None if the decoded texts are the answers, so that the matrix contains them."""
    return None if line.scoring == "decode" else line.illegal_by_label


def _matrix(line: ScoreLine, series: dict[str, int]) -> Markup:
    counts, labels, free = line.confusion or [], line.labels, _illegal_apart(line)
    columns = [*labels, *(["illegal"] if any(row[-1] for row in counts) else [])]
    rows = []
    for number, (label, row) in enumerate(zip(labels, counts, strict=True)):
        whole = sum(row)
        cells = [tag("th", label, " ", tag("small", fmt.count(whole // len(line.rows))), scope="row")]
        for column, (_, given) in enumerate(zip(columns, row, strict=False)):
            share = given / whole if whole else 0.0
            right = "right" if column == number else None
            cells.append(tag("td", f"{100 * share:.0f}", class_=right, style=f"--share:{share:.3f}"))
        if free is not None:
            cells.append(tag("td", f"{100 * free[number] / whole:.0f}" if whole else "–", class_="free"))
        rows.append(tag("tr", *cells))
    # Characters of the longest word that fits above a column.
    fits = (100 if len(labels) >= WIDE else 32) // len(columns)
    upright = any(len(word) > fits for label in columns for word in label.split())
    head = tag(
        "tr",
        tag("td", "true ↓", class_="corner"),
        *[tag("th", tag("span", fmt.truncate(label, 40)), scope="col") for label in columns],
        tag("th", tag("span", "free"), scope="col", class_="free") if free is not None else None,
        class_="upright" if upright else None,
    )
    return table(_who(line, series), tag("thead", head), tag("tbody", *rows), class_="confusion")


def _list(line: ScoreLine, series: dict[str, int]) -> Markup:
    """The most frequent confusions of a matrix that is too large to draw."""
    counts, labels = line.confusion or [], [*line.labels, "illegal"]
    rows: list[list[Value]] = []
    shown = []
    for given, i, j in frequent_confusions(counts, LISTED):
        each, share = given / len(line.rows), given / sum(counts[i])
        rows.append([labels[i], labels[j], each, share])
        shown.append([labels[i], labels[j], f"{each:,.1f}", f"{100 * share:.0f}"])
    sheet = Sheet("", ["true label", "predicted label", "rows per seed", "% of the true label"], rows)
    caption = join([_who(line, series), f": the {len(rows)} most frequent confusions of {len(line.labels)} labels"])
    return plain_table(caption, sheet, shown, links=False)


def _who(line: ScoreLine, series: dict[str, int]) -> Markup:
    who = line.path or ""
    if line.method != PROMPT_TUNING:
        who = f"{line.title} ({who})" if who else line.title
    elif line.variant:
        who += f", {line.variant}"
    return join([swatch(series.get(line.model or "")), who])


def _sheet(task: TaskScores, lines: list[ScoreLine]) -> Sheet:
    """The counts of every matrix: one row per true and predicted label that occur together."""
    rows: list[list[Value]] = []
    for line in lines:
        for label, counts in zip(line.labels, line.confusion or [], strict=True):
            for predicted, given in zip([*line.labels, "(not a label)"], counts, strict=True):
                if given:
                    rows.append([line.model, line.method, line.variant, len(line.rows), label, predicted, given])
    columns = ["frozen T5", "method", "variant", "seeds", "true label", "predicted label", "rows of all seeds"]
    return Sheet(f"confusion-{task.task}-{task.split}", columns, rows)
