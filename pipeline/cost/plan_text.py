"""A plan as text for the terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.printable import printable
from t5_pipeline.core.tables import aligned
from t5_pipeline.cost.fits import Fit
from t5_pipeline.cost.plan import Plan, Rate, Saving, StageCost
from t5_pipeline.execution.staleness import CellStatus

_UNKNOWN = "–"
_SAVING = ("per task, in bytes", "prompt", "tuned model", "saving", "to train: prompt", "with Adafactor", "with AdamW")
_NOTES = """\
Estimates. FLOPs: 2 per multiply-add, without padding; tasks with the longest inputs that the settings allow; "× N" is
the sum of N cells. Memory: per process, without that of the libraries. The peak is the largest sum at any one time,
less than the sum of the parts. Host: CPU memory for a checkpoint's snapshot, the best weights so far and offloaded
state (if the device is a CPU, add it to the peak). Within 15% of measured peaks on CPUs, 16% on one H100
(docs/performance.md). To train: weights, gradients and optimizer state."""

Row = tuple[str, ...]


def as_text(plan: Plan, rate: Rate | None = None) -> str:
    """The status of each cell, then tables of costs.

    Args:
        rate: as in `plan`.
    """
    todo = sum(not status.up_to_date for status in plan.statuses)
    lines = [f"{plan.recipe.path} → {plan.run_dir.path}", "", *_statuses(plan.statuses)]
    lines += ["", f"{todo} of {len(plan.statuses)} cells to run" if todo else "nothing to do"]
    for table in (_work(plan.stages, rate), _memory(plan.stages), [_SAVING, *map(_saved, plan.savings)]):
        if len(table) > 1:
            lines += ["", *aligned(table, right=True)]
    fits = [f"{row.name}: {_fits(row.fit)}" for row in plan.stages if row.fit]
    probes = [f"{row.name}: {row.probes}" for row in plan.stages if row.probes]
    warnings = [f"warning: {row.name}: {warning}" for row in plan.stages for warning in row.warnings]
    for more in (fits, probes, warnings):
        lines += ["", *more] if more else []
    return "\n".join([*map(printable, lines), "", _NOTES])


def as_json(plan: Plan) -> dict[str, Any]:
    """The same as plain data; null is unknown, sizes are in bytes."""
    return {
        "recipe": str(plan.recipe.path),
        "run_dir": str(plan.run_dir.path),
        "cells": [
            {"stage": s.cell.stage, "cell": s.cell.id, "action": s.action, "reason": s.reason} for s in plan.statuses
        ],
        "stages": [asdict(row) for row in plan.stages],
        "savings": [asdict(saving) for saving in plan.savings],
    }


def _statuses(statuses: list[CellStatus]) -> list[str]:
    lines = []
    width = max(len(status.cell.label) for status in statuses)
    for status in statuses:
        reason = "" if status.up_to_date else status.reason
        line = f"{status.action:10}  {status.cell.label.ljust(width)}  {reason}".rstrip()
        settings = status.cell.settings
        if isinstance(settings, TrainingConfig) and settings.schedule_depends_on_steps() and "steps:" in status.reason:
            what = f"schedule: {settings.schedule}" if settings.schedule == "linear" else "sweep"
            line += f" ({what} depends on the number of steps, so it starts from step 0)"
        lines.append(line)
    return lines


def _saved(saving: Saving) -> Row:
    stored = (f"{saving.prompt:,}", f"{saving.model:,}", f"{saving.model / saving.prompt:,.0f} ×")
    return (saving.name, *stored, *map(size_text, (saving.train_prompt, saving.train_adafactor, saving.train_adamw)))


def _fits(fit: Fit) -> str:
    sizes = f"{size_text(fit.needs)} of {size_text(fit.has)}"
    if fit.fits:
        return f"fits ({sizes})"
    remedy = f"would fit with {fit.remedy}" if fit.remedy else "use a larger device, or a smaller batch or model"
    return f"does not fit ({sizes}); {remedy}"


def _work(rows: list[StageCost], rate: Rate | None) -> list[Row]:
    table: list[Row] = [
        ("stage", "parameters", "trained", "tokens", "FLOPs", "left", *(["hours left"] if rate else []), "disk")
    ]
    for row in rows:
        cells = [
            count_text(row.parameters),
            count_text(row.trained),
            count_text(row.tokens),
            _UNKNOWN if row.flops is None else f"{row.flops:.1e}",
            _UNKNOWN if row.left is None else f"{row.left:.0%}",
        ]
        if rate:
            cells.append(hours_text(row.hours))
        table.append((row.name, *cells, size_text(row.disk)))
    return table


def _memory(rows: list[StageCost]) -> list[Row]:
    parts = ("weights", "gradients", "optimizer", "activations", "peak", "host")
    table: list[Row] = [("memory of each process", *parts, "devices")]
    for row in rows:
        found = row.memory
        if found is not None:
            host = max(found.host + found.snapshot, 0 if row.launch.cpu else found.loading)
            sizes = (found.weights, found.gradients, found.optimizer, found.activations, found.peak, host)
            name = row.name + (f", {row.at_once} at once" if row.at_once > 1 else "")
            table.append((name, *map(size_text, sizes), devices_text(row.launch)))
    return table


def devices_text(launch: LaunchConfig) -> str:
    """The devices of a launch.

    >>> devices_text(LaunchConfig(cpu=True)), devices_text(LaunchConfig("zero2", 16, 2, offload_optimizer=True))
    ('1 CPU process', '16 GPUs, zero2, offload')
    """
    what = ("CPU process" if launch.cpu else "GPU") + ("" if launch.processes == 1 else "es" if launch.cpu else "s")
    engine = "" if launch.engine == "one" else f", {launch.engine}"
    return f"{launch.processes} {what}{engine}" + (", offload" if launch.offload_optimizer else "")


def count_text(value: int | None) -> str:
    """A number, from a billion on in units of a billion.

    >>> count_text(128), count_text(76_961_152), count_text(104_857_600_000)
    ('128', '76,961,152', '104.9 G')
    """
    return _UNKNOWN if value is None else f"{value:,}" if value < 10**9 else f"{value / 1e9:,.1f} G"


def size_text(value: float | None) -> str:
    """Bytes in binary units.

    >>> size_text(500), size_text(307_200), size_text(11 * 2**30)
    ('500 B', '300.0 KiB', '11.0 GiB')
    """
    if value is None:
        return _UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.2f} TiB"


def hours_text(value: float | None) -> str:
    """Hours, as minutes or seconds if there are few.

    >>> hours_text(0.004), hours_text(0.25), hours_text(1234.5), hours_text(None)
    ('14 s', '15 min', '1,234 h', '–')
    """
    if value is None:
        return _UNKNOWN
    if value < 1:
        return f"{value * 3600:.0f} s" if value < 1 / 60 else f"{value * 60:.0f} min"
    return f"{value:,.1f} h" if value < 100 else f"{value:,.0f} h"
