"""Results as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from t5_pipeline.core.counts import plural
from t5_pipeline.report import format as fmt
from t5_pipeline.report.summary import ScoreLine, TaskScores

_MANY_ILLEGAL = 0.5
"""Share of decoded texts that are not a label from which a score says little else."""


def headline(task: TaskScores) -> str | None:
    """The result of a task in one sentence; None if no prompt has been scored.

    Prompts that give one answer to all inputs are described as such, whatever their score, and so are those that seldom
    give a label.
    """
    ranked = task.ranked()
    if not ranked:
        return None
    best = ranked[0]
    spread = best.spread(task.metric)
    assert spread is not None
    reached = fmt.with_metric(task.metric, spread.text.replace(" ", "\u00a0"))
    lengths = sorted({row.prompt_length for row in best.rows if row.prompt_length is not None})
    of = f" of {fmt.enumeration([fmt.count(length) for length in lengths])} tokens" if lengths else ""
    said = [plural(length, "token") for length in lengths]
    about = ", ".join(part for part in best.variant.split(", ") if part and part not in said)
    of += f" ({about})" if about else ""
    note, constant = constant_note(best), all(best.constants)
    if constant:
        prompts = "every prompt" if len(best.rows) > 1 else "the prompt"
        sentence = f"With {best.path_in_sentence}, {prompts}{of} gives {note} of {task.task}: {reached}"
    else:
        sentence = f"With {best.path_in_sentence}, prompts{of} reach {reached} on {task.task}"
    difference = task.difference(best)
    if difference is not None and task.majority is not None:
        sentence += f", {_relative(difference)} the majority class ({_score(task.majority, task.metric)})"
        if _within(best, task) and not constant and fmt.points(difference) != "0.0":
            sentence += ", a difference within the 95% interval over the test rows"
    sentence += f". {fmt.sentence_case(note)}." if note and not constant else "."
    if best.scoring == "decode" and (best.illegal or 0) >= _MANY_ILLEGAL:
        sentence += f" {fmt.times_100(best.illegal or 0)}% of the decoded texts are not a label."
    return sentence


def interval_sentence(task: TaskScores) -> str | None:
    """The interval over test rows of the best prompts, and of how many they are the best; None if unknown."""
    ranked = task.ranked()
    interval = ranked[0].interval(task.metric) if ranked else None
    if interval is None:
        return None
    of = plural(ranked[0].rows[0].examples, f"{task.split} row")
    text = f"95% interval over {of}: {fmt.interval(*interval)}{fmt.unit(task.metric)}."
    choices = task.choices()
    if choices > 1:
        text += f" These prompts are the best of {choices} settings on these rows; the best is partly the luckiest."
    return text


def constant_note(line: ScoreLine) -> str | None:
    """Which seeds give one answer to all inputs, and which answer; None if none does.

    `one answer to all inputs (“yes”)`, `1 of 3 seeds gives one answer to all inputs (“yes”)`
    """
    found = [constant for constant in line.constants if constant is not None]
    if not found:
        return None
    answers = dict.fromkeys(f"“{fmt.truncate(one.answer, 40)}”" for one in found)
    inputs = "all inputs" if all(one.always for one in found) else "nearly all inputs"
    note = f"one answer to {inputs} ({', '.join(answers)})"
    if len(found) == len(line.rows):
        return note
    return f"{len(found)} of {len(line.rows)} seeds {'gives' if len(found) == 1 else 'give'} {note}"


def _within(line: ScoreLine, task: TaskScores) -> bool:
    """Whether the majority class scores within the interval over rows of a line."""
    interval = line.interval(task.metric)
    baseline = task.majority.spread(task.metric) if task.majority else None
    return interval is not None and baseline is not None and interval.low <= baseline.mean <= interval.high


def model_comparison(task: TaskScores) -> str | None:
    """Compare the T5s by the prompts that most of them have; None if there is only one T5.

    The best prompts of the run may be longer than those of other T5s, so that their distance would not be that of T5s.
    """
    ranked, same = task.ranked(), task.same_prompts()
    if len(ranked) < 2:
        return None
    best, *others = same
    reached = best.spread(task.metric)
    parts = []
    if best != ranked[0]:
        same_prompts = "With the same prompts" + (f" ({best.variant})" if best.variant else "")
        parts.append(f"{same_prompts}, {best.path_in_sentence}: {_score(best, task.metric)}")
    for line in others:
        spread = line.spread(task.metric)
        assert reached is not None
        assert spread is not None
        gap = reached.mean - spread.mean
        noise = (reached.deviation or 0.0) + (spread.deviation or 0.0)
        behind = fmt.points(gap).lstrip("+")
        distance = "the same" if behind == "0.0" else f"{behind} points less"
        if 0 < gap <= noise and behind != "0.0":
            distance += " (within the spread of the seeds)"
        note = constant_note(line)
        parts.append(
            f"{line.path_in_sentence}: {_score(line, task.metric)}, {distance}" + (f" ({note})" if note else "")
        )
    for line in ranked:
        if line.model not in [other.model for other in same]:
            other_prompts = "other prompts" + (f" ({line.variant})" if line.variant else "")
            parts.append(f"{line.path_in_sentence}, {other_prompts}: {_score(line, task.metric)}")
    seeds = sorted({len(line.rows) for line in [*same, *ranked]})
    over = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    over = f" Means ± standard deviation over {over} seeds." if seeds[-1] > 1 else ""
    return f"{fmt.sentence_case('; '.join(parts))}.{over}"


def method_comparison(task: TaskScores) -> str | None:
    """Compare the other methods with the best prompts; None if there are none."""
    ranked, others = task.ranked(), [line for line in task.best_of_each_method() if line.spread(task.metric)]
    if not others:
        return None
    parts = []
    for line in others:
        about = ", ".join(filter(None, [line.variant, "" if task.shares_t5(line) else line.path]))
        part = f"{line.method}{f' ({about})' if about else ''} {_score(line, task.metric)}"
        spread, best = line.spread(task.metric), ranked[0].spread(task.metric) if ranked else None
        if spread is not None and best is not None:
            part += f", {_relative(spread.mean - best.mean, level='the same')}"
        parts.append(part)
    return f"For comparison: {'; '.join(parts)}."


def _score(line: ScoreLine, metric: str) -> str:
    spread = line.spread(metric)
    assert spread is not None
    return spread.text.replace(" ", "\u00a0") + fmt.unit(metric)


def _relative(difference: float, level: str = "level with") -> str:
    amount = fmt.points(difference).lstrip("+" + fmt.MINUS)
    if amount == "0.0":
        return level
    return f"{amount} points {'above' if difference > 0 else 'below'}"


def seeds_only_sentence(tasks: Sequence[str]) -> str:
    """A sentence about tasks whose test rows are not resampled; empty if there are none."""
    if not tasks:
        return ""
    return (
        f" On {fmt.enumeration(tasks)} only seeds are resampled, because scores.json lacks the standard error of the"
        " metric: these intervals are too narrow. The present `evaluate` records it."
    )
