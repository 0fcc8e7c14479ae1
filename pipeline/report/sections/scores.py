"""Sections on results: score tables, confusion matrices, examples."""

from __future__ import annotations

from t5_pipeline.config.stage import Scoring
from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.plots import SERIES, score_plot
from t5_pipeline.report.summary import MAJORITY, NO_PROMPT, PROMPT_TUNING, ScoreLine, TaskScores

SCORINGS: dict[Scoring, str] = {"decode": "decoded text", "likelihood": "label likelihood"}
"""Names of the two ways to score a task with labels."""

EXAMPLES = 3
"""Number of right and of wrong examples shown per task."""


def scores_section(tasks: list[TaskScores], series: dict[str, int]) -> Markup:
    """Score table of each task."""
    parts = []
    for task in tasks:
        parts += [_title(task, tasks), _score_table(task, series)]
    return section("scores", "Scores by model", *parts)


def _title(task: TaskScores, tasks: list[TaskScores]) -> Markup | None:
    """Heading of a task if there are several."""
    splits = {other.split for other in tasks if other.task == task.task}
    return tag("h3", task.task + (f", {task.split}" if len(splits) > 1 else "")) if len(tasks) > 1 else None


def score_figure(task: TaskScores, series: dict[str, int], name: str) -> Markup:
    """Plot of a task's scores with its legend."""
    legend = "Dots: seeds. Bar: their mean."
    if task.untuned:
        legend += " Hollow: the same frozen T5 without a prompt."
    if task.majority:
        legend += " Dashed: the majority class."
    return figure(score_plot(task, series, name), legend)


def _score_table(task: TaskScores, series: dict[str, int]) -> Markup:
    lines = [*task.tuned, *task.others, *task.untuned]
    illegal = any(line.illegal is not None for line in lines)
    trained = any(line.trained for line in lines)
    beside = [scoring for scoring in SCORINGS if any(line.scoring not in (None, scoring) for line in lines)]
    scale = "" if fmt.SHARES.issuperset(task.metrics) else " Correlations are times 100."
    seeds = max((len(line.rows) for line in lines), default=0)
    spread = " Mean ± sample standard deviation over the seeds." if seeds > 1 else ""
    what = f"{fmt.sentence_case(task.split)} split of {task.task}, {fmt.plural(task.examples, 'row')}."
    free = " Illegal: percentage of decoded texts that are not a label." if illegal else ""
    caption = what + spread + scale + _scoring_note(lines) + free
    metrics = [tag("th", fmt.metric_label(m) + fmt.unit(m), scope="col", class_="n") for m in task.metrics]
    head = tag(
        "tr",
        tag("th", "Frozen T5", scope="col"),
        tag("th", "Method", scope="col"),
        *metrics,
        tag("th", "vs majority, points", scope="col", class_="n"),
        *[tag("th", f"by {SCORINGS[scoring]}{fmt.unit(task.metric)}", scope="col", class_="n") for scoring in beside],
        tag("th", "Illegal\u00a0%", scope="col", class_="n") if illegal else None,
        tag("th", "Trained parameters", scope="col", class_="n") if trained else None,
        tag("th", "Seeds", scope="col", class_="n"),
    )
    groups = []
    for model in dict.fromkeys(line.model for line in lines):
        rows = [line for line in lines if line.model == model]
        groups.append(tag("tbody", *[_score_row(task, line, rows, series, beside, illegal, trained) for line in rows]))
    if task.majority:
        groups.append(tag("tbody", _score_row(task, task.majority, [task.majority], series, beside, illegal, trained)))
    return table(caption, tag("thead", head), *groups, class_="scores")


def _scoring_note(lines: list[ScoreLine]) -> str:
    """Which answers the scores of a task with labels compare with the targets; nothing for free text."""
    note = ""
    if any(line.scoring == "decode" for line in lines):
        note += " Decoded texts are scored: one that is not a label is wrong. Label likelihood: the likeliest label."
    if any(line.scoring == "likelihood" for line in lines):
        note += " The likeliest labels are scored. Decoded text: one that is not a label is wrong."
    return note


def _score_row(
    task: TaskScores,
    line: ScoreLine,
    group: list[ScoreLine],
    series: dict[str, int],
    beside: list[Scoring],
    illegal: bool,
    trained: bool,
) -> Markup:
    path = None
    if line is group[0]:
        name = join([swatch(series.get(line.model or "")), line.path]) if line.path else Markup("")
        path = tag("th", name, scope="rowgroup", rowspan=len(group) if len(group) > 1 else None)
    scores = []
    for metric in task.metrics:
        spread = line.spread(metric)
        scores.append(tag("td", spread.text if spread else "–", class_="n"))
    others = [line.spread_by(scoring, task.metric) for scoring in beside]
    difference = None if line.method == MAJORITY else task.difference(line)
    share = line.illegal
    seeds = "–" if line.method in (NO_PROMPT, MAJORITY) else str(len(line.rows))
    return tag(
        "tr",
        path,
        tag("td", line.title),
        *scores,
        tag("td", "–" if difference is None else fmt.points(difference), class_="n"),
        *[tag("td", spread.text if spread else "–", class_="n") for spread in others],
        tag("td", "–" if share is None else fmt.times_100(share), class_="n") if illegal else None,
        tag("td", "–" if line.trained is None else fmt.approximate(line.trained), class_="n") if trained else None,
        tag("td", seeds, class_="n"),
        class_={PROMPT_TUNING: "tuned", NO_PROMPT: "untuned", MAJORITY: "majority"}.get(line.method, "other"),
    )


def confusion_section(tasks: list[TaskScores], series: dict[str, int]) -> Markup | None:
    """Confusion matrices of each model's best prompts and of the best of each other method."""
    parts = []
    drawn: list[ScoreLine] = []
    for task in tasks:
        lines = [*task.compared(), *task.best_of_each_method()]
        drawn += lines
        matrices = [_confusion(line, series) for line in lines if line.confusion and line.labels]
        if matrices:
            parts += [_title(task, tasks), tag("div", *matrices, class_="matrices")]
    if not parts:
        return None
    note = "Rows: true label and number of its examples. Columns: answer. Percent of the row over all seeds."
    if any(_decodes_apart(line) for line in drawn):
        note += " Free: percent of these examples for which the decoded text is not a label."
    return section("confusion", "Confusion matrices", tag("p", note, class_="note"), *parts)


def _decodes_apart(line: ScoreLine) -> bool:
    """Whether illegal outputs need a column: with decoded texts as answers they are in the matrix already."""
    return line.illegal_by_label is not None and line.scoring != "decode"


def _confusion(line: ScoreLine, series: dict[str, int]) -> Markup:
    counts = line.confusion or []
    labels = line.labels
    columns = [*labels, *(["illegal"] if any(sum(row[len(labels) :]) for row in counts) else [])]
    free = line.illegal_by_label if _decodes_apart(line) else None
    rows = []
    for number, (label, row) in enumerate(zip(labels, counts, strict=False)):
        whole = sum(row)
        rows_each = tag("small", fmt.count(whole // len(line.rows)))
        cells = [tag("th", join([label, rows_each], " "), scope="row")]
        for predicted, given in zip(columns, row, strict=False):
            share = given / whole if whole else 0.0
            right = "right" if predicted == label else None
            cells.append(tag("td", f"{100 * share:.0f}", class_=right, style=f"--share:{share:.3f}"))
        if free is not None:
            cells.append(tag("td", f"{100 * free[number] / whole:.0f}" if whole else "–", class_="free"))
        rows.append(tag("tr", *cells))
    head = tag(
        "tr",
        tag("td", "true ↓", class_="corner"),
        *[tag("th", label, scope="col") for label in columns],
        tag("th", "free", scope="col", class_="free") if free is not None else None,
    )
    who = line.path or ""
    if line.method != PROMPT_TUNING:
        who = f"{line.title} ({who})" if who else line.title
    elif line.variant:
        who += f", {line.variant}"
    name = join([swatch(series.get(line.model or "")), who])
    return table(name, tag("thead", head), tag("tbody", *rows), class_="confusion")


def examples_section(tasks: list[TaskScores], series: dict[str, int]) -> Markup | None:
    """Examples with the output of each model's best prompts."""
    parts = []
    for task in tasks:
        ranked = [line for line in task.ranked() if line.samples]
        if not ranked:
            continue
        best = ranked[0]
        first = f"seed {best.rows[0].seed}" if len(best.rows) > 1 else "one prompt"
        columns = []
        for title, wanted in (("Right", True), ("Wrong", False)):
            inputs = [s.input for s in best.samples if (s.output == s.target) == wanted][:EXAMPLES]
            cards = [_example(text, [*task.compared(), *task.best_of_each_method()], series) for text in inputs]
            heading = tag("h4", f"{title} with {best.path_in_sentence}, {first}")
            columns.append(tag("div", heading, *(cards or [tag("p", "none among the stored examples", class_="note")])))
        parts += [_title(task, tasks), tag("div", *columns, class_="examples")]
    return section("examples", "Examples", *parts) if parts else None


def _example(text: str, lines: list[ScoreLine], series: dict[str, int]) -> Markup:
    outcomes = []
    target = ""
    for line in lines:
        sample = next((s for s in line.samples if s.input == text), None)
        if sample is None:
            continue
        target = sample.target
        right = sample.output == sample.target
        mark = tag("span", "✓" if right else "✗", class_="mark", role="img", aria_label="right" if right else "wrong")
        given = fmt.truncate(sample.output, 80) if sample.output.strip() else tag("em", "empty")
        name = line.path if line.method == PROMPT_TUNING else fmt.sentence_case(line.method)
        who = tag("span", swatch(series.get(line.model or "")), name, class_="who")
        outcomes.append(tag("li", who, tag("span", given, "\u00a0", mark, class_="given")))
    return tag(
        "article",
        tag("blockquote", fmt.truncate(text, 260)),
        tag("p", "Answer: ", tag("b", fmt.truncate(target, 120)), class_="answer"),
        tag("ul", *outcomes),
        class_="example",
    )


def section(anchor: str, title: str, *children: Markup | None) -> Markup:
    return tag(
        "section", tag("h2", title, id=f"{anchor}-title"), *children, id=anchor, aria_labelledby=f"{anchor}-title"
    )


def table(caption: str, *rows: Markup, class_: str = "") -> Markup:
    """A table with its own horizontal scrolling on narrow screens."""
    inside = tag("table", tag("caption", caption), *rows, class_=class_ or None)
    return tag("div", inside, class_="scroll", tabindex=0, role="group", aria_label="table")


def figure(plot: Markup, caption: str) -> Markup:
    return tag("figure", plot, tag("figcaption", caption))


def swatch(series: int | None) -> Markup | None:
    """The colour of a model, shown beside its name."""
    if series is None:
        return None
    return tag("span", class_="swatch", style=f"--c:var(--series-{series % SERIES})", aria_hidden="true")
