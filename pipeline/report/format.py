"""Formatting of numbers, times and names."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from t5_pipeline.core.durations import duration

MINUS = "−"
SHARES = frozenset({"accuracy", "macro_f1", "f1", "token_f1", "exact_match", "group_accuracy", "referent"})
"""Metrics that are fractions, shown in percent. Others (correlations, BLEU, …) are shown times 100, as is customary."""

_METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "f1": "F1",
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "group_accuracy": "Exact match of groups",
    "referent": "Referent accuracy",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
}


def metric_label(metric: str) -> str:
    """`macro_f1` → `Macro F1`."""
    return _METRICS.get(metric, sentence_case(metric.replace("_", " ")))


def with_metric(metric: str, value: str) -> str:
    """A formatted value with its metric, for use in a sentence.

    >>> with_metric("macro_f1", "62.3"), with_metric("pearson", "62.3")
    ('62.3% macro F1', 'a Pearson correlation of 62.3')
    """
    name = metric_label(metric)
    if metric not in SHARES:
        return f"a {name} of {value}"
    return f"{value}{unit(metric)} {name if name.startswith('F1') else name[0].lower() + name[1:]}"


def unit(metric: str) -> str:
    """Unit of a metric's values: percent or none."""
    return "%" if metric in SHARES else ""


def with_scale(title: str, metric: str) -> str:
    """The title of a column or axis with values of a metric."""
    return f"{title}\u00a0{unit(metric)}" if unit(metric) else f"{title}\u00a0×\u00a0100"


def metric_title(metric: str) -> str:
    """The name of a metric as the title of a column or axis.

    >>> metric_title("macro_f1"), metric_title("bleu")
    ('Macro F1\xa0%', 'BLEU\xa0×\xa0100')
    """
    return with_scale(metric_label(metric), metric)


def sentence_case(phrase: str) -> str:
    """The phrase with its first letter capitalized."""
    return phrase[:1].upper() + phrase[1:]


def decimal(value: float, digits: int = 1) -> str:
    """A number with a fixed number of decimals, never a negative zero.

    >>> decimal(62.34), decimal(-0.004, 2), decimal(-0.005, 3)
    ('62.3', '0.00', '−0.005')
    """
    return f"{value:z.{digits}f}".replace("-", MINUS)


def times_100(value: float) -> str:
    """A fraction or correlation times 100.

    >>> times_100(0.6234), times_100(-0.05), times_100(-0.0001)
    ('62.3', '−5.0', '0.0')
    """
    return decimal(100 * value)


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> points(0.221), points(-0.02), points(-0.0001)
    ('+22.1', '−2.0', '0.0')
    """
    shown = times_100(difference)
    return shown if shown == "0.0" or shown.startswith(MINUS) else f"+{shown}"


def interval(low: float, high: float) -> str:
    """The ends of an interval, times 100.

    >>> interval(0.5121, 0.6), interval(-0.1, 0.2)
    ('51.2 to 60.0', '−10.0 to 20.0')
    """
    return f"{times_100(low)} to {times_100(high)}"


def count(number: int) -> str:
    """An integer with thousands separators."""
    return f"{number:,}"


def approximate(number: float) -> str:
    """A large number rounded to two or three digits.

    >>> approximate(2_623_488), approximate(2_560), approximate(77), approximate(11_135_332_352)
    ('2.6 million', '2,560', '77', '11.1 billion')
    """
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= 0.9995 * size:
            return f"{number / size:.1f} {name}" if number < 100 * size else f"{number / size:.0f} {name}"
    return f"{number:,.0f}"


def size(number: int) -> str:
    """Bytes in decimal units.

    >>> size(10_494_976), size(10_240), size(999)
    ('10.5 MB', '10.2 kB', '999 bytes')
    """
    for scale, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= scale:
            return f"{number / scale:.1f} {name}"
    return f"{number} bytes"


def parse_time(iso: str) -> datetime.datetime:
    """Parse an ISO time; UTC unless it names a zone."""
    read = datetime.datetime.fromisoformat(iso)
    return read if read.tzinfo else read.replace(tzinfo=datetime.UTC)


def date(when: datetime.datetime) -> str:
    return f"{_MONTHS[when.month - 1]} {when.day}, {when.year}"


def time_of_day(when: datetime.datetime) -> str:
    """Hour, minute and second."""
    return f"{when:%H:%M:%S}"


# strftime would use the machine's locale.
_MONTHS = ("January", "February", "March", "April", "May", "June",
           "July", "August", "September", "October", "November", "December")  # fmt: skip


def fact_label(name: str) -> str:
    """A fact's key as text.

    >>> fact_label("peak_rss_bytes"), fact_label("validation_loss")
    ('peak memory', 'validation loss')
    """
    plain = name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    return _FACTS.get(plain, plain)


_FACTS = {
    "peak rss": "peak memory",
    "trained": "trained parameters",
    "cells together": "cells trained together",
    "solutions": "prompts and other solutions",
}


def enumeration(names: Sequence[str], last: str = "and") -> str:
    """Names joined by commas, and by `last` before the last one.

    >>> enumeration(["a"]), enumeration(["a", "b"]), enumeration(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def truncate(phrase: str, length: int) -> str:
    """The phrase on one line of at most `length` characters, cut between words."""
    phrase = " ".join(phrase.split())
    return phrase if len(phrase) <= length else phrase[:length].rsplit(" ", 1)[0].rstrip(" ,.;:") + " …"


def truncate_all(phrases: Sequence[str], length: int) -> list[str]:
    """The phrases, truncated; those that would look alike without the first words that they share.

    >>> truncate_all(["Span corruption", "LM adaptation (seed=0)", "LM adaptation (seed=1)"], 16)
    ['Span corruption', '… (seed=0)', '… (seed=1)']
    """
    groups: dict[str, set[str]] = {}
    for phrase in phrases:
        groups.setdefault(truncate(phrase, length), set()).add(phrase)
    found = []
    for phrase in phrases:
        alike = groups[truncate(phrase, length)]
        columns = zip(*(other.split()[:-1] for other in alike), strict=False) if len(alike) > 1 else ()
        shared = len(list(takewhile(lambda words: len(set(words)) == 1, columns)))
        found.append(truncate(" ".join(["…", *phrase.split()[shared:]]) if shared else phrase, length))
    return found


def value(found: Any, name: str = "") -> str:
    """A setting or fact of any type on one line.

    >>> value(1_234_567), value(0.25), value({"a": 1, "b": [2, 3]}), value(10_240, "peak_rss_bytes"), value(1e-05)
    ('1,234,567', '0.25', 'a 1, b 2 · 3', '10.2 kB', '1e-05')
    """
    if found is None:
        return "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, int):
        return size(found) if name.endswith("bytes") and found >= 0 else count(found)
    if isinstance(found, float):
        if name.endswith("seconds"):
            return duration(found)
        return f"{found:,.0f}" if abs(found) >= 1e4 else f"{found:z.4g}"
    if isinstance(found, dict):
        if "name" in found and "inputs" in found:  # a task; its settings are in the recipe
            return str(found["name"])
        return ", ".join(f"{key} {value(inner, key)}" for key, inner in found.items()) or "none"
    if isinstance(found, (list, tuple)):
        return " · ".join(value(inner) for inner in found) or "none"
    return str(found)


def axes(cells: Sequence[Mapping[str, Any]]) -> str:
    """The values of each axis of a matrix.

    >>> axes([{"model": "lm_adapt", "seed": 0}, {"model": "lm_adapt", "seed": 1}])
    'model lm_adapt, seed 0 · 1'
    """
    names = dict.fromkeys(name for cell in cells for name in cell)
    values = {name: dict.fromkeys(value(cell[name]) for cell in cells if name in cell) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {' · '.join(found)}" for name, found in values.items())
