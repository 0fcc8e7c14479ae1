"""Section on sweeps: the prompts that were tried in one batch, and when each was dropped."""

from __future__ import annotations

from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import CellResult, Job, Run, Sweep, SweptPrompt
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, figure, noted
from t5_pipeline.report.plots import Axis, Line, chart
from t5_pipeline.report.tables import Sheet, Value, plain_table


def sweeps_section(run: Run) -> Section | None:
    """For each sweep a chart, in which a line ends where a prompt was dropped, and a table."""
    parts: list[Markup | None] = []
    for job in run.jobs:
        for result in job.cells:
            if result.sweep is not None:
                number = len(parts)
                parts += [_chart(job, result, result.sweep, f"sweep-{number}"), _table(result, result.sweep)]
    note = (
        "Settings that were tried in one batch. At each rung, if there are any, the prompts with the best validation"
        " scores so far were kept. Of those that trained to the end, the one with the best score is published. Ties are"
        " broken by the lower loss."
    )
    return noted("sweeps", "Sweeps", note, *parts)


def _name(result: CellResult, name: str) -> str:
    """The combination of a prompt, without the id of its cell."""
    return name.removeprefix(f"{result.cell.id},")


def _chart(job: Job, result: CellResult, sweep: Sweep, name: str) -> Markup | None:
    """Validation scores of every prompt; the published one is bold."""
    lines = []
    for prompt in sweep.prompts:
        curve = job.log.scores.get(prompt)
        if curve is not None and curve.steps:
            best = prompt == sweep.winner
            values, label = [100 * value for value in curve.values], _name(result, prompt) if best else ""
            lines.append(Line(curve.steps, values, light=not best, dots=True, label=label))
    if not lines:
        return None
    lines.sort(key=lambda line: not line.light)
    last = max(step for line in lines for step in line.x)
    title = f", {result.cell.id or 'sweep'}. Each line ends where its prompt was dropped. Bold: the published one."
    described = f"Validation scores of {len(lines)} prompts of {job.stage}; {_name(result, sweep.winner)} is published."
    plot = chart(lines, Axis("Step", low=0, high=max(last, 1)), Axis("Validation score × 100"), name, described)
    return figure(plot, join([tag("b", job.stage), title]))


def _table(result: CellResult, sweep: Sweep) -> Markup:
    """The prompts, from the published one to those that were dropped first."""

    def order(name: str) -> tuple[float, float, float]:
        prompt = sweep.prompts[name]
        return -(prompt.dropped if prompt.dropped is not None else 2**60), -prompt.score, prompt.loss

    names = sorted(sweep.prompts, key=lambda name: (name != sweep.winner, *order(name)))
    rows: list[list[Value]] = []
    shown = []
    for name in names:
        prompt = sweep.prompts[name]
        rows.append([_name(result, name), _fate(name, sweep, prompt), prompt.score, prompt.loss, prompt.step])
        texts = (fmt.times_100(prompt.score), f"{prompt.loss:.3f}", fmt.count(prompt.step))
        shown.append([_name(result, name), _fate(name, sweep, prompt), *texts])
    columns = ["settings", "result", "best score", "loss", "at step"]
    caption = f"{result.cell.label}: {len(names)} settings in one batch."
    if sweep.slots is not None:
        caption = f"{result.cell.label}: {len(names)} settings, {sweep.slots} at a time: {_turns(sweep, sweep.slots)}."
    return plain_table(caption, Sheet(f"sweep-{result.cell.label}", columns, rows), shown)


def _turns(sweep: Sweep, slots: int) -> str:
    """How many prompts trained up to each rung, and in how many turns."""
    found = []
    for rung, count in sweep.rungs():
        to = "the end" if rung is None else f"step {rung:,}"
        found.append(f"{count} to {to}" + (f" in {-(-count // slots)} turns" if count > slots else ""))
    return ", ".join(found)


def _fate(name: str, sweep: Sweep, prompt: SweptPrompt) -> str:
    if name == sweep.winner:
        return "published"
    return "trained to the end" if prompt.dropped is None else f"dropped at step {prompt.dropped:,}"
