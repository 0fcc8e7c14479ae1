"""The text of `t5-pipeline plan`: stale cells, reasons and costs. Runs and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.launch import LaunchConfig, read_launch_config
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import Recipe
from t5_pipeline.config.stage import TrainingConfig
from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.printable import printable
from t5_pipeline.cost.activations import Microbatch
from t5_pipeline.cost.disk import checkpoints_bytes, published_bytes, shards_bytes, tokens_of
from t5_pipeline.cost.flops import shape_of, stage_memory, step_cost
from t5_pipeline.cost.memory import Memory, TrainingFootprint, moments_bytes
from t5_pipeline.cost.throughput import seconds_of_a_step
from t5_pipeline.execution.staleness import CellStatus, check_outside, decide, jobs, wanted_steps
from t5_pipeline.modeling.config import SIZES, T5Config

_FP32 = 4
_UNKNOWN = "–"
_SAVING = ("per task, in bytes", "prompt", "tuned model", "saving", "to train: prompt", "with Adafactor", "with AdamW")
_NOTES = """\
Estimates. FLOPs: 2 per multiply-add, without padding; tasks with the longest inputs that the settings allow; "× N" is
the sum of N cells. Memory: per process, without that of the libraries. The peak is the largest sum at any one time,
less than the sum of the parts. Host: CPU memory for a checkpoint's snapshot, the best weights so far and offloaded
state (if the device is a CPU, add it to the peak). Within 15% of measured peaks on CPUs, not measured on GPUs
(docs/performance.md). To train: weights, gradients and optimizer state."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """FLOP/s of one device; None: measured, from the log of each stage."""

    flops: float | None = None


@dataclass
class StageCost:
    """Cost of all cells of a stage, with `--sizes` on a T5 of one size; None if unknown.

    Attributes:
        left: share of the FLOPs that remains.
        at_once: prompts that train in one batch.
    """

    name: str
    parameters: int | None = None
    trained: int | None = None
    tokens: int | None = None
    flops: float | None = None
    left: float | None = None
    hours: float | None = None
    disk: int | None = None
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    memory: Memory | None = None
    at_once: int = 1


def plan(recipe: Recipe, run_dir: RunDir, rate: Rate | None = None, *, sizes: bool = False) -> str:
    """The plan as text: the status of each cell, then costs.

    Args:
        rate: adds the remaining hours.
        sizes: estimate for each of the paper's five T5s instead of the recipe's.

    Raises:
        InputError: if an input outside the run does not exist, or a launch configuration is wrong.
    """
    check_outside(recipe.cells())
    decisions = decide(recipe, run_dir)
    lines = [f"{recipe.path} → {run_dir.path}", "", *_statuses(decisions)]
    todo = sum(d.action != "done" for d in decisions)
    lines += ["", f"{todo} of {len(decisions)} cells to run" if todo else "nothing to do"]
    rows: list[StageCost] = []
    savings: list[Row] = []
    for name in recipe.stages:
        of_stage = [d for d in decisions if d.cell.stage == name]
        launch = _launch(recipe, of_stage[0])
        for size in SIZES if sizes and isinstance(of_stage[0].cell.settings, TrainingConfig) else (None,):
            found = _stage_cost(recipe, run_dir, of_stage, launch, rate, SIZES[size] if size else None)
            found.name = f"{found.name}, {size}" if size else found.name
            rows.append(found)
            label = f"{name}, {size}" if size else name
            savings += _saving(recipe, run_dir, of_stage[0], SIZES[size] if size else None, label)
    for table in (_work(rows, rate), _memory(rows), [_SAVING, *savings]):
        if len(table) > 1:
            lines += ["", *_table(table)]
    return "\n".join([*map(printable, lines), "", _NOTES])


def _statuses(decisions: list[CellStatus]) -> list[str]:
    lines = []
    width = max(len(d.cell.label) for d in decisions)
    for decision in decisions:
        line = f"{decision.action:8}  {decision.cell.label.ljust(width)}  {decision.reason}"
        settings = decision.cell.settings
        if (
            isinstance(settings, TrainingConfig)
            and settings.schedule_depends_on_steps()
            and "steps:" in decision.reason
        ):
            line += f" (schedule: {settings.schedule} depends on the number of steps, so it starts from step 0)"
        lines.append(line)
    return lines


def _launch(recipe: Recipe, decision: CellStatus) -> LaunchConfig:
    """Launch configuration of a stage; by default one process, on a GPU if this machine has one."""
    path = recipe.launch[decision.cell.stage]
    if path is None or not isinstance(decision.cell.settings, TrainingConfig):
        return LaunchConfig(cpu=not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")))
    asked = read_launch_config(path)
    decision.cell.settings.check_engine(asked.engine)
    return asked


# ------------------------------------------------------------------------------------------------------------ stages


def _stage_cost(
    recipe: Recipe,
    run_dir: RunDir,
    decisions: list[CellStatus],
    launch: LaunchConfig,
    rate: Rate | None,
    size: T5Config | None,
) -> StageCost:
    """Cost of the cells of one stage."""
    cell = decisions[0].cell
    found = StageCost(cell.stage + (f" × {len(decisions)}" if len(decisions) > 1 else ""), launch=launch)
    if isinstance(cell.settings, PrepareConfig):
        found.tokens, found.disk = _tokens(run_dir.cell(cell) / "tokens", cell.settings)
        return found
    shape = size or shape_of(recipe, run_dir, cell)
    if shape is None:
        return found
    found.parameters = shape.parameters
    found.trained = cell.settings.trained_parameters(shape)
    found.disk = published_bytes(cell.settings, shape)
    if isinstance(cell.settings, TrainingConfig) and found.trained is not None:
        _add_training(found, recipe, run_dir, decisions, rate, size)
    return found


def _add_training(
    found: StageCost,
    recipe: Recipe,
    run_dir: RunDir,
    decisions: list[CellStatus],
    rate: Rate | None,
    size: T5Config | None,
) -> None:
    found.tokens, found.disk = 0, 0
    total = left = timed_flops = seconds = 0.0
    for group in jobs(decisions, run_dir):
        together = [d.cell.settings for d in group if isinstance(d.cell.settings, TrainingConfig)]
        shape = size or shape_of(recipe, run_dir, group[0].cell)
        if shape is None:
            continue
        place = run_dir.job({d.cell.id: d.fingerprint or "" for d in group}, group[0].cell)
        costs = [cost for cost in (step_cost(settings, shape) for settings in together) if cost is not None]
        steps, flops = together[0].steps, sum(cost.flops for cost in costs)
        total += steps * flops
        left += (steps - (0 if size else _steps_done(group, place, steps))) * flops
        found.tokens += steps * sum(cost.tokens for cost in costs)
        of_a_step = None if size else seconds_of_a_step(place)
        if of_a_step is not None:
            timed_flops, seconds = timed_flops + flops, seconds + of_a_step
        found.disk += checkpoints_bytes(together, shape) or 0
        for d, settings in zip(group, together, strict=True):
            found.disk += published_bytes(settings, shape, len(wanted_steps(recipe, d.cell))) or 0
        needs = stage_memory(together, shape, found.launch)
        if needs is not None and (found.memory is None or needs.peak > found.memory.peak):
            found.memory, found.at_once = needs, len(group)
    found.flops, found.left = total, left / total if total else 0.0
    if rate is not None:
        rate_of_all = rate.flops * found.launch.processes if rate.flops else timed_flops / seconds if seconds else 0.0
        found.hours = left / rate_of_all / 3600 if rate_of_all else None


def _steps_done(group: Sequence[CellStatus], job: Path, steps: int) -> int:
    """Steps that a job does not repeat: all if it is done, those of its newest checkpoint if it resumes."""
    if all(d.action == "done" for d in group):
        return steps
    if any(d.action == "run" for d in group):
        return 0
    saved = [int(path.name.removeprefix("step-")) for path in job.glob("checkpoints/step-*")]
    return min(max(saved, default=0), steps)


def _tokens(directory: Path, settings: PrepareConfig) -> tuple[int | None, int | None]:
    """Tokens and bytes of the shards, estimated if they do not exist yet."""
    try:
        counts = read_json(directory / "tokens.json")["tokens"].values()
        size = sum(counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        tokens = tokens_of(settings)
        return tokens, None if tokens is None else shards_bytes(tokens, settings)
    return size, sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _saving(recipe: Recipe, run_dir: RunDir, decision: CellStatus, size: T5Config | None, name: str) -> list[Row]:
    """Bytes per task as a prompt and as a fine-tuned model of the same T5."""
    settings = decision.cell.settings
    shape = size or shape_of(recipe, run_dir, decision.cell)
    if not isinstance(settings, PromptTuneConfig) or shape is None:
        return []
    p, N = settings.prompt_length, shape.parameters
    footprint = TrainingFootprint(Microbatch(1, p, 1, prompt=p), p * shape.d_model, settings.optimizer)
    prompt, model = _FP32 * footprint.numbers, _FP32 * N
    either = [moments_bytes(shape, TrainingFootprint(Microbatch(1, 1, 1), N, name)) for name in ("adafactor", "adamw")]
    stored = (f"{prompt:,}", f"{model:,}", f"{model / prompt:,.0f} ×")
    to_train = (prompt + moments_bytes(shape, footprint), *(model + moments for moments in either))
    return [(name, *stored, *map(size_text, to_train))]


# ------------------------------------------------------------------------------------------------------------ tables


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


def _table(rows: list[Row]) -> list[str]:
    """Lines with the first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def devices_text(launch: LaunchConfig) -> str:
    """
    >>> devices_text(LaunchConfig(cpu=True)), devices_text(LaunchConfig("zero2", 16, 2, offload_optimizer=True))
    ('1 CPU process', '16 GPUs, zero2, offload')
    """
    what = ("CPU process" if launch.cpu else "GPU") + ("" if launch.processes == 1 else "es" if launch.cpu else "s")
    engine = "" if launch.engine == "one" else f", {launch.engine}"
    return f"{launch.processes} {what}{engine}" + (", offload" if launch.offload_optimizer else "")


def count_text(value: int | None) -> str:
    """
    >>> count_text(128), count_text(76_961_152), count_text(104_857_600_000)
    ('128', '76,961,152', '104.9 G')
    """
    return _UNKNOWN if value is None else f"{value:,}" if value < 10**9 else f"{value / 1e9:,.1f} G"


def size_text(value: float | None) -> str:
    """
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
    """
    >>> hours_text(0.004), hours_text(0.25), hours_text(1234.5), hours_text(None)
    ('14 s', '15 min', '1,234 h', '–')
    """
    if value is None:
        return _UNKNOWN
    if value < 1:
        return f"{value * 3600:.0f} s" if value < 1 / 60 else f"{value * 60:.0f} min"
    return f"{value:,.1f} h" if value < 100 else f"{value:,.0f} h"
