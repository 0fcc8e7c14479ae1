"""The plan of a run: stale cells with reasons, and the cost of each stage. Runs and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t5_pipeline.artifacts.run_dir import RunDir, checkpoint_steps, step_name
from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import Cell, Recipe
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.bounded import read_json
from t5_pipeline.cost.activations import Microbatch
from t5_pipeline.cost.disk import checkpoints_bytes, published_bytes, shards_bytes, tokens_of
from t5_pipeline.cost.fits import Fit, fit
from t5_pipeline.cost.flops import shape_of, stage_memory, step_cost
from t5_pipeline.cost.memory import Memory, TrainingFootprint, moments_bytes
from t5_pipeline.cost.probes import ProbeCost, probe_cost
from t5_pipeline.cost.throughput import seconds_of_a_step
from t5_pipeline.execution.recipe_checks import check_first_rows, check_outside
from t5_pipeline.execution.staleness import CellStatus, cell_statuses, jobs, wanted_steps
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import SIZES

_FP32 = 4


@dataclass(frozen=True)
class Rate:
    """FLOP/s of one device; None: measured, from the log of each stage."""

    flops: float | None = None


@dataclass
class StageCost:
    """Cost of all cells of a stage, with `--sizes` on a T5 of one size; None if unknown.

    Attributes:
        name: the stage, with the number of its cells and the size of the T5.
        parameters, trained: the largest numbers among the cells.
        left: share of the FLOPs that remains.
        at_once: prompts that train in one batch.
        fit: whether it fits in the memory of a device; None without `--memory`.
        warnings: settings of its cells that work, but probably not as intended.
        probes: cost of the probes of LM adaptation.
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
    fit: Fit | None = None
    warnings: list[str] = field(default_factory=list)
    probes: ProbeCost | None = None


@dataclass(frozen=True)
class Saving:
    """Bytes of one task as a prompt and as a fine-tuned model of the same T5, stored and in training.

    A stage with several cells is represented by the largest prompt on the largest T5.
    """

    name: str
    prompt: int
    model: int
    train_prompt: int
    train_adafactor: int
    train_adamw: int


@dataclass(frozen=True)
class Plan:
    """The status of each cell, and what the stages cost."""

    recipe: Recipe
    run_dir: RunDir
    statuses: list[CellStatus]
    stages: list[StageCost] = field(default_factory=list)
    savings: list[Saving] = field(default_factory=list)


def plan(
    recipe: Recipe, run_dir: RunDir, rate: Rate | None = None, *, sizes: bool = False, memory: int | None = None
) -> Plan:
    """The status of each cell and the cost of each stage.

    Args:
        rate: adds the remaining hours.
        sizes: estimate for each of the paper's five T5s instead of the recipe's.
        memory: bytes of a device; adds whether each stage fits.

    Raises:
        InputError: if an input outside the run does not exist, or a launch configuration is wrong.
    """
    for name in recipe.stages:
        check_outside(recipe, name)
    made = Plan(recipe, run_dir, cell_statuses(recipe, run_dir))
    check_first_rows(recipe, [status.cell for status in made.statuses if not status.up_to_date])
    estimator = _Estimator(recipe, run_dir, rate, memory)
    for name in recipe.stages:
        of_stage = [status for status in made.statuses if status.cell.stage == name]
        launch = recipe.launch_config(name) or _one_process()
        trains = isinstance(of_stage[0].cell.settings, TrainingConfig)
        for size in SIZES if sizes and trains else (None,):
            shape = SIZES[size] if size else None
            found = estimator.stage_cost(of_stage, launch, shape)
            found.name += f", {size}" if size else ""
            made.stages.append(found)
            cells = [status.cell for status in of_stage]
            label = f"{name}, {size}" if size else name
            savings = [
                each
                for cell in cells
                if (each := _saving(cell.settings, estimator.shape(cell, shape), label)) is not None
            ]
            if savings:
                made.savings.append(max(savings, key=lambda each: (each.model, each.prompt)))
    return made


def _one_process() -> LaunchConfig:
    """One process, on a GPU if this machine has one."""
    return LaunchConfig(cpu=not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")))


@dataclass(frozen=True)
class _Estimator:
    """Estimates what the stages of a run cost.

    Attributes:
        rate, memory: as for `plan`.
    """

    recipe: Recipe
    run_dir: RunDir
    rate: Rate | None
    memory: int | None

    def stage_cost(self, statuses: list[CellStatus], launch: LaunchConfig, size: T5Config | None) -> StageCost:
        """Cost of the cells of one stage."""
        cells = [status.cell for status in statuses]
        found = StageCost(cells[0].stage + (f" × {len(cells)}" if len(cells) > 1 else ""), launch=launch)
        texts = [
            _tokens(self.run_dir.cell(cell) / "tokens", cell.settings)
            for cell in cells
            if isinstance(cell.settings, PrepareConfig)
        ]
        if texts:
            found.tokens, found.disk = _sum(tokens for tokens, _ in texts), _sum(size for _, size in texts)
            return found
        known = [(cell.settings, shape) for cell in cells if (shape := self.shape(cell, size)) is not None]
        if not known:
            return found
        found.parameters = max(shape.parameters for _, shape in known)
        trained = [settings.trained_parameters(shape) for settings, shape in known]
        found.trained = max((number for number in trained if number is not None), default=None)
        found.disk = _sum(published_bytes(settings, shape) for settings, shape in known)
        if isinstance(cells[0].settings, TrainingConfig) and found.trained is not None:
            self._add_training(found, statuses, size)
            warnings = (
                each for settings, _ in known if isinstance(settings, TrainingConfig) for each in settings.warnings()
            )
            found.warnings = list(dict.fromkeys(warnings))
            probes = (probe_cost(settings, shape) for settings, shape in known if isinstance(settings, LMAdaptConfig))
            found.probes = max((each for each in probes if each), key=lambda each: each.share, default=None)
        return found

    def _add_training(self, found: StageCost, statuses: list[CellStatus], size: T5Config | None) -> None:
        found.tokens, found.disk = 0, 0
        total = left = timed_flops = seconds = 0.0
        for group in jobs(statuses, self.run_dir):
            together = [status.cell.settings for status in group if isinstance(status.cell.settings, TrainingConfig)]
            shape = self.shape(group[0].cell, size)
            if shape is None:
                continue
            place = self.run_dir.job({status.cell.id: status.fingerprint or "" for status in group}, group[0].cell)
            costs = [cost for cost in (step_cost(settings, shape) for settings in together) if cost is not None]
            steps, flops = together[0].run_steps(together[0].steps), sum(cost.flops for cost in costs)
            total += steps * flops
            left += (steps if size else self._steps_left(group, together[0], place)) * flops
            found.tokens += steps * sum(cost.tokens for cost in costs)
            of_a_step = None if size else seconds_of_a_step(place)
            if of_a_step is not None:
                timed_flops, seconds = timed_flops + flops, seconds + of_a_step
            found.disk += checkpoints_bytes(together, shape) or 0
            for status, settings in zip(group, together, strict=True):
                found.disk += published_bytes(settings, shape, len(wanted_steps(self.recipe, status.cell))) or 0
            needs = stage_memory(together, shape, found.launch)
            if needs is not None and (found.memory is None or needs.peak > found.memory.peak):
                found.memory, found.at_once = needs, sum(len(c.at_once()) for c in together)
                found.fit = None if self.memory is None else fit(together, shape, found.launch, self.memory)
        found.flops, found.left = total, left / total if total else 0.0
        if (rate := self.rate) is not None:
            measured = timed_flops / seconds if seconds else 0.0
            rate_of_all = rate.flops * found.launch.processes if rate.flops else measured
            found.hours = left / rate_of_all / 3600 if rate_of_all else None

    def _steps_left(self, group: Sequence[CellStatus], settings: TrainingConfig, job: Path) -> int:
        """Steps that a job still has to do: up to each step that it must publish, from the checkpoint before it."""
        if all(status.up_to_date for status in group):
            return 0
        if any(status.action == "run" for status in group):
            return settings.run_steps(settings.steps)
        status = next(status for status in group if not status.up_to_date)
        steps = self.run_dir.cell(status.cell) / "steps"
        left, begun = 0, {0, *checkpoint_steps(job / "checkpoints")}
        for step in status.steps_wanted:
            if step < settings.steps and (steps / step_name(step) / settings.outputs[0]).is_dir():
                continue
            end = settings.run_steps(step)
            left += end - max(start for start in begun if start <= end)
            begun.add(end)
        return left

    def shape(self, cell: Cell, size: T5Config | None) -> T5Config | None:
        """The T5 of a cell, or one of another size; None if unknown."""
        return size or shape_of(self.recipe, self.run_dir, cell)


def _saving(settings: StageConfig, shape: T5Config | None, name: str) -> Saving | None:
    """Bytes per task as a prompt and as a fine-tuned model; None for other stages."""
    if not isinstance(settings, PromptTuneConfig) or shape is None:
        return None
    p, N = settings.prompt_length, shape.parameters
    trained = settings.trained_numbers(p, shape.d_model)
    footprint = TrainingFootprint(Microbatch(1, p, 1, prompt=p), trained, settings.optimizer)
    prompt, model = _FP32 * p * shape.d_model, _FP32 * N
    either = [moments_bytes(shape, TrainingFootprint(Microbatch(1, 1, 1), N, name)) for name in ("adafactor", "adamw")]
    to_train = (_FP32 * trained + moments_bytes(shape, footprint), *(model + moments for moments in either))
    return Saving(name, prompt, model, *to_train)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if a number is unknown."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)


def _tokens(directory: Path, settings: PrepareConfig) -> tuple[int | None, int | None]:
    """Tokens and bytes of the shards, estimated if they do not exist yet."""
    try:
        counts = read_json(directory / "tokens.json")["tokens"].values()
        size = sum(counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        tokens = tokens_of(settings)
        return tokens, None if tokens is None else shards_bytes(tokens, settings)
    return size, sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
