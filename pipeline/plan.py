"""`t5-pipeline plan`: what would run and why, and what it would take."""

from __future__ import annotations

from pipeline.decide import Decision, check_outside, decide, jobs
from pipeline.estimate import Estimate, estimate, shape_of
from pipeline.recipe import Recipe
from pipeline.run_dir import RunDir
from pipeline.stage_settings import TrainingSettings


def plan(recipe: Recipe, run_dir: RunDir) -> str:
    """The plan as text: decisions first, then estimates; launches and changes nothing."""
    check_outside(recipe.cells())
    decisions = decide(recipe, run_dir)
    lines = [f"{recipe.path} → {run_dir.path}", ""]
    lines += _decisions(recipe, decisions)
    todo = sum(d.action != "done" for d in decisions)
    lines += ["", f"{todo} of {len(decisions)} cells to make" if todo else "nothing to do"]
    table: list[tuple[str, ...]] = [("stage", "parameters", "trained", "tokens", "FLOPs", "memory/device", "disk")]
    for name, cells in recipe.stages.items():
        of_stage = [d for d in decisions if d.cell.stage == name]
        company = max(len(group) for group in jobs(of_stage, run_dir))
        for cell in cells[:1]:
            found = estimate(cell, shape_of(recipe, run_dir, cell), company)
            table.append((f"{name} × {len(cells)}" if len(cells) > 1 else name, *_row(found)))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines += [""]
    for row in table:
        cells_text = [
            row[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells_text).rstrip())
    lines += [
        "",
        "Estimates for padded lengths on one device that holds the whole model; × N: each of the stage's cells.",
    ]
    return "\n".join(lines)


def _decisions(recipe: Recipe, decisions: list[Decision]) -> list[str]:
    lines = []
    width = max(len(d.cell.label) for d in decisions)
    for decision in decisions:
        line = f"{decision.action:8}  {decision.cell.label.ljust(width)}  {decision.reason}"
        settings = decision.cell.settings
        if (
            isinstance(settings, TrainingSettings)
            and settings.schedule_depends_on_steps()
            and "steps:" in decision.reason
        ):
            line += f" (schedule: {settings.schedule} depends on the number of steps, so it starts from step 0)"
        lines.append(line)
    return lines


def _row(found: Estimate) -> list[str]:
    return [
        _count(found.parameters),
        _count(found.trained),
        _count(found.tokens),
        "–" if found.flops is None else f"{found.flops:.1e}",
        _size(found.memory_bytes),
        _size(found.disk_bytes),
    ]


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}" if value < 10**9 else f"{value / 1e9:,.1f} G"


def _size(value: int | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value = value / 1024  # type: ignore[assignment]
    return f"{value:.2f} TiB"
