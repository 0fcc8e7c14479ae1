"""Settings of the prompt or cell behind a score, as text: `20 tokens`, `from class labels`."""

from __future__ import annotations

from t5_pipeline.core.counts import plural
from t5_pipeline.report.scores import Score


def traits(row: Score) -> dict[str, str | None]:
    """Properties in which scores may differ, except model and seed."""
    found: dict[str, str | None] = {**_axes(row)}
    if row.prompt_length is not None:
        found["prompt_length"] = str(row.prompt_length)
    if row.prompt_init is not None:
        found["prompt_init"] = row.prompt_init
    if row.scoring is not None:
        found["scored_by"] = row.scoring
    found["rows"] = str(row.examples)
    return found


def other_axes(row: Score) -> list[str]:
    """Matrix axes of a score's cell as text, except those that it has as values of their own."""
    return [trait(key, value) for key, value in _axes(row).items() if key not in ("prompt_length", "prompt_init")]


def trait(key: str, value: str | int | None) -> str:
    """A setting of a prompt as text: `20 tokens`, `from class labels`."""
    if key == "prompt_length":
        return plural(int(value or 0), "token")
    if key == "rows":
        return plural(int(value or 0), "row")
    if key == "prompt_init":
        return f"from {str(value).replace('_', ' ')}"
    return f"{key.replace('_', ' ')} {value}"


def _axes(row: Score) -> dict[str, str]:
    axes = dict(axis.split("=", 1) for axis in (row.cell or "").split(",") if "=" in axis)
    named = (row.variant or "").split(", ")  # such as the rank of LoRA
    return {
        key: value
        for key, value in axes.items()
        if key not in ("model", "seed", "task", "tasks", "shots", "virtual_tokens") and trait(key, value) not in named
    }
